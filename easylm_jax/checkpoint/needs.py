"""Checks, before the first stage of a run, that its models, tokenizers and data sets on the Hugging Face Hub exist.

A recipe of a paper names many of them, some gated and some of hundreds of gigabytes. All that are missing are reported
together at the start, instead of one by one when a stage first reads them, perhaps days later.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from easylm_jax.checkpoint import hub
from easylm_jax.config import DataSpec, JudgeModel, Source, Stage
from models.errors import UserError

MODEL, TOKENIZER, DATA = "model", "tokenizer", "data set"
LOCAL, CACHED, HUB = "a local folder", "in the hub's cache", "on the hub, downloaded when it is read"
_TIMEOUT_SECONDS = 10.0  # for one request to the Hub


class Need(NamedTuple):
    """A repository that is read from the Hub. `name` is the text after "hf:", without a split or subset."""

    kind: str
    name: str


def needs(stages: Iterable[Stage]) -> list[Need]:
    """Every `hf:` name in the stages, each once; a tokenizer in the repository of a model is not listed again."""
    found = dict.fromkeys(need for stage in stages for need in _of(stage, MODEL))
    models = {need.name for need in found if need.kind == MODEL}
    return [need for need in found if not (need.kind == TOKENIZER and need.name in models)]


def _of(value: Any, kind: str) -> Iterator[Need]:
    """The `hf:` names in `value`; `kind` is the kind of a string at this place."""
    if isinstance(value, str):
        if value.startswith("hf:"):
            name = value.removeprefix("hf:")
            yield Need(kind, name.partition(":")[0] if kind == DATA else name)
    elif isinstance(value, Source) and value.path.startswith("seqio:"):
        from easylm_jax.data.seqio_tasks import declared_sources

        yield from _of(declared_sources(value), DATA)
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
    """Locates needs; queries the Hub over the network until a request fails."""

    def __init__(self) -> None:
        self.unreachable: str | None = None  # the reason, if the Hub cannot be queried

    def locate(self, need: Need) -> str | None:
        """`LOCAL`, `CACHED` or `HUB`; None if it cannot be found."""
        repository, _, revision = need.name.partition("@")
        if Path(need.name).expanduser().is_dir():
            return LOCAL
        if not hub.is_name(need.name) and not (need.kind == DATA and repository and "/" not in repository):
            return None
        if self._cached(need, repository):
            return CACHED
        return HUB if self.unreachable is None and self._on_hub(need, repository, revision or None) else None

    def _cached(self, need: Need, repository: str) -> bool:
        try:
            from huggingface_hub import constants
        except ImportError:
            self.unreachable = "huggingface_hub is not installed"
            return False
        kind = "datasets" if need.kind == DATA else "models"
        folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{repository.replace('/', '--')}" / "snapshots"
        folders = [folder]
        if need.kind == DATA:  # prepared data sets have a folder of their own
            prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
            folders.append(Path(prepared) / repository.replace("/", "___"))
        return any(path.is_dir() and any(path.iterdir()) for path in folders)

    def _on_hub(self, need: Need, repository: str, revision: str | None) -> bool:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        kind = "dataset" if need.kind == DATA else "model"
        try:
            HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=_TIMEOUT_SECONDS)
        except HfHubHTTPError:  # the repository does not exist, or this user has no access
            return False
        except Exception as error:  # various network errors
            self.unreachable = f"the hub does not answer ({type(error).__name__})"
            return False
        return True


def check(stages: Iterable[Stage], log: Callable[[str], None], where: Hub | None = None) -> None:
    """Calls `log` with one line for everything that the stages need from the Hub, unless all of it is local or cached.

    Raises:
        UserError: something cannot be found; the message names all that is missing.
    """
    where = where or Hub()
    places = {need: where.locate(need) for need in needs(stages)}
    if all(place in (LOCAL, CACHED) for place in places.values()):
        return
    for need, place in places.items():
        log(f"needs the {need.kind} hf:{need.name}: {place or 'NOT FOUND'}")
    missing = [f"hf:{need.name}" for need, place in places.items() if place is None]
    if missing:
        why = f"; {where.unreachable}" if where.unreachable else ""
        raise UserError(
            f"{len(missing)} of the {len(places)} models and data sets that this run needs cannot be found: "
            f"{', '.join(missing)}{why}; download them, or give local folders instead (<stage>.<field>=hf:<folder>), "
            "and set HF_TOKEN for gated repositories"
        )
