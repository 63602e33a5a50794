"""The tables of a report, as text, as Markdown and (in `html.py`) as HTML: made once, printed three ways.

Scores are kept as shares and printed in percent, as papers do; ± is one standard error everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from easylm_jax.report.numbers import NONE, count, decimal, duration, scientific, with_error
from easylm_jax.report.read import RunData, StageData, number


@dataclasses.dataclass(frozen=True)
class Column:
    """A heading, the unit below it, whether it holds words (left-aligned), and what stands above several of them."""

    name: str
    unit: str = ""
    words: bool = False
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of finished cells with notes below it, and one sentence on what it shows."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    finding: str = ""


def all_tables(run: RunData) -> list[Table]:
    """The ablation tables, then those of the stages."""
    return [*ablations(run), *stage_tables(run)]


def text(run: RunData) -> str:
    """All tables for a terminal, with what is not done; the results last, where a terminal is read first."""
    tables = [*stage_tables(run), *ablations(run)]
    blocks = [f"{run.recipe}: {run.folder}", *_unfinished(run), *map(as_text, tables)]
    return "\n\n".join(blocks) + "\n"


def markdown(run: RunData) -> str:
    """All tables as Markdown, with what is not done."""
    blocks = [f"# {_escaped(run.recipe)}", *map(as_markdown, all_tables(run)), *_unfinished(run)]
    return "\n\n".join(blocks) + "\n"


# The ablation table


def ablations(run: RunData) -> list[Table]:
    """One table for each evaluation: methods in rows; ours, then the paper's columns where it has any."""
    return [ablation(table, stage, run) for table, stage in run.tables]


def ablation(table: dict[str, Any], stage: StageData | None = None, run: RunData | None = None) -> Table:
    """A `table.json` in the shape of a paper's table; `stage` is asked where its published numbers come from, `run`
    whether the stages of a row are seeds of one method."""
    mixed = {str(row["method"]): found for row in table["rows"] if run and (found := run.mixed(row))}
    rows = table["rows"]
    tasks = _tasks(rows)
    alone = _published_alone(rows, stage)
    paper = list(dict.fromkeys(name for row in (*rows, *alone) for name in row.get("published") or {}))
    ours = [Column("score", "%"), Column("95 % interval", "%")]
    ours += [Column(task, "%") for task in tasks]
    bases = {row["over"]["method"] for row in rows if row.get("over")}
    if bases:
        ours.append(Column(f"over {bases.pop()}" if len(bases) == 1 else "over", "points"))
    more = [Column("KL", "nats"), Column("length", "tokens"), Column("ended", "%"), Column("seeds")]
    columns = [*ours, *(Column(name, group="paper") for name in paper), *more]
    if paper:
        named = {**dict.fromkeys(ours, "ours"), **dict.fromkeys(more, "also ours")}
        columns = [dataclasses.replace(column, group=named.get(column, column.group)) for column in columns]
    cells = tuple(
        (
            str(row["method"]),
            *_ours(row, tasks, ours[-1].name),
            *(_published(row, name) for name in paper),
            *_more(row, str(row["method"]) in mixed),
        )
        for row in rows
    )
    cells += tuple(
        (row["method"], *[NONE] * len(ours), *(_published(row, name) for name in paper), *[NONE] * len(more))
        for row in alone
    )
    return Table(str(table.get("title") or "Results"), (Column("method", words=True), *columns), cells,
                 (*_notes(table, stage, bool(paper)), *_mixed_notes(table, mixed)), finding(table))  # fmt: skip


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
            names, points = _listed([name for name, _ in those]), _listed([decimal(x, 1, 1) for _, x in those])
            verb, errors = (one, "") if len(those) == 1 else (several, "each ")
            parts.append(f"{names} {verb} {base} by {points} points ({errors}more than two standard errors)")
    unknown = [(name, points) for name, points, known in methods if not known]
    if unknown:
        names = _listed([name for name, _ in unknown])
        points = _listed([decimal(x, 1, 1, sign=True) for _, x in unknown])
        what = "the difference" if len(unknown) == 1 else "the differences"
        verb = "is" if len(unknown) == 1 else "are"
        parts.append(f"{what} of {names} from {base}, {points} points, {verb} within two standard errors")
    return parts


def _listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _published_alone(rows: Sequence[dict[str, Any]], stage: StageData | None) -> list[dict[str, Any]]:
    """Methods of the paper's table that this run has no model of, such as the base model."""
    ours = {row["method"] for row in rows}
    alone: dict[str, dict[str, Any]] = {}
    for cited in stage.config.get("published", ()) if stage else ():
        if cited["method"] not in ours:
            row = alone.setdefault(cited["method"], {"method": str(cited["method"]), "published": {}})
            row["published"][cited["column"]] = cited["value"]
    return list(alone.values())


def _tasks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the tasks, where there are several (a single one is the score itself)."""
    tasks = list(dict.fromkeys(name for row in rows for name in row.get("scores") or {}))
    return tasks if len(tasks) > 1 else []


def _ours(row: dict[str, Any], tasks: Sequence[str], last: str) -> list[str]:
    low, high = row.get("interval") or (None, None)
    cells = [with_error(row["score"], row.get("stderr"), 100, 1)]
    cells.append(NONE if number(low) is None else f"{decimal(low, 100, 1)} to {decimal(high, 100, 1)}")
    each = row.get("scores") or {}
    cells += [with_error(each.get(task, {}).get("score"), each.get(task, {}).get("stderr"), 100, 1) for task in tasks]
    if last.startswith("over"):
        over = row.get("over")
        cells.append(with_error(over["difference"], over["stderr"], 100, 1, sign=True) if over else NONE)
        if over and last == "over":
            cells[-1] += f" ({over['method']})"
    return cells


def _more(row: dict[str, Any], mixed: bool) -> list[str]:
    divergence = with_error(row.get("kl"), row.get("kl_stderr"), 1, 2)
    seeds = f"{count(row.get('seeds'))} settings" if mixed else count(row.get("seeds"))
    return [divergence, decimal(row.get("length"), 1, 1), decimal(row.get("ended"), 100, 1), seeds]


def _mixed_notes(table: dict[str, Any], mixed: dict[str, dict[str, list[Any]]]) -> list[str]:
    """What to know of rows whose stages are no seeds of one method."""
    stages = {str(row["method"]): row.get("stages") or () for row in table["rows"]}
    return [
        f"{method} is the mean of {_listed(stages[method])}, which differ in {_listed(list(differing)[:3])}"
        + (f" and {len(differing) - 3} more settings." if len(differing) > 3 else ".")
        for method, differing in mixed.items()
    ]


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


# The tables of the stages


def stage_tables(run: RunData) -> list[Table]:
    """All stages in one table, then what matters of those that trained, by kind."""
    tables = [_overview(run)]
    supervised, reinforced = run.of_family("train"), run.of_family("rl")
    if supervised:
        tables.append(_supervised(supervised))
    if reinforced:
        tables.append(_reinforced(reinforced))
    return tables


def _overview(run: RunData) -> Table:
    rows = [
        (stage.name, stage.kind, _start(stage), state(stage), duration(stage.seconds), _outcome(stage))
        for stage in run.stages
    ]
    rows += [(name, NONE, NONE, "not begun", NONE, NONE) for name in run.missing]
    names = ("stage", "kind", "starts from", "state")
    columns = [Column(name, words=True) for name in names] + [Column("time"), Column("result", words=True)]
    return Table("Stages", tuple(columns), tuple(rows), (f"All stages together: {duration(run.seconds)}.",))


def _start(stage: StageData) -> str:
    start = stage.config.get("init")
    if isinstance(start, str):
        return start
    return "fresh parameters" if stage.config.get("model") is not None else NONE


def state(stage: StageData) -> str:
    """How far a stage is, in words."""
    if stage.finished:
        return f"done, {stage.step:,} steps" if stage.step else "done"
    if stage.step is None:
        return "not done"
    return f"not done, step {stage.step:,}" + (f" of {stage.steps:,}" if stage.steps else "")


def _outcome(stage: StageData) -> str:
    """The one number that says what came out."""
    values = stage.values
    if stage.family == "rl":
        score = with_error(values.get("validation_score"), values.get("validation_stderr"), 100, 1)
        return f"held-out score {score} %" if score != NONE else f"score {decimal(values.get('score'), 1, 3)}"
    if stage.kind in ("RewardModel", "DPO") and number(values.get("validation_accuracy")) is not None:
        return f"held-out accuracy {decimal(values['validation_accuracy'], 100, 1)} %"
    if stage.family == "train":
        which = "validation_loss" if number(values.get("validation_loss")) is not None else "loss"
        return f"{'held-out ' if which != 'loss' else ''}loss {decimal(values.get(which), 1, 4)}"
    if stage.kind == "BestOfN" and values.get("prompts") is not None:
        best = with_error(values.get("best_score"), values.get("best_score_stderr"), 1, 3)
        mean = decimal(values.get("score"), 1, 3)
        return f"{count(values['prompts'])} prompts, {count(values.get('pairs'))} pairs; score {mean}, best {best}"
    if stage.kind == "MajorityVote" and values.get("prompts") is not None:
        right = with_error(values.get("correct"), values.get("correct_stderr"), 100, 1)
        agree = decimal(values.get("agreement"), 100, 1)
        return f"{count(values['labelled'])} of {count(values['prompts'])} prompts; {right} % right, {agree} % agree"
    if stage.table is not None:
        return f"{len(stage.table['rows'])} methods"
    done = stage.done or {}
    if "tokenizer" in done:
        return f"vocabulary of {count(done['tokenizer'].get('vocab_size'))}"
    return ", ".join(done.get("files") or ()) or NONE


def _supervised(stages: Sequence[StageData]) -> Table:
    columns = (
        Column("stage", words=True), Column("kind", words=True), Column("loss"), Column("held-out loss"),
        Column("accuracy", "%"), Column("held-out accuracy", "%"), Column("trained on", "tokens"),
        Column("speed", "tokens/s"), Column("MFU", "%"), Column("skipped", "updates"),
    )  # fmt: skip
    rows = []
    for stage in stages:
        v = stage.values
        rows.append((
            stage.name, stage.kind, decimal(v.get("loss"), 1, 4), decimal(v.get("validation_loss"), 1, 4),
            decimal(v.get("accuracy"), 100, 1), decimal(v.get("validation_accuracy"), 100, 1), count(v.get("tokens")),
            count(v.get("tokens_per_second")), decimal(v.get("mfu"), 100, 1), count(v.get("skipped_total")),
        ))  # fmt: skip
    notes = ("At the last step. Accuracy: of language models, tokens guessed right; of reward models and DPO, pairs.",)
    return Table("Supervised stages", columns, tuple(rows), notes)


def _reinforced(stages: Sequence[StageData]) -> Table:
    columns = (
        Column("stage", words=True), Column("kind", words=True), Column("held-out score", "%"), Column("score"),
        Column("reward"), Column("KL", "nats"), Column("entropy", "nats/token"), Column("length", "tokens"),
        Column("ended", "%"), Column("clipped", "% of tokens"), Column("sampler gap", "nats/token"),
        Column("sampling", "responses/s"),
    )  # fmt: skip
    rows = []
    for stage in stages:
        v = stage.values
        rows.append((
            stage.name, stage.kind, with_error(v.get("validation_score"), v.get("validation_stderr"), 100, 1),
            decimal(v.get("score"), 1, 3), decimal(v.get("reward"), 1, 3), decimal(v.get("kl"), 1, 2),
            decimal(v.get("entropy"), 1, 3), decimal(v.get("length"), 1, 1), decimal(v.get("ended"), 100, 1),
            decimal(v.get("clip_fraction"), 100, 2), scientific(v.get("sampler_gap")),
            decimal(rollout_speed(stage), 1, 1),
        ))  # fmt: skip
    notes = (
        "At the last rollout; sampling speed over the whole run. Score: as the reward gives it; reward: as the "
        "algorithm sees it. Sampler gap: mean distance of the sampler's log-probabilities from the trainer's.",
    )
    return Table("Reinforcement learning", columns, tuple(rows), notes)


def rollout_speed(stage: StageData) -> float | None:
    """Responses a second while sampling, over all its steps."""
    pairs = [(number(line.get("rollouts_per_second")), number(line.get("rollout_seconds"))) for line in stage.metrics]
    known = [(speed, seconds) for speed, seconds in pairs if speed is not None and seconds is not None]
    spent = sum(seconds for _, seconds in known)
    return sum(speed * seconds for speed, seconds in known) / spent if spent else None


# Printing


def _unfinished(run: RunData) -> list[str]:
    waiting = [stage.name for stage in run.unfinished] + [f"{name} (not begun)" for name in run.missing]
    return [f"Not done: {', '.join(waiting)}."] if waiting else []


def as_text(table: Table) -> str:
    """Columns padded to one width, groups above and units below the names; words to the left, numbers to the right."""
    facts = ([getattr(column, what) for column in table.columns] for what in ("group", "name", "unit"))
    head = [line for line in facts if any(line)]
    lines = [*head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    body = [
        "  ".join(
            cell.ljust(width) if column.words else cell.rjust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("─" * width for width in widths)
    notes = ["", *table.notes] if table.notes else []
    found = ["", table.finding] if table.finding else []
    return "\n".join([table.title, "", *body[: len(head)], rule, *body[len(head) :], *notes, *found])


def as_markdown(table: Table) -> str:
    """A pipe table, with the title as a heading and the notes below."""
    names = [
        (f"{column.group}: " if column.group else "") + column.name + (f" ({column.unit})" if column.unit else "")
        for column in table.columns
    ]
    lines = ["| " + " | ".join(map(_escaped, names)) + " |"]
    lines.append("|" + "|".join("---" if column.words else "--:" for column in table.columns) + "|")
    lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in table.rows]
    found = ["", _escaped(table.finding)] if table.finding else []
    notes = ["", *map(_escaped, table.notes)] if table.notes else []
    return "\n".join([f"## {_escaped(table.title)}", "", *lines, *found, *notes])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
