"""Several runs side by side: which of their methods belong together, their tables, and how their settings differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from easylm_jax.report import settings
from easylm_jax.report.layout import Column, Table, as_markdown, as_text, escaped
from easylm_jax.report.numbers import NONE, duration
from easylm_jax.report.read import RunData, StageData, collect
from easylm_jax.report.stage_tables import tables_of
from easylm_jax.report.tables import Result, side_by_side, unfinished
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Line:
    """A method, with its stages (seeds) in each run that has it, by the run's name."""

    method: str
    stages: dict[str, list[StageData]]

    @property
    def kind(self) -> str:
        return self.first.kind

    @property
    def first(self) -> StageData:
        return next(iter(self.stages.values()))[0]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs: its value in each, None where it is not set."""

    method: str
    setting: str
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs by name. A run is called by its folder, with as much of its path as tells it from the others."""

    runs: dict[str, RunData]

    @cached_property
    def lines(self) -> list[Line]:
        """The methods of all runs. Two belong together if they are of one kind and have the same name or stages of the
        same name, otherwise if their settings are equal except for names and seeds."""
        lines: list[Line] = []
        for name, run in self.runs.items():
            methods = run.methods(run.stages)
            rest = []
            for method, stages in methods.items():
                if found := next((line for line in lines if _same_name(line, name, method, stages)), None):
                    found.stages[name] = stages
                else:
                    rest.append((method, stages))
            for method, stages in rest:
                if found := next((line for line in lines if _same_settings(line, name, stages)), None):
                    found.stages[name] = stages
                else:
                    lines.append(Line(method, {name: stages}))
        return lines

    def of_family(self, family: str) -> list[Line]:
        """The methods of a family, such as "rl"."""
        return [line for line in self.lines if line.first.family == family]

    @cached_property
    def stages(self) -> list[tuple[str, StageData]]:
        """All stages, each with the name of its run, those that belong together one after the other."""
        return [(name, stage) for line in self.lines for name, stages in line.stages.items() for stage in stages]

    @cached_property
    def results(self) -> list[list[Result]]:
        """The tables of the evaluations of the runs; those of one evaluation together."""
        groups: dict[str, list[Result]] = {}
        lines = {(name, stage.name): i for i, line in enumerate(self.lines)
                 for name, stages in line.stages.items() for stage in stages}  # fmt: skip
        for name, run in self.runs.items():
            for table, stage in run.tables:
                key = f"line {lines[name, stage.name]}" if stage is not None else str(table.get("stage"))
                groups.setdefault(key, []).append(Result(name, table, stage, run))
        return list(groups.values())

    @cached_property
    def differences(self) -> list[Difference]:
        """How the settings of the runs differ: mesh, seeds, and fields of each method that several runs have."""
        found = [Difference("", "mesh", {name: run.mesh for name, run in self.runs.items()})]
        for line in self.lines:
            if len(line.stages) < 2:
                continue
            seeds = {name: sorted(stage.config.get("seed", 0) for stage in own) for name, own in line.stages.items()}
            listed = {name: ", ".join(map(str, own)) for name, own in seeds.items()}
            found.append(Difference(line.method, "seed", listed))
            first = [own[0].settings for own in line.stages.values()]
            for setting, values in settings.differences(first, needs=False).items():
                found.append(Difference(line.method, setting, dict(zip(line.stages, values, strict=True))))
        return [one for one in found if len({str(value) for value in one.values.values()}) > 1]

    @property
    def alone(self) -> dict[str, list[str]]:
        """The methods that only some of the runs have: names of the runs, in one text → methods."""
        found: dict[str, list[str]] = {}
        for line in self.lines:
            if len(line.stages) < len(self.runs):
                found.setdefault(", ".join(line.stages), []).append(line.method)
        return found


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Reads the runs in these folders.

    Raises:
        UserError: a folder is given twice, or is no run that can be read.
    """
    paths = [Path(folder).resolve() for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"the run {folder} is given twice; name each run once")
    runs = [collect(folder) for folder in folders]
    return Comparison(dict(zip(_names(paths), runs, strict=True)))


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names of different folders: without what all have in common at the end, as long as needed to differ."""
    parts = [path.parts for path in paths]
    while len({own[-1] for own in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [own[:-1] for own in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _same_name(line: Line, run: str, method: str, stages: Sequence[StageData]) -> bool:
    names = {stage.name for own in line.stages.values() for stage in own}
    known = method == line.method or any(stage.name in names for stage in stages)
    return run not in line.stages and line.kind == stages[0].kind and known


def _same_settings(line: Line, run: str, stages: Sequence[StageData]) -> bool:
    return run not in line.stages and line.first.signature == stages[0].signature


# Tables


def all_tables(comparison: Comparison) -> list[Table]:
    """The runs, their results, how their settings differ, and the tables of the stages."""
    results = [side_by_side(group) for group in comparison.results]
    return [runs_table(comparison), *results, settings_table(comparison), *stage_tables(comparison)]


def text(comparison: Comparison) -> str:
    """All tables for a terminal; the results last, where a terminal is read first."""
    results = [side_by_side(group) for group in comparison.results]
    above = [runs_table(comparison), *stage_tables(comparison), settings_table(comparison)]
    blocks = [f"Comparison of {', '.join(comparison.runs)}", *_unfinished(comparison)]
    return "\n\n".join([*blocks, *map(as_text, [*above, *results])]) + "\n"


def markdown(comparison: Comparison) -> str:
    """All tables as Markdown."""
    blocks = [escaped(f"Comparison of {', '.join(comparison.runs)}"), *map(as_markdown, all_tables(comparison))]
    return "# " + "\n\n".join([*blocks, *_unfinished(comparison)]) + "\n"


def _unfinished(comparison: Comparison) -> list[str]:
    return [f"{name}: {line}" for name, run in comparison.runs.items() for line in unfinished(run)]


def runs_table(comparison: Comparison) -> Table:
    """Where each run lies, and how far it is."""
    columns = (Column("run", words=True), Column("recipe", words=True), Column("stages done"), Column("time"),
               Column("folder", words=True))  # fmt: skip
    rows = []
    for name, run in comparison.runs.items():
        done = sum(stage.finished for stage in run.stages)
        total = len(run.stages) + len(run.missing)
        rows.append((name, run.recipe, f"{done} of {total}", duration(run.seconds), str(run.folder)))
    return Table("Runs", columns, tuple(rows))


def settings_table(comparison: Comparison) -> Table:
    """A row for each setting that differs, with a column for each run."""
    names = list(comparison.runs)
    columns = [Column(name, words=True) for name in ("method", "setting", *names)]
    rows = [
        (one.method or "run", one.setting, *("" if name not in one.values else _value(one.values[name])
                                             for name in names))
        for one in comparison.differences
    ]  # fmt: skip
    notes = [f"Only in {runs}: {', '.join(methods)}." for runs, methods in comparison.alone.items()]
    if not rows:
        notes.insert(0, "The methods that all runs have were run with the same settings.")
    return Table("Settings that differ", tuple(columns), tuple(rows), tuple(notes))


def _value(value: Any) -> str:
    return NONE if value is None else str(value)


def stage_tables(comparison: Comparison) -> list[Table]:
    """The tables of all stages, with a column for the run."""
    missing = [(name, stage) for name, run in comparison.runs.items() for stage in run.missing]
    return tables_of(comparison.stages, missing)
