"""The types of what is read from a run's folder (`models.reading`). Files may have further entries."""

from __future__ import annotations

from typing import Any, TypedDict

_Class = TypedDict("_Class", {"class": str, "kind": str}, total=False)  # the name of a stage's class


class Settings(_Class, total=False):
    """The settings of a stage; under `needs`, those of the stages that it uses."""

    needs: dict[str, Settings] | None


class Published(TypedDict):
    """A published number of an evaluation's configuration."""

    method: str
    column: str
    value: float


class StageFields(_Class, total=False):
    """The fields of a stage."""

    name: str
    steps: int | None
    published: list[Published]
    reward: dict[str, Any] | None


class Config(TypedDict, total=False):
    """`config.json`."""

    recipe: str
    mesh: str
    family: str
    settings: Settings | None


class Done(TypedDict, total=False):
    """`done.json`."""

    kind: str
    family: str
    step: int
    seconds: float
    checkpoint: str
    files: list[str]
    metrics: dict[str, Any]


class Score(TypedDict, total=False):
    """A number with its standard error."""

    score: float | None
    stderr: float | None


class Gain(TypedDict, total=False):
    """The difference of a method from another one."""

    method: str
    difference: float | None
    stderr: float | None


class _Scored(TypedDict):
    method: str
    score: float | None


class Row(_Scored, total=False):
    """A row of a table: one method."""

    stages: list[str] | None
    stderr: float | None
    interval: tuple[float, float] | None
    n: int | None
    seeds: int | None
    scores: dict[str, Score] | None
    kl: float | None
    kl_stderr: float | None
    length: float | None
    ended: float | None
    over: Gain | None
    published: dict[str, float | None] | None


class _Named(TypedDict):
    name: str


class Task(_Named, total=False):
    """A task of an evaluation."""

    prompts: int | None
    samples: int | None
    metric: str | None


class _Rows(TypedDict):
    rows: list[Row]


class Table(_Rows, total=False):
    """`table.json`."""

    title: str | None
    unit: str | None
    recipe: str | None
    stage: str | None
    tasks: list[Task]
    average: list[str] | None
    seconds: float | None
