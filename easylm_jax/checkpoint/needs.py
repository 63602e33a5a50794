"""What a run needs from the Hugging Face hub, looked for before its first stage: models, tokenizers, data sets.

A recipe of a paper names many of them, some gated and some of hundreds of gigabytes. That one cannot be had is told at
once, with all the others, and not when the stage that reads it begins, perhaps days later.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from easylm_jax.checkpoint import hub
from easylm_jax.config import DataSpec, JudgeModel, Source, Stage
from models.errors import UserError

MODEL, TOKENIZER, DATA = "model", "tokenizer", "data set"
LOCAL, CACHED, HUB = "a folder here", "in the hub's cache", "on the hub, fetched when it is read"
_SECONDS = 10.0  # for the hub to say whether it has a repository


class Need(NamedTuple):
    """A thing that is read from the hub. `name` is what stands behind "hf:", without a split or subset."""

    kind: str
    name: str


def needs(stages: Iterable[Stage]) -> list[Need]:
    """Every `hf:` name in the stages, each once; a tokenizer that is also a model's name counts as that model."""
    found = dict.fromkeys(need for stage in stages for need in _of(stage, MODEL))
    models = {need.name for need in found if need.kind == MODEL}
    return [need for need in found if not (need.kind == TOKENIZER and need.name in models)]


def _of(value: Any, kind: str) -> Iterator[Need]:
    """`kind` is that of a name which stands here."""
    if isinstance(value, str):
        if value.startswith("hf:"):
            name = value.removeprefix("hf:")
            yield Need(kind, name.partition(":")[0] if kind == DATA else name)
    elif isinstance(value, Stage) and value.function_arguments:
        yield from _of(list(value.function_arguments), DATA)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            is_tokenizer = field.name == "tokenizer" and isinstance(value, (DataSpec, JudgeModel))
            yield from _of(getattr(value, field.name), DATA if isinstance(value, Source) else
                           TOKENIZER if is_tokenizer else kind)  # fmt: skip
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _of(item, kind)


class Hub:
    """Where needs are found; asks the hub over the network until it does not answer."""

    def __init__(self) -> None:
        self.silent: str | None = None  # why it does not answer

    def place(self, need: Need) -> str | None:
        """Where a need is found, in words; None where it cannot be had."""
        repository, _, revision = need.name.partition("@")
        if Path(need.name).expanduser().is_dir():
            return LOCAL
        if not hub.is_name(need.name) and not (need.kind == DATA and repository and "/" not in repository):
            return None
        if self._cached(need, repository):
            return CACHED
        return HUB if self.silent is None and self._asked(need, repository, revision or None) else None

    def _cached(self, need: Need, repository: str) -> bool:
        try:
            from huggingface_hub import constants
        except ImportError:
            self.silent = "huggingface_hub is not installed"
            return False
        kind = "datasets" if need.kind == DATA else "models"
        folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{repository.replace('/', '--')}" / "snapshots"
        kept = [folder]
        if need.kind == DATA:  # sets that were prepared are kept in a folder of their own
            prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
            kept.append(Path(prepared) / repository.replace("/", "___"))
        return any(one.is_dir() and any(one.iterdir()) for one in kept)

    def _asked(self, need: Need, repository: str, revision: str | None) -> bool:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        kind = "dataset" if need.kind == DATA else "model"
        try:
            HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=_SECONDS)
        except HfHubHTTPError:  # it answers: there is no such repository, or not for this user
            return False
        except Exception as error:  # the network's many kinds
            self.silent = f"the hub does not answer ({type(error).__name__})"
            return False
        return True


def check(stages: Iterable[Stage], say: Any, where: Hub | None = None) -> None:
    """Tells with `say`, a line each, what the stages need from the hub, unless all of it is here already.

    Raises:
        UserError: something cannot be had; one line that names it.
    """
    where = where or Hub()
    places = {need: where.place(need) for need in needs(stages)}
    if all(place in (LOCAL, CACHED) for place in places.values()):
        return
    for need, place in places.items():
        say(f"needs the {need.kind} hf:{need.name}: {place or 'NOT FOUND'}")
    missing = [f"hf:{need.name}" for need, place in places.items() if place is None]
    if missing:
        why = f"; {where.silent}" if where.silent else ""
        raise UserError(
            f"{len(missing)} of the {len(places)} models and data sets that this run needs cannot be found: "
            f"{', '.join(missing)}{why}; download them, or give folders in their place (<stage>.<field>=hf:<folder>), "
            "and set HF_TOKEN for what is gated"
        )
