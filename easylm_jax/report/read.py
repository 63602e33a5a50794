"""Reads the folders of a run: configuration, metrics, samples and tables of every stage.

    runs/<recipe>/<stage>/   config.json  metrics.jsonl  done.json  samples/<step>.jsonl  table.json  samples.jsonl

An unfinished run is read as far as it is. A file that cannot be read is an error that names it, except for an
incomplete last line left by a killed process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from easylm_jax.report import schema, settings
from easylm_jax.runtime.monitor import read_metrics
from models import reading
from models.errors import UserError

# The family of each kind of stage, for older runs, whose files name only the kind.
FAMILIES = {
    "MakeData": "data", "Tokenizer": "data",
    "Pretrain": "train", "SFT": "train", "RewardModel": "train", "DPO": "train",
    "PPO": "rl", "GRPO": "rl", "OnlineDPO": "rl",
    "BestOfN": "synthesize", "MajorityVote": "synthesize", "Dialogues": "synthesize",
    "Revisions": "synthesize", "Topics": "synthesize", "SelectPrompts": "synthesize", "Respond": "synthesize",
    "Rate": "synthesize", "Binarise": "synthesize", "PersonaPrompts": "synthesize", "SelfInstruct": "synthesize",
    "Evaluate": "evaluate", "Losses": "evaluate", "PreferenceTable": "evaluate",
    "Average": "checkpoint", "Upcycle": "checkpoint", "AddVision": "checkpoint",
}  # fmt: skip
# The metrics with the seconds of each part of an RL step. A step of other stages has only the update.
RL_CLOCKS = {"rollout": "rollout_seconds", "score": "score_seconds", "update": "update_seconds"}
MOST_PROMPTS = 8  # of each task of an evaluation
_MEND = "run its stage again, or delete it to continue without it"
_EXAMPLE = "give a run's folder, such as runs/quickstart"

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StageData:
    """A stage as read from its folder.

    Attributes:
        kind: name of its class, such as "PPO".
        family: "data", "train", "rl", "synthesize" or "evaluate"; "" for an unknown kind of an older run.
        config: its fields.
        settings: what decides its result: its fields and, under `needs`, the settings of the stages it depends on.
        needs: names of the stages it depends on.
        done: content of `done.json`; None if it is not finished.
        samples: sampled responses by step.
        table, answers: the table of an evaluation, and those of its responses that a report shows.
        losses: the table of a comparison of held-out losses.
        begun: when it was last started, in seconds since 1970.
    """

    name: str
    kind: str
    family: str
    folder: Path
    config: dict[str, Any]
    settings: dict[str, Any]
    needs: tuple[str, ...]
    done: dict[str, Any] | None
    metrics: tuple[Line, ...]
    samples: dict[int, list[Line]]
    table: dict[str, Any] | None
    answers: tuple[Line, ...]
    begun: float
    losses: dict[str, Any] | None = None

    @cached_property
    def signature(self) -> str:
        """A text that is equal for the seeds of one method (`settings.py`)."""
        return settings.signature(self.settings)

    @cached_property
    def held_out(self) -> dict[int, list[Line]]:
        """The responses of an RL stage to the first held-out prompts at its first and its last evaluation, by step."""
        return _samples(self.folder / "samples" / "held_out")

    @property
    def finished(self) -> bool:
        """Whether the stage is done. An evaluation is once its table is written, shortly before `done.json`."""
        return self.done is not None or self.table is not None

    @property
    def step(self) -> int | None:
        """Number of steps done; None for a stage without steps."""
        if self.metrics:
            return int(self.metrics[-1]["step"])
        return (self.done or {}).get("step")

    @property
    def steps(self) -> int | None:
        """Total number of steps; None if it is not known, as for a stage with `epochs` that is not done."""
        return (self.done or {}).get("step") or self.config.get("steps")

    @property
    def values(self) -> dict[str, Any]:
        """The newest value of every metric: from `done.json`, otherwise from the last metrics lines."""
        if self.done is not None and self.done.get("metrics"):
            return self.done["metrics"]
        newest: dict[str, Any] = {}
        for line in self.metrics:
            if "validation_step" in line:
                newest |= {name: value for name, value in line.items() if name.startswith("validation_")}
        return {**newest, **(self.metrics[-1] if self.metrics else {})}

    @cached_property
    def clocks(self) -> dict[str, float]:
        """Seconds in each part of its steps; for asynchronous rollouts, only the seconds that steps waited for them."""
        parts = RL_CLOCKS if self.family == "rl" else {"update": "seconds"}
        if self.metrics and "wait_seconds" in self.metrics[-1]:
            parts = {**parts, "rollout": "wait_seconds"}
        return {name: sum(number(line.get(key)) or 0.0 for line in self.metrics) for name, key in parts.items()}

    @property
    def seconds(self) -> float | None:
        """How long the stage took: the larger of the time in `done.json`, which may cover only the time since the last
        start, and the sum over its steps. Of an unfinished stage, the sum over its steps."""
        total = sum(self.clocks.values())
        if self.done is not None:
            return max(number(self.done.get("seconds")) or 0.0, total)
        return total if self.metrics else None

    def points(self, y: str, x: str = "step") -> list[tuple[float, float]]:
        """(x, y) of every metrics line in which both are finite numbers."""
        pairs = [(number(line.get(x)), number(line.get(y))) for line in self.metrics]
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    def validations(self, y: str) -> list[Line]:
        """Metrics lines with a validation in which `y` is a finite number."""
        return [line for line in self.metrics if "validation_step" in line and number(line.get(y)) is not None]


@dataclasses.dataclass(frozen=True)
class RunData:
    """A run: its stages, each after those it needs. `missing`: names of stages that others need and that have no folder
    yet; `table`: the table in the run's folder, used if no stage has one."""

    folder: Path
    recipe: str
    mesh: str
    stages: tuple[StageData, ...]
    missing: tuple[str, ...]
    table: dict[str, Any] | None

    @property
    def tables(self) -> list[tuple[dict[str, Any], StageData | None]]:
        """The tables of all evaluations, each with its stage."""
        found: list[tuple[dict[str, Any], StageData | None]] = []
        found += [(stage.table, stage) for stage in self.stages if stage.table is not None]
        alone = self.table is not None and self.table.get("unit") is None  # of losses there is a stage
        return found or ([(self.table, None)] if self.table is not None and alone else [])

    @property
    def unfinished(self) -> list[StageData]:
        return [stage for stage in self.stages if not stage.finished]

    @property
    def seconds(self) -> float:
        """Time spent in all stages."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    def of_family(self, family: str) -> list[StageData]:
        """The stages of a family, such as "rl"."""
        return [stage for stage in self.stages if stage.family == family]

    def methods(self, stages: Sequence[StageData]) -> dict[str, list[StageData]]:
        """Groups the stages of one method, which differ only in seeds and names. A method is called as in the tables,
        otherwise by what its stages' names have in common."""
        grouped: dict[str, list[StageData]] = {}
        for stage in stages:
            grouped.setdefault(self._labels[stage.name], []).append(stage)
        return grouped

    @cached_property
    def _labels(self) -> dict[str, str]:
        """The method of each stage."""
        rows = [row for table, _ in reversed(self.tables) for row in table["rows"]]
        row_of = {name: str(row["method"]) for row in rows for name in row.get("stages") or ()}
        groups: dict[tuple[str | None, str], list[str]] = {}
        for stage in self.stages:
            groups.setdefault((row_of.get(stage.name), stage.signature), []).append(stage.name)
        by_row = [row for row, _ in groups]  # a row may name stages of different settings; those are not one method
        names_of_others = {*row_of.values(), *(stage.name for stage in self.stages)}
        labels: dict[str, str] = {}
        for (row, _), names in groups.items():
            label = row if row is not None and by_row.count(row) == 1 else settings.common_name(names)
            taken = label != row and label in (names_of_others - set(names)) | set(labels.values())
            labels |= dict.fromkeys(names, f"{label} ({', '.join(names)})" if taken else label)
        return labels

    def mixed(self, row: dict[str, Any]) -> dict[str, list[Any]]:
        """The settings other than seeds in which the stages of a table's row differ, as of `settings.differences`."""
        stages = [stage for stage in self.stages if stage.name in (row.get("stages") or ())]
        return settings.differences([stage.settings for stage in stages]) if stages else {}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def collect(run_folder: str | Path) -> RunData:
    """Reads the run in `run_folder`.

    Raises:
        UserError: the folder does not exist, it holds no stage, or a file is damaged.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; {_EXAMPLE}")
    configured = sorted(path.parent for path in folder.glob("*/config.json"))
    if not configured:
        raise UserError(f"{folder} holds no stage (a folder with config.json); {_hint(folder)}")
    stages = _in_order([_stage(path) for path in configured])
    there = {stage.name for stage in stages}
    missing = dict.fromkeys(need for stage in stages for need in stage.needs if need not in there)
    newest = _read_json(max(stages, key=lambda stage: stage.begun).folder / "config.json")
    recipe, mesh = str(newest.get("recipe", folder.name)), str(newest.get("mesh", ""))
    return RunData(folder, recipe, mesh, tuple(stages), tuple(missing), _table(folder / "table.json"))


def _hint(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return f"it is the folder of a stage; give the run's folder, {folder.parent}"
    inside = sorted(path.parent.parent for path in folder.glob("*/*/config.json"))
    return f"did you mean {inside[0]}?" if inside else _EXAMPLE


def _stage(folder: Path) -> StageData:
    path = folder / "config.json"
    config = reading.read_json(path, schema.Config, mend=_MEND)
    fields = config.get("stage")
    found = reading.fault(schema.StageFields, fields, "stage")
    if found is not None:
        raise reading.Damaged(path, found, _MEND)
    decisive = config.get("settings")
    decisive = decisive if isinstance(decisive, dict) else fields
    done = _read_json(folder / "done.json", schema.Done) if (folder / "done.json").is_file() else None
    kind = str((done or {}).get("kind") or fields.get("class") or fields.get("kind") or "?")
    begun = path.stat().st_mtime
    table = folder / "table.json"
    # A table older than the last start belongs to an earlier run, which is now being replaced.
    current = table.is_file() and (done is not None or table.stat().st_mtime >= begun)
    return StageData(
        name=str(fields.get("name", folder.name)),
        kind=kind,
        family=str((done or {}).get("family") or config.get("family") or FAMILIES.get(kind, "")),
        folder=folder,
        config=fields,
        settings=decisive,
        needs=tuple(decisive.get("needs") or ()),
        done=done,
        metrics=tuple(read_metrics(folder)) if (folder / "metrics.jsonl").is_file() else (),
        samples=_samples(folder / "samples"),
        table=_table(table) if current else None,
        losses=_table(folder / "losses.json") if done is not None else None,
        answers=tuple(filter(_is_shown, _lines_of(folder / "samples.jsonl"))) if current else (),
        begun=begun,
    )


def _in_order(stages: list[StageData]) -> list[StageData]:
    """Sorts stages so that each comes after those it needs, otherwise by when they were started."""
    by_name = {stage.name: stage for stage in sorted(stages, key=lambda stage: (stage.begun, stage.name))}
    ordered: dict[str, StageData] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name not in by_name or name in ordered or name in above:
            return
        for need in by_name[name].needs:
            visit(need, (*above, name))
        ordered[name] = by_name[name]

    for name in by_name:
        visit(name, ())
    return list(ordered.values())


def _samples(folder: Path) -> dict[int, list[Line]]:
    """The first and the last samples of responses, by step."""
    steps = sorted(int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdecimal())
    return {step: list(filter(_is_shown, _lines_of(folder / f"{step}.jsonl")))
            for step in dict.fromkeys(steps[:1] + steps[-1:])}  # fmt: skip


def _table(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    return _read_json(path, schema.Table)


def _read_json(path: Path, kind: Any = reading.Object) -> dict[str, Any]:
    return reading.read_json(path, kind, mend=_MEND)


def _lines_of(path: Path) -> Iterator[Line]:
    """The objects of a JSONL file one by one, since the responses of an evaluation may be large."""
    if not path.is_file():
        return
    yield from reading.read_lines(path, mend="delete that line to continue", last_may_be_cut=True)


def _is_shown(answer: Line) -> bool:
    """Whether a page shows a response: of the first run of a method, to one of the first prompts, and the one that
    counts of several. Evaluations of older versions kept no other responses."""
    first = (number(answer.get("number")) or 0) < MOST_PROMPTS and not answer.get("run")
    return first and bool(answer.get("selected", answer.get("sample", 0) == 0))
