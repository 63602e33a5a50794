"""Evaluation of models on held-out prompts: tasks, the rows of a table, and the stage that computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from easylm_jax.config import fields
from easylm_jax.config.base import ModelUse, Stage, models_of, stages_of, stages_of_data
from easylm_jax.config.bounds import Count, NonNegative
from easylm_jax.config.data import DataSpec, Source
from easylm_jax.config.reward import Sampling
from models.config import Compute
from models.errors import UserError

# Benches of preference pairs (`evaluate/preferences`), which `easylm eval --suite` runs too, and how models are asked.
PREFERENCE_BENCHES = ("m_rewardbench", "rewardbench", "rewardbench2", "pairs")
MODERATION_SUITE = "wildguard"  # the benchmarks of moderators (`evaluate/moderation_command.py`)
PREFERENCE_ASKS = ("pair", "ratings", "logits")


@dataclasses.dataclass(frozen=True)
class Task:
    """Held-out prompts and the verifier (a reward expression) that scores responses to them."""

    name: str
    """The name of the column."""
    data: DataSpec
    """The prompts (kind "prompts")."""
    verifier: str
    """The reward expression that scores a response (docs/rlvr.md)."""
    sampling: Sampling
    """How responses are sampled; temperature 0 is greedy."""
    samples: Count = 1
    """Responses to each prompt. With several, the score is their mean, and pass@samples (the best of them) is another
    column."""
    limit: Count | None = None
    """Uses only the first prompts of the data, of which those that are too long are left out; None all."""
    best_of: str | None = None
    """A reward model that selects one of several responses; None takes their mean."""
    also: tuple[tuple[str, str], ...] = ()
    """Further columns, as (name, expression over the same responses)."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A benchmark by name, and what is asked otherwise than it says (`easylm eval --list`)."""

    benchmark: str
    """Its name, with the setting where it has several: "arc_challenge" or "arc_challenge:mc"."""
    file: str | None = None
    """A file with the documents, in the schema of the published set; None for the published set."""
    shots: int | None = None
    """Solved examples before each question; None for the benchmark's number."""
    shots_from: str | None = None
    """A file with the solved examples; None for the published ones."""
    limit: Count | None = None
    """Asks the first documents only."""
    template: str | None = None
    """The chat template of chat prompts; None for the model's own, "none" for plain text."""
    max_new_tokens: Count | None = None
    """The most tokens of a response; None for the benchmark's number."""
    temperature: NonNegative | None = None
    """Divides the logits; None for the benchmark's."""
    samples: Count | None = None
    """Responses to each prompt; None for the benchmark's number."""
    stop_strings: tuple[str, ...] = ()
    """Further texts that end a response."""
    cut_prompts: bool = fields.added_later(False)
    """Drops the beginning of a prompt that leaves no room for the response in the model's context, as
    lm-evaluation-harness does, and counts the documents; False is an error. Contexts of options are always cut."""
    max_crops: Count | None = fields.added_later(None)
    """The most crops of a picture; None for the benchmark's number."""


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """Benchmarks that a model is asked while it is trained; their scores stand in the metrics as `benchmark/<name>`."""

    asks: tuple[Ask, ...]
    """The benchmarks and their settings."""
    every: Count = 1000
    """Steps between two evaluations; the last step is always evaluated."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a table: a method, its runs, and the method that it is compared with."""

    method: str
    """The name of the row."""
    stages: tuple[str, ...]
    """The models of the row, one for each seed: stages, `hf:<name>` or `run:<folder>`."""
    over: str | None = None
    """The method of another row, which this one is compared with; None for none."""


def check_entries(stage: str, entries: Sequence[Entry]) -> None:
    """Raises `UserError` for a row of a stage's table without models, or compared with a row that is not there."""
    methods = [entry.method for entry in entries]
    for entry in entries:
        if entry.over is not None and entry.over not in methods:
            raise UserError(f"stage {stage}: {entry.method} is compared with {entry.over!r}, which is no entry")
        if not entry.stages:
            raise UserError(f"stage {stage}: {entry.method} names no stage")


@dataclasses.dataclass(frozen=True)
class Published:
    """A published number, which the report prints beside ours."""

    method: str
    """The row that the number stands beside."""
    column: str
    """The column that it stands in."""
    value: float
    """The number, in the paper's unit."""
    source: str
    """The paper and its table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Evaluates models on held-out prompts and writes `table.json` in its own folder and in the recipe's."""

    family: ClassVar[str] = "evaluate"
    generates: ClassVar[bool] = True

    title: str
    """The heading of the table."""
    tasks: tuple[Task, ...]
    """The columns: prompts and what scores responses to them."""
    entries: tuple[Entry, ...]
    """The rows: methods and their models."""
    reference: str | None = None
    """The model that the KL divergence of every other is measured from; None measures none."""
    kl_prompts: Count = 256
    """Prompts of the first task to which responses are sampled for the KL divergence."""
    published: tuple[Published, ...] = ()
    """Published numbers, which the report prints beside ours."""
    compute: Compute = Compute()
    """How the models are computed."""
    benchmarks: tuple[Ask, ...] = fields.added_later(())
    """Further columns: benchmarks by name."""
    judge: str | None = fields.added_later(None)
    """Who judges responses where a benchmark needs it: a stage, `hf:<name>`, `run:<folder>`, a server of chat
    completions as `https://host/v1#model`, or an encoder classifier as `hf-classifier:<name>`."""
    average: tuple[str, ...] = fields.added_later(())
    """The tasks whose mean is the score of a row; empty for all."""
    suite: str | None = fields.added_later(None)
    """The suite that `benchmarks` are of (`easylm eval --list`): its columns stand in the table, each as the paper
    combines its benchmarks, and the score is their mean. None makes each benchmark a column."""

    def __post_init__(self):
        super().__post_init__()
        if not ((self.tasks or self.benchmarks) and self.entries):
            raise UserError(f"stage {self.name}: give at least one task and one entry")
        if self.reference is not None and not self.tasks:
            raise UserError(f"stage {self.name}: the KL divergence is measured on the prompts of a task; give one")
        check_entries(self.name, self.entries)
        for name in self.average:
            if name not in self.columns:
                raise UserError(f"stage {self.name}: average names {name!r}, which is no task of it")
        if self.suite is not None and (self.tasks or self.average or not self.benchmarks):
            raise UserError(f"stage {self.name}: a suite's table is of its benchmarks alone, without tasks or average")
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise UserError(f"stage {self.name}: two tasks are called {name!r}")
        for task in self.tasks:
            if task.data.kind != "prompts":
                raise UserError(f"stage {self.name}: task {task.name} must have prompts (kind 'prompts')")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns."""
        return (*(task.name for task in self.tasks), *(ask.benchmark for ask in self.benchmarks))

    @property
    def models(self) -> dict[str, str | None]:
        return {"model": self.entries[0].stages[0]}

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        data = tuple(task.data for task in self.tasks)
        longest = max(self.tasks, key=lambda task: task.sampling.max_new_tokens, default=None)
        least = 1 if longest is None else longest.sampling.least_context
        asked = (data, least, "" if longest is None else f"max_new_tokens of task {longest.name}")
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
        return ", ".join(self.columns)

    @property
    def compiles(self) -> bool:
        return bool(self.tasks)  # the prompts of benchmarks are known only when they are read

    @property
    def judging_model(self) -> str | None:
        """The judge, if it is a model of this project."""
        elsewhere = self.judge is None or self.judge.startswith(("http://", "https://", "hf-classifier:"))
        return None if elsewhere else self.judge

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of the tasks whose mean is a row's score."""
        return self.average or self.columns

    @property
    def needs(self) -> tuple[str, ...]:
        models = [name for entry in self.entries for name in entry.stages] + [task.best_of for task in self.tasks]
        used = models_of(*models, self.reference, self.judging_model)
        return tuple(dict.fromkeys([*stages_of_data(t.data for t in self.tasks), *used]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceTable(Stage):
    """Scores reward models on preference pairs: how often the chosen answer is above the rejected one, and by how much.

    Writes `items.jsonl` (the scores of every pair) and `table.json`.
    """

    family: ClassVar[str] = "evaluate"

    title: str
    """The heading of the table."""
    reward_models: tuple[str, ...]
    """The reward models: stages, `hf:<name>` or `run:<folder>`."""
    pairs: Source
    """Rows with `chosen` and `rejected`."""

    def __post_init__(self):
        super().__post_init__()
        if not self.reward_models:
            raise UserError(f"stage {self.name}: give at least one reward model")

    @property
    def compiles(self) -> bool:
        return False

    @property
    def models(self) -> dict[str, str | None]:
        return {"model": self.reward_models[0]}

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        return tuple(ModelUse("reward_models", name, "reward") for name in self.reward_models)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*stages_of((self.pairs,)), *models_of(*self.reward_models)]))
