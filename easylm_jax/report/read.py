"""What a run left in its folders, read back: configuration, metrics, samples and tables of every stage.

    runs/<recipe>/<stage>/   config.json  metrics.jsonl  done.json  samples/<step>.jsonl  table.json  samples.jsonl

A run that is not finished is read as far as it is. A file that cannot be read is an error that names it, but for a
last line that a kill cut short.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from easylm_jax.runtime.monitor import read_metrics
from models.errors import UserError

RL_KINDS = ("PPO", "GRPO", "OnlineDPO")
SUPERVISED_KINDS = ("Pretrain", "SFT", "RewardModel", "DPO")
# What the seconds of a step are spent on in reinforcement learning; of other stages, a step is all update.
RL_CLOCKS = {"rollout": "rollout_seconds", "score": "score_seconds", "update": "update_seconds"}
_SEED = re.compile(r"[-_](?:seed[-_]?)?\d+$")
_EXAMPLE = "give a run's folder, such as runs/quickstart"

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StageData:
    """A stage as its folder tells it. `config` are its fields; `samples` what it wrote, by step; `table` and `answers`
    what an evaluation left; `begun` (seconds since 1970) when it was last started."""

    name: str
    kind: str
    folder: Path
    config: dict[str, Any]
    needs: tuple[str, ...]
    done: dict[str, Any] | None
    metrics: tuple[Line, ...]
    samples: dict[int, list[Line]]
    table: dict[str, Any] | None
    answers: tuple[Line, ...]
    begun: float

    @property
    def finished(self) -> bool:
        """Whether it is done. An evaluation that has just written its table is, though `done.json` comes after."""
        return self.done is not None or self.table is not None

    @property
    def step(self) -> int | None:
        """Steps taken; None for a stage without steps."""
        if self.metrics:
            return int(self.metrics[-1]["step"])
        return (self.done or {}).get("step")

    @property
    def steps(self) -> int | None:
        """Steps in all, as far as they are known: a stage that counts epochs says so only when it is done."""
        return (self.done or {}).get("step") or self.config.get("steps")

    @property
    def values(self) -> dict[str, Any]:
        """The newest value of every metric: what `done.json` says, or the last lines so far."""
        if self.done is not None and self.done.get("metrics"):
            return self.done["metrics"]
        newest: dict[str, Any] = {}
        for line in self.metrics:
            if "validation_step" in line:
                newest |= {name: value for name, value in line.items() if name.startswith("validation_")}
        return {**newest, **(self.metrics[-1] if self.metrics else {})}

    @property
    def clocks(self) -> dict[str, float]:
        """Seconds spent on each part of its steps; of rollouts that are written ahead, those that a step waited."""
        parts = RL_CLOCKS if self.kind in RL_KINDS else {"update": "seconds"}
        if self.metrics and "wait_seconds" in self.metrics[-1]:
            parts = {**parts, "rollout": "wait_seconds"}
        return {name: sum(number(line.get(key)) or 0.0 for line in self.metrics) for name, key in parts.items()}

    @property
    def seconds(self) -> float | None:
        """How long it took. `done.json` counts from the last start, so a resumed stage's steps may be more than that;
        of a stage that is not done, its steps."""
        spent = sum(self.clocks.values())
        if self.done is not None:
            return max(number(self.done.get("seconds")) or 0.0, spent)
        return spent if self.metrics else None

    def points(self, y: str, x: str = "step") -> list[tuple[float, float]]:
        """(x, y) of every line that has both as finite numbers."""
        pairs = [(number(line.get(x)), number(line.get(y))) for line in self.metrics]
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    def validations(self, y: str) -> list[Line]:
        """Lines that validated and have `y` as a finite number."""
        return [line for line in self.metrics if "validation_step" in line and number(line.get(y)) is not None]


@dataclasses.dataclass(frozen=True)
class RunData:
    """A run: its stages, each behind those that it needs. `missing` are stages that others need and that left nothing
    yet; `table` is the run's own where no stage has one."""

    folder: Path
    recipe: str
    mesh: str
    stages: tuple[StageData, ...]
    missing: tuple[str, ...]
    table: dict[str, Any] | None

    @property
    def tables(self) -> list[tuple[dict[str, Any], StageData | None]]:
        """The tables of all evaluations, with the stage each comes from."""
        own = [(stage.table, stage) for stage in self.stages if stage.table is not None]
        return own or ([(self.table, None)] if self.table is not None else [])

    @property
    def unfinished(self) -> list[StageData]:
        return [stage for stage in self.stages if not stage.finished]

    @property
    def seconds(self) -> float:
        """Time spent in all stages."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    def of_kind(self, kinds: Iterable[str]) -> list[StageData]:
        return [stage for stage in self.stages if stage.kind in kinds]

    def methods(self, stages: Sequence[StageData]) -> dict[str, list[StageData]]:
        """These stages by method, so that seeds stand together: as the tables group them, else by name but for a
        number at its end."""
        named = {name: row["method"] for table, _ in reversed(self.tables) for row in table["rows"]
                 for name in row.get("stages", ())}  # fmt: skip
        bases = [_SEED.sub("", stage.name) for stage in self.stages]
        grouped: dict[str, list[StageData]] = {}
        for stage in stages:
            base = _SEED.sub("", stage.name)
            label = named.get(stage.name) or (base if bases.count(base) > 1 else stage.name)
            grouped.setdefault(label, []).append(stage)
        return grouped


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def collect(run_folder: str | Path) -> RunData:
    """Everything that a report tells of the run in `run_folder`.

    Raises `UserError` where there is no such folder, where it holds no stage, and for a file that is damaged.
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
        return f"it is a stage's own; give the run's folder, {folder.parent}"
    inside = sorted(path.parent.parent for path in folder.glob("*/*/config.json"))
    return f"did you mean {inside[0]}?" if inside else _EXAMPLE


def _stage(folder: Path) -> StageData:
    path = folder / "config.json"
    config = _read_json(path)
    fields = config.get("stage")
    if not isinstance(fields, dict):
        raise UserError(f"{path} is damaged: it has no stage; run the stage again to write it anew")
    done = _read_json(folder / "done.json") if (folder / "done.json").is_file() else None
    kind = str((done or {}).get("kind") or fields.get("class") or fields.get("kind") or "?")
    begun = path.stat().st_mtime
    table = folder / "table.json"
    # The table of an earlier run lies there until the one that began since has its own.
    whole = table.is_file() and (done is not None or table.stat().st_mtime >= begun)
    return StageData(
        name=str(fields.get("name", folder.name)),
        kind=kind,
        folder=folder,
        config=fields,
        needs=tuple((config.get("settings") or {}).get("needs") or ()),
        done=done,
        metrics=tuple(read_metrics(folder)) if (folder / "metrics.jsonl").is_file() else (),
        samples=_samples(folder / "samples"),
        table=_table(table) if whole else None,
        answers=tuple(_read_lines(folder / "samples.jsonl")) if whole else (),
        begun=begun,
    )


def _in_order(stages: list[StageData]) -> list[StageData]:
    """Each stage behind those that it needs; the others as they were begun."""
    by_name = {stage.name: stage for stage in sorted(stages, key=lambda it: (it.begun, it.name))}
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
    """The first and the last answers that were kept, by step."""
    steps = sorted(int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdecimal())
    return {step: _read_lines(folder / f"{step}.jsonl") for step in dict.fromkeys(steps[:1] + steps[-1:])}


def _table(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    table = _read_json(path)
    rows = table.get("rows")
    whole = isinstance(rows, list) and all(isinstance(row, dict) and {"method", "score"} <= row.keys() for row in rows)
    if not whole:
        raise UserError(f"{path} is damaged: its rows need a method and a score; run the evaluation again")
    return table


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run its stage again, or delete it to go on without it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object; run its stage again")
    return value


def _read_lines(path: Path) -> list[Line]:
    """The objects of a JSONL file; a last line without its end is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for place, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:
            if place == len(lines):
                continue
            line = None
        if not isinstance(line, dict):
            raise UserError(f"{path}, line {place}, is damaged; delete that line to go on")
        found.append(line)
    return found
