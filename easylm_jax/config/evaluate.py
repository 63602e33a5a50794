"""Evaluation of models on held-out prompts: tasks, the rows of a table, and the stage that computes it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from easylm_jax.config import fields
from easylm_jax.config.base import ModelUse, Stage, models_of, stages_of_data
from easylm_jax.config.bounds import Count
from easylm_jax.config.data import DataSpec
from easylm_jax.config.reward import Sampling
from models.config import Compute
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """Held-out prompts and the verifier (a reward expression) that scores responses to them.

    `limit` uses only the first prompts. `also` are further columns, as (name, expression over the same responses).
    With `samples` > 1, the score of a prompt is the mean over its responses, and pass@samples (the best of them) is
    another column; `best_of`, a reward model, selects one of them instead.
    """

    name: str
    data: DataSpec
    verifier: str
    sampling: Sampling
    samples: Count = 1
    limit: Count | None = None
    best_of: str | None = None
    also: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a table: a method, its runs (stages, or `hf:` and `run:` models; one for each seed), and its baseline.

    `over` is the method of another row, which this one is compared with.
    """

    method: str
    stages: tuple[str, ...]
    over: str | None = None


@dataclasses.dataclass(frozen=True)
class Published:
    """A published number in the paper's unit, which the report prints beside ours. `source` cites the paper."""

    method: str
    column: str
    value: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Evaluates models on held-out prompts and writes `table.json` in its own folder and in the recipe's.

    With `reference`, the KL divergence of every model from it is measured too, on responses sampled to `kl_prompts`
    prompts of the first task. `average` names the tasks whose mean is the score of a row, such as the columns of the
    paper's table; by default, all tasks.
    """

    family: ClassVar[str] = "evaluate"
    generates: ClassVar[bool] = True

    title: str
    tasks: tuple[Task, ...]
    entries: tuple[Entry, ...]
    reference: str | None = None
    kl_prompts: Count = 256
    published: tuple[Published, ...] = ()
    compute: Compute = Compute()
    average: tuple[str, ...] = fields.added_later(())

    def __post_init__(self):
        super().__post_init__()
        if not (self.tasks and self.entries):
            raise UserError(f"stage {self.name}: give at least one task and one entry")
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
    def model_uses(self) -> tuple[ModelUse, ...]:
        data = tuple(task.data for task in self.tasks)
        longest = max(self.tasks, key=lambda task: task.sampling.max_new_tokens)
        asked = (data, longest.sampling.least_context, f"max_new_tokens of task {longest.name}")
        names = dict.fromkeys(name for entry in self.entries for name in entry.stages)
        uses = [ModelUse("entries", name, "language", *asked) for name in names]
        if self.reference is not None:
            uses.append(ModelUse("reference", self.reference, "language", *asked))
        for task in self.tasks:
            if task.best_of is not None:
                field = f"best_of of task {task.name}"
                own = (task.sampling.least_context, f"max_new_tokens of task {task.name}")
                uses.append(ModelUse(field, task.best_of, "reward", (task.data,), *own))
        return tuple(uses)

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
