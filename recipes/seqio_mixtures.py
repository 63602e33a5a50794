"""Registers the published mixtures (`recipes/mixes.py`) as seqio tasks and mixtures; importing this module does it.

    import recipes.seqio_mixtures, seqio
    mixture = seqio.get_mixture_or_task("dolmino_1124_50b")
    dataset = mixture.get_dataset(sequence_length=None, split="train", shuffle=False)

The tasks hold text (`text`), or conversations as JSON (`messages`). A task is named after its repository and source,
and after the fraction of its documents where that is not all: `dolmino_mix_1124_dclm_0.0323`.
"""

from __future__ import annotations

from pathlib import Path

from easylm_jax.config import Source
from easylm_jax.data.seqio_tasks import declare_mixture, declare_task
from recipes import mixes


def task_name(mix: mixes.Mix, part: mixes.Part) -> str:
    """The name of the task of a source."""
    name = f"{mix.repository}_{part.subset}".lower().replace("-", "_")
    return name if part.fraction is None else f"{name}_{part.fraction:g}"


def source_of(mix: mixes.Mix, part: mixes.Part, folder: Path | None = None) -> Source:
    """A source of a mix: on the hub, or in a copy of the repository below `folder`."""
    if folder is not None:
        return Source(str(folder / mix.repository / "data" / part.subset), fraction=part.fraction)
    return Source(f"hf:allenai/{mix.repository}", subset=part.subset, fraction=part.fraction)


def register(prefix: str = "", folder: str | None = None) -> None:
    """Registers all tasks and mixtures.

    Args:
        prefix: put before every name, to register them more than once.
        folder: where copies of the repositories lie; None reads them from the hub.
    """
    local = None if folder is None else Path(folder)
    declared: set[str] = set()
    for name, mix in mixes.MIXES.items():
        rates = {}
        for part in mix.parts:
            task = prefix + task_name(mix, part)
            if task not in declared:
                declare_task(task, source_of(mix, part, local))
                declared.add(task)
            rates[task] = part.rate
        declare_mixture(prefix + name, rates)
    for name, repository in mixes.CHATS.items():
        where = f"hf:allenai/{repository}" if local is None else str(local / repository / "data")
        declare_task(prefix + name, Source(where), kind="chat")


register()
