"""Judging models on held-out prompts: tasks, the rows of a table, and the stage that fills it in."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from easylm_jax.config import fields
from easylm_jax.config.base import Stage, models_of, stages_of_data
from easylm_jax.config.data import DataSpec
from easylm_jax.config.reward import Sampling
from models.config import Compute
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """Held-out prompts and the verifier (an expression) that judges answers to them.

    `limit` takes the first so many prompts. `also` names further columns, each an expression over the same answers.
    With `samples`, a prompt's score is the mean over its answers, and pass@samples (the best of them) stands beside;
    `best_of`, a reward model, picks one of them.
    """

    name: str
    data: DataSpec
    verifier: str
    sampling: Sampling
    samples: int = 1
    limit: int | None = None
    best_of: str | None = None
    also: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a table: a method, the stages (or `hf:`, `run:` models) that are its seeds, and what it starts from."""

    method: str
    stages: tuple[str, ...]
    over: str | None = None


@dataclasses.dataclass(frozen=True)
class Published:
    """A number of a paper's table, in the paper's unit, for the report to print beside ours."""

    method: str
    column: str
    value: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Judges models on held-out prompts and leaves the table: `table.json` in its folder and in the recipe's.

    With `reference`, the divergence of every model from it is measured too, on sampled answers to the first task.
    `average` names the tasks whose mean is a row's score, such as those that are columns of the paper's table; the
    others stand beside. Left out, it is the mean of all.
    """

    family: ClassVar[str] = "evaluate"
    generates: ClassVar[bool] = True

    title: str
    tasks: tuple[Task, ...]
    entries: tuple[Entry, ...]
    reference: str | None = None
    kl_prompts: int = 256
    published: tuple[Published, ...] = ()
    compute: Compute = Compute()
    average: tuple[str, ...] = fields.later(())

    def __post_init__(self):
        fields.check_types(self, self.name)
        methods = [entry.method for entry in self.entries]
        for entry in self.entries:
            if entry.over is not None and entry.over not in methods:
                raise UserError(f"stage {self.name}: {entry.method} is compared with {entry.over!r}, which is no entry")
            if not entry.stages:
                raise UserError(f"stage {self.name}: {entry.method} names no stage")
        for name in self.average:
            if name not in [task.name for task in self.tasks]:
                raise UserError(f"stage {self.name}: average names {name!r}, which is no task of it")
        for task in self.tasks:
            if [other.name for other in self.tasks].count(task.name) > 1:
                raise UserError(f"stage {self.name}: two tasks are called {task.name!r}")
            if task.data.kind != "prompts":
                raise UserError(f"stage {self.name}: task {task.name} must have prompts (kind 'prompts')")

    @property
    def models(self) -> dict[str, str | None]:
        return {"model": self.entries[0].stages[0]}

    @property
    def work(self) -> str:
        return ", ".join(task.name for task in self.tasks)

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of the tasks whose mean is a row's score."""
        return self.average or tuple(task.name for task in self.tasks)

    @property
    def needs(self) -> tuple[str, ...]:
        models = [name for entry in self.entries for name in entry.stages] + [task.best_of for task in self.tasks]
        return tuple(dict.fromkeys([*stages_of_data(t.data for t in self.tasks), *models_of(*models, self.reference)]))
