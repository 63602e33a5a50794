"""The tables of a run: results of its evaluations, then those of the stages; printed as text or Markdown.

Scores are kept as shares and printed in percent, as papers do; ± is one standard error everywhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from easylm_jax.report.layout import Column, Table, as_markdown, as_text, escaped
from easylm_jax.report.numbers import NONE, count, decimal, with_error
from easylm_jax.report.read import RunData, StageData, number
from easylm_jax.report.stage_tables import stage_tables


def all_tables(run: RunData) -> list[Table]:
    """The ablation tables, then those of the stages."""
    return [*ablations(run), *stage_tables(run)]


def text(run: RunData) -> str:
    """All tables for a terminal, with what is not done; the results last, where a terminal is read first."""
    tables = [*stage_tables(run), *ablations(run)]
    blocks = [f"{run.recipe}: {run.folder}", *unfinished(run), *map(as_text, tables)]
    return "\n\n".join(blocks) + "\n"


def markdown(run: RunData) -> str:
    """All tables as Markdown, with what is not done."""
    blocks = [f"# {escaped(run.recipe)}", *map(as_markdown, all_tables(run)), *unfinished(run)]
    return "\n\n".join(blocks) + "\n"


# The ablation table


def ablations(run: RunData) -> list[Table]:
    """One table for each evaluation: methods in rows; ours, then the paper's columns where it has any."""
    losses = [loss_table(stage.losses) for stage in run.stages if stage.losses is not None]
    return [*(ablation(table, stage, run) for table, stage in run.tables), *losses]


def loss_table(table: dict[str, Any]) -> Table:
    """A `losses.json`: the loss of each method, on each set where there are several, and differences."""
    unit = str(table.get("unit") or "")
    sets = _tasks(table["rows"])
    columns = [Column("method", words=True), Column("loss", unit), *(Column(name, unit) for name in sets)]
    rows = []
    for row in table["rows"]:
        cells = [row, *((row.get("scores") or {}).get(name, {}) for name in sets)]
        over = row.get("over") or {}
        apart = with_error(over.get("difference"), over.get("stderr"), 1, 4, sign=True)
        losses = [with_error(cell.get("score"), cell.get("stderr"), 1, 4) for cell in cells]
        rows.append((str(row["method"]), *losses, f"{apart} ({over['method']})" if over else NONE))
    notes = ("± is one standard error over rows. Differences are taken row by row; below 0 is better.",)
    title = str(table.get("title") or "Held-out losses")
    return Table(title, (*columns, Column("difference", unit)), tuple(rows), notes)


def ablation(table: dict[str, Any], stage: StageData | None = None, run: RunData | None = None) -> Table:
    """A `table.json` in the shape of a paper's table; `stage` is asked where its published numbers come from, `run`
    whether the stages of a row are seeds of one method."""
    return side_by_side([Result("", table, stage, run)])


@dataclasses.dataclass(frozen=True)
class Result:
    """A `table.json` with the name of its run ("" if there is only one), its evaluation and its run."""

    name: str
    table: dict[str, Any]
    stage: StageData | None = None
    run: RunData | None = None

    def mixed(self, row: dict[str, Any]) -> dict[str, list[Any]]:
        """The settings in which the stages of a row differ; none if they are seeds of one method."""
        return self.run.mixed(row) if self.run is not None else {}


def side_by_side(results: Sequence[Result]) -> Table:
    """Tables of one evaluation in several runs as one, with a row for each method and run; or the table of a single
    run."""
    first, several = results[0], len(results) > 1
    methods = dict.fromkeys(row["method"] for result in results for row in result.table["rows"])
    rows = [(result, row) for method in methods for result in results for row in result.table["rows"]
            if row["method"] == method]  # fmt: skip
    tasks = _tasks([row for _, row in rows])
    alone = _published_alone([row for _, row in rows], [result.stage for result in results])
    paper = list(dict.fromkeys(name for row in (*(row for _, row in rows), *alone)
                              for name in row.get("published") or {}))  # fmt: skip
    ours = [Column("score", "%"), Column("95 % interval", "%")]
    ours += [Column(task, "%") for task in tasks]
    bases = {row["over"]["method"] for _, row in rows if row.get("over")}
    over = (f"over {bases.pop()}" if len(bases) == 1 else "over") if bases else ""
    ours += [Column(over, "points")] if over else []
    ours += [Column(f"over {first.name}", "points")] if several else []
    more = [Column("KL", "nats"), Column("length", "tokens"), Column("ended", "%"), Column("seeds")]
    columns = [*ours, *(Column(name, group="paper") for name in paper), *more]
    if paper:
        named = {**dict.fromkeys(ours, "ours"), **dict.fromkeys(more, "also ours")}
        columns = [dataclasses.replace(column, group=named.get(column, column.group)) for column in columns]
    heads = [Column("method", words=True), Column("run", words=True)][: 1 + several]
    cells = [
        (str(row["method"]), result.name, *_ours(row, tasks, over), *_gain(result, row, first)[:several],
         *(_published(row, name) for name in paper), *_more(row, bool(result.mixed(row))))
        for result, row in rows
    ]  # fmt: skip
    cells += [
        (row["method"], NONE, *[NONE] * len(ours), *(_published(row, name) for name in paper), *[NONE] * len(more))
        for row in alone
    ]
    if not several:
        cells = [(row[0], *row[2:]) for row in cells]
    return Table(str(first.table.get("title") or "Results"), (*heads, *columns), tuple(cells),
                 tuple(_all_notes(results, bool(paper))), _findings(results))  # fmt: skip


def _gain(result: Result, row: dict[str, Any], first: Result) -> list[str]:
    """The difference of a row's score from the same method in the first run, where both were asked the same."""
    own = next((other for other in first.table["rows"] if other["method"] == row["method"]), None)
    if result is first or own is None or result.table.get("tasks") != first.table.get("tasks"):
        return [NONE]
    scores, errors = (number(row["score"]), number(own["score"])), [number(one.get("stderr")) for one in (row, own)]
    if scores[0] is None or scores[1] is None:
        return [NONE]
    error = None if None in errors else math.hypot(*(e or 0.0 for e in errors))
    return [with_error(scores[0] - scores[1], error, 100, 1, sign=True)]


def _all_notes(results: Sequence[Result], paper: bool) -> list[str]:
    """The notes of all tables; one that does not hold for all has the name of its run before it."""
    each = [[*_notes(result.table, result.stage, paper), *_mixed_notes(result)] for result in results]
    common = [note for note in each[0] if all(note in notes for notes in each)]
    apart = [f"{result.name}: {note}" for result, notes in zip(results, each, strict=True)
             for note in notes if note not in common]  # fmt: skip
    if len(results) > 1:
        apart.append(f"Differences from {results[0].name} treat the prompts of both runs as independent.")
    return [*common, *apart]


def _findings(results: Sequence[Result]) -> str:
    if len(results) == 1:
        return finding(results[0].table)
    found = [(result.name, finding(result.table)) for result in results]
    return " ".join(f"{name}: {sentence}" for name, sentence in found if sentence)


def finding(table: dict[str, Any]) -> str:
    """One sentence on the differences in a `table.json`: which are more than two standard errors. "" without any."""
    compared: dict[str, list[tuple[str, float, bool]]] = {}  # base: (method, points, whether it is more)
    for row in table["rows"]:
        over = row.get("over") or {}
        apart, error = number(over.get("difference")), number(over.get("stderr"))
        if apart is not None and error is not None:
            known = abs(apart) > 2 * error
            compared.setdefault(str(over["method"]), []).append((str(row["method"]), 100 * apart, known))
    parts = [part for base, methods in compared.items() for part in _found(base, methods)]
    text = "; ".join(parts)
    return (f"T{text[1:]}" if text.startswith("the difference") else text) + "." * bool(parts)


def _found(base: str, methods: Sequence[tuple[str, float, bool]]) -> list[str]:
    """What is said of the methods that are compared with one base."""
    parts = []
    for one, several, sign in (("beats", "beat", 1), ("falls behind", "fall behind", -1)):
        those = [(name, abs(points)) for name, points, known in methods if known and points * sign > 0]
        if those:
            names, points = listed([name for name, _ in those]), listed([decimal(x, 1, 1) for _, x in those])
            verb, errors = (one, "") if len(those) == 1 else (several, "each ")
            parts.append(f"{names} {verb} {base} by {points} points ({errors}more than two standard errors)")
    unknown = [(name, points) for name, points, known in methods if not known]
    if unknown:
        names = listed([name for name, _ in unknown])
        points = listed([decimal(x, 1, 1, sign=True) for _, x in unknown])
        what = "the difference" if len(unknown) == 1 else "the differences"
        verb = "is" if len(unknown) == 1 else "are"
        parts.append(f"{what} of {names} from {base}, {points} points, {verb} within two standard errors")
    return parts


def listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _published_alone(rows: Sequence[dict[str, Any]], stages: Sequence[StageData | None]) -> list[dict[str, Any]]:
    """Methods of the paper's table that no run has a model of, such as the base model."""
    ours = {row["method"] for row in rows}
    alone: dict[str, dict[str, Any]] = {}
    for cited in (cited for stage in stages if stage for cited in stage.config.get("published", ())):
        if cited["method"] not in ours:
            row = alone.setdefault(cited["method"], {"method": str(cited["method"]), "published": {}})
            row["published"][cited["column"]] = cited["value"]
    return list(alone.values())


def _tasks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the tasks, where there are several (a single one is the score itself)."""
    tasks = list(dict.fromkeys(name for row in rows for name in row.get("scores") or {}))
    return tasks if len(tasks) > 1 else []


def _ours(row: dict[str, Any], tasks: Sequence[str], heading: str) -> list[str]:
    low, high = row.get("interval") or (None, None)
    cells = [with_error(row["score"], row.get("stderr"), 100, 1)]
    cells.append(NONE if number(low) is None else f"{decimal(low, 100, 1)} to {decimal(high, 100, 1)}")
    each = row.get("scores") or {}
    cells += [with_error(each.get(task, {}).get("score"), each.get(task, {}).get("stderr"), 100, 1) for task in tasks]
    if heading:
        over = row.get("over")
        cells.append(with_error(over["difference"], over["stderr"], 100, 1, sign=True) if over else NONE)
        if over and heading == "over":
            cells[-1] += f" ({over['method']})"
    return cells


def _more(row: dict[str, Any], mixed: bool) -> list[str]:
    divergence = with_error(row.get("kl"), row.get("kl_stderr"), 1, 2)
    seeds = f"{count(row.get('seeds'))} settings" if mixed else count(row.get("seeds"))
    return [divergence, decimal(row.get("length"), 1, 1), decimal(row.get("ended"), 100, 1), seeds]


def _mixed_notes(result: Result) -> list[str]:
    """What to know of rows whose stages are no seeds of one method."""
    notes = []
    for row in result.table["rows"]:
        if differing := list(result.mixed(row)):
            rest = f" and {len(differing) - 3} more settings" if len(differing) > 3 else ""
            stages = listed(row["stages"])
            notes.append(f"{row['method']} is the mean of {stages}, which differ in {listed(differing[:3])}{rest}.")
    return notes


def _published(row: dict[str, Any], column: str) -> str:
    return decimal((row.get("published") or {}).get(column), 1, 1)


def _notes(table: dict[str, Any], stage: StageData | None, paper: bool) -> list[str]:
    tasks = [
        f"{task['name']}, {count(task.get('prompts'))} held-out prompts"
        + (f", {task['samples']} responses each" if (task.get("samples") or 1) > 1 else "")
        + (f" ({task['metric']})" if task.get("metric") else "")
        for task in table.get("tasks", ())
    ]
    notes = [f"Tasks: {'; '.join(tasks)}."] if tasks else []
    notes += [text for task in table.get("tasks", ()) if (text := left_out(task))]
    if table.get("average"):
        notes.append(f"Score: {'the mean of ' if len(table['average']) > 1 else ''}{' and '.join(table['average'])}.")
    notes.append("± is one standard error, over prompts and, with several seeds, over seeds.")
    if any(row.get("over") for row in table["rows"]):
        notes.append("Differences are taken prompt by prompt, in percentage points.")
    if any(number(row.get("kl")) is not None for row in table["rows"]):
        notes.append("KL is to the reference, summed over a response sampled at temperature 1, in nats.")
    if paper:
        published = stage.config.get("published", ()) if stage else ()
        sources = dict.fromkeys(str(p["source"]) for p in published)
        notes.append(f"Paper: {'; '.join(sources) or 'as the recipe cites it'}, in the paper's unit.")
    return notes


def left_out(task: dict[str, Any]) -> str:
    """A sentence on the prompts that a task of a `table.json` leaves out; "" if there are none (or it does not say)."""
    reasons = {str(why): n for why, n in (task.get("left_out") or {}).items() if number(n)}
    if not reasons:
        return ""
    asked = f"the first {count(task['read'])}" if number(task.get("limit")) is not None else count(task.get("read"))
    parts = [
        f"{count(n)} {why}" + (f" (above {count(task.get('longest'))} tokens)" if why == "too long" else "")
        for why, n in reasons.items()
    ]
    return f"{task['name']} leaves out {count(sum(reasons.values()))} of {asked} prompts: {', '.join(parts)}."


def unfinished(run: RunData) -> list[str]:
    """A line on the stages that are not done, if there are any."""
    waiting = [stage.name for stage in run.unfinished] + [f"{name} (not begun)" for name in run.missing]
    return [f"Not done: {', '.join(waiting)}."] if waiting else []
