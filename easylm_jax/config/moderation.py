"""The stage that evaluates moderators on moderation benchmarks beside baselines (docs/moderation.md)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from easylm_jax.config.base import ModelUse, Stage, models_of, stages_of
from easylm_jax.config.bounds import Count
from easylm_jax.config.data import Source
from easylm_jax.config.evaluate import Published
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModerationSet:
    """A benchmark of moderation: a name of `evaluate.moderation_sets.SETS`, whose columns it reads."""

    name: str
    """The benchmark."""
    path: str | None = None
    """Its file (or `stage:<name>/<file>`); None is the published set on the hub."""
    limit: Count | None = None
    """Only the first rows; None all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModerationTable(Stage):
    """Scores moderators on benchmarks: F1 by task with intervals, beside a majority and a TF-IDF baseline."""

    family: ClassVar[str] = "evaluate"

    title: str
    """The heading of the table."""
    moderators: tuple[str, ...]
    """The moderators: stages, `hf:<name>` or `run:<folder>`."""
    sets: tuple[ModerationSet, ...]
    """The benchmarks."""
    baselines: tuple[Source, ...] = ()
    """Training rows with gold labels for the baselines (the columns of `evaluate.moderation_sets`); none: no
    baselines. TF-IDF needs scikit-learn (the extra `evals`)."""
    mode: Literal["slots", "generate"] = "slots"
    """How answers are read: the labels given and the answers asked for, or decoded and parsed."""
    compare: Count | None = None
    """Also reads the first so many rows in the other mode and reports the share of equal labels; None does not."""
    template: str | None = None
    """A file with the moderator's input; None is this project's own."""
    published: tuple[Published, ...] = ()
    """Published numbers beside ours."""

    def __post_init__(self):
        super().__post_init__()
        if not (self.moderators and self.sets):
            raise UserError(f"stage {self.name}: give at least one moderator and one set")

    @property
    def models(self) -> dict[str, str | None]:
        return {"model": self.moderators[0]}

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        return tuple(ModelUse("moderators", name, "language") for name in self.moderators)

    @property
    def compiles(self) -> bool:
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        files = [Source(each.path) for each in self.sets if each.path is not None]
        return tuple(dict.fromkeys([*models_of(*self.moderators), *stages_of((*self.baselines, *files))]))

    @property
    def work(self) -> str:
        return ", ".join(each.name for each in self.sets)
