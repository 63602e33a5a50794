"""A run as one HTML page: no script, no network, nothing beside it."""

from __future__ import annotations

import datetime
import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from easylm_jax.report import figures, tables
from easylm_jax.report.figures import Figure
from easylm_jax.report.layout import Column, Table
from easylm_jax.report.numbers import NONE, count, decimal, duration
from easylm_jax.report.read import Line, RunData, StageData, number
from easylm_jax.report.settings import flat
from easylm_jax.report.stage_tables import stage_tables, state
from easylm_jax.report.style import STYLE

SHOWN_PROMPTS = 4  # unfolded for each task; the others are behind a click
SMALL_PICTURE = 128  # pixels a side of a picture whose pixels are shown as squares
SHORT = 20  # characters of a cell that is never broken into lines
LONGEST_LABEL = 600  # characters of an expected answer or a reason


def page(run: RunData) -> str:
    """The whole page."""
    groups = figures.rl_groups(run)
    panels, zero = figures.health(groups)
    sections = [
        ("Results", _results(run)),
        ("Held-out score while training", drawn(figures.held_out(groups))),
        ("Reward against divergence", grid(figures.along_kl(groups), figures.key(groups))),
        ("Health of reinforcement learning", grid(panels, figures.key(groups), zero)),
        ("Supervised stages: loss", grid(figures.losses(figures.loss_groups(run)))),
        ("Benchmarks while training", grid(figures.benchmarks(figures.loss_groups(run)))),
        ("Responses side by side", responses([[("", stage)] for stage in run.stages])),
        ("Stages", "".join(table(it, it.title != "Stages") for it in stage_tables(run))),
        ("Time", drawn(figures.time([(stage.name, stage) for stage in run.stages]))),
        ("Responses while training", _training_samples(run)),
        ("Settings", _settings(run)),
        ("Files", _files(run)),
    ]
    return document(_title(run), run.recipe, _facts(run), _warning(run), sections)


def document(
    title: str, above: str, facts: Sequence[tuple[str, str]], warning: str, sections: Sequence[tuple[str, str]]
) -> str:
    """A page with a title, what stands above it, facts below it, and the sections that have a body."""
    shown = [(name, _anchor(name), body) for name, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{safe(name)}</a>' for name, anchor, _ in shown)
    body = "".join(f'<section id="{anchor}"><h2>{safe(name)}</h2>{body}</section>' for name, anchor, body in shown)
    items = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in facts)
    warning = f'<p class="warning">{safe(warning)}</p>' if warning else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # The page may load nothing at all, whatever its samples hold.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>"
        f"<body><header><p class=over>{safe(above)}</p><h1>{safe(title)}</h1><dl class=facts>{items}</dl>{warning}"
        f"<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )


def safe(text: Any) -> str:
    """Text that HTML shows as it is."""
    return html.escape(str(text), quote=True)


def _anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def _title(run: RunData) -> str:
    return next((str(t["title"]) for t, _ in run.tables if t.get("title")), run.recipe)


def _facts(run: RunData) -> list[tuple[str, str]]:
    done = sum(stage.finished for stage in run.stages)
    facts = [("stages done", f"{done} of {len(run.stages) + len(run.missing)}"), ("time", duration(run.seconds))]
    trained = sum(number(stage.values.get("tokens")) or 0.0 for stage in run.stages)
    if trained:
        facts.append(("tokens trained on", count(trained)))
    if run.tables:
        facts.append(("methods compared", str(sum(len(t["rows"]) for t, _ in run.tables))))
    return [*facts, *_span(run)]


def _warning(run: RunData) -> str:
    waiting = [f"{stage.name} ({state(stage)})" for stage in run.unfinished]
    waiting += [f"{name} (not begun)" for name in run.missing]
    return f"This run is not finished: {', '.join(waiting)}." if waiting else ""


def _span(run: RunData) -> list[tuple[str, str]]:
    """When the first and the last metrics were written."""
    times = [t for stage in run.stages for line in stage.metrics[:1] + stage.metrics[-1:]
             if (t := number(line.get("time"))) is not None]  # fmt: skip
    return [("first step", _moment(min(times))), ("last step", _moment(max(times)))] if times else []


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


# Tables and figures


def table(it: Table, heading: bool = True) -> str:
    """A table with its title and notes; a row of groups above the headings where there are any."""
    groups: list[tuple[str, int]] = []
    for column in it.columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    above = ""
    if any(name for name, _ in groups):
        cells = "".join(f'<th class="group{" named" if name else ""}" colspan="{wide}">{safe(name)}</th>'
                        for name, wide in groups)  # fmt: skip
        above = f"<tr>{cells}</tr>"
    first = {i for i, column in enumerate(it.columns) if column.group and column.group != it.columns[i - 1].group}
    kinds = [" ".join(["words"] * column.words + ["first"] * (i in first)) for i, column in enumerate(it.columns)]
    head = "".join(
        f'<th class="{kind}">{safe(column.name)}'
        + (f"<small>{safe(column.unit)}</small>" if column.unit else "")
        + "</th>"
        for kind, column in zip(kinds, it.columns, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}{" short" if len(cell) <= SHORT else ""}">{safe(cell)}</td>'
            for kind, cell in zip(kinds, row, strict=True)
        )
        + "</tr>"
        for row in it.rows
    )
    notes = f'<p class="note">{safe(" ".join(it.notes))}</p>' if it.notes else ""
    found = f"<p>{safe(it.finding)}</p>" if it.finding else ""
    title = f"<h3>{safe(it.title)}</h3>" if heading else ""
    body = f"<thead>{above}<tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'{title}<div class="scroll"><table>{body}</table></div>{found}{notes}'


def _results(run: RunData) -> str:
    made = tables.ablations(run)
    several = len(made) > 1
    return "".join(table(it, several) for it in made) + drawn(figures.results(run))


def drawn(shown: Sequence[Figure]) -> str:
    """Figures below each other."""
    return "".join(_figure(figure) for figure in shown)


def grid(shown: Sequence[Figure], key: Sequence[tuple[str, str]] = (), note: str = "") -> str:
    """Panels side by side, with a common legend above and a note below them."""
    below = f'<p class="note">{safe(note)}</p>' if note else ""
    names = "".join(f"<span>{line}{safe(name)}</span>" for line, name in key)
    legend = f'<div class="key">{names}</div>' if names else ""
    return f'{legend}<div class="grid">{drawn(shown)}</div>{below}' if shown else ""


def _figure(figure: Figure) -> str:
    caption = f"<figcaption>{safe(figure.caption)}</figcaption>" if figure.caption else ""
    drawn = figure.svg
    if figure.narrow:
        drawn = f'<div class="wide">{figure.svg}</div><div class="narrow">{figure.narrow}</div>'
    return f"<figure>{drawn}{caption}</figure>"


# Samples


def responses(evaluations: Sequence[Sequence[tuple[str, StageData]]]) -> str:
    """Each prompt once, with what is expected, and below it every method's response. Stages of one evaluation are
    given together, each with the name of its run ("" if there is only one)."""
    return "".join(_responses_of(evaluation) for evaluation in evaluations)


def _responses_of(evaluation: Sequence[tuple[str, StageData]]) -> str:
    prompts: dict[tuple[str, str, str], list[tuple[str, Line]]] = {}
    for run, stage in evaluation:
        for line in stage.answers:
            seen = json.dumps(line.get("pictures", []))  # one question about two pictures is two prompts
            key = str(line.get("task", "")), str(line.get("prompt", "")), seen
            prompts.setdefault(key, []).append((run, line))
    by_task: dict[str, list[str]] = {}
    for (task, prompt, _), lines in prompts.items():
        methods = list(dict.fromkeys(str(line.get("method", "")) for _, line in lines))
        cards = "".join(
            _card(f"{method}, {run}" if run else method, line)
            for method in methods for run, line in lines if str(line.get("method", "")) == method
        )  # fmt: skip
        block = f'<div class="prompt">{_prompt(prompt, lines[0][1])}<div class="cards">{cards}</div></div>'
        by_task.setdefault(task, []).append(block)
    return "".join(
        f"<h3>{safe(task)}</h3>" + "".join(blocks[:SHOWN_PROMPTS])
        + _folded(f"More prompts ({len(blocks) - SHOWN_PROMPTS})", "".join(blocks[SHOWN_PROMPTS:]))
        for task, blocks in by_task.items()
    )  # fmt: skip


def _prompt(prompt: str, line: Line) -> str:
    """A prompt, and the label that responses are compared with where there is one."""
    label = line.get("label")
    expected = ""
    if label is not None:
        text = label if isinstance(label, str) else json.dumps(label, ensure_ascii=False)
        expected = f'<p class="expected"><span>expected</span> {safe(_cut(text))}</p>'
    return f'<div class="asked">{_pictures(line, ())}<pre>{safe(prompt)}</pre>{expected}</div>'


def _pictures(line: Line, points: Any) -> str:
    """The pictures of a prompt, the first with points in percent drawn as numbered rings."""
    pictures = line.get("pictures")
    listed = pictures if isinstance(pictures, list) else []
    return "".join(_picture(picture, points if number == 0 else ()) for number, picture in enumerate(listed))


def _picture(picture: Any, points: Any) -> str:
    """A picture of `rewards.pictures.shown`; nothing for anything else, since samples may hold what they like."""
    data, *sides = (picture.get(name) if isinstance(picture, dict) else None for name in ("data", "width", "height"))
    width, height = map(number, sides)
    if not (isinstance(data, str) and data.startswith("data:image/") and width and height):
        return ""
    pairs = [pair for pair in points if isinstance(pair, list | tuple) and len(pair) == 2]
    size, rings = max(width, height) / 30, ""
    for place, pair in enumerate(pairs, start=1):
        x, y = (number(value) for value in pair)
        if x is not None and y is not None:
            x, y = x * width / 100, y * height / 100
            rings += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" stroke-width="{size / 2:.1f}"/>'
            if len(pairs) > 1:
                rings += f'<text x="{x + 1.4 * size:.1f}" y="{y:.1f}" style="font-size:{2 * size:.1f}px">{place}</text>'
    kind = "picture small" if max(width, height) <= SMALL_PICTURE else "picture"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="picture of the prompt">'
        f'<image href="{safe(data)}" width="{width:g}" height="{height:g}"/>{rings}</svg>'
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else f"{text[:LONGEST_LABEL]}…"


def _card(name: str, line: Line) -> str:
    score = number(line.get("score"))
    verdict = {1.0: "right", 0.0: "wrong"}.get(score) if score is not None else ""
    mark = f'<span class="mark {verdict or ""}">{verdict or f"score {score:.3g}"}</span>' if score is not None else ""
    return f'<div class="card"><b>{safe(name)}</b>{mark}{_pointed(line)}<pre>{_text(line)}</pre>{_reason(line)}</div>'


def _pointed(line: Line) -> str:
    """The pictures again with the points of the response, where it has some."""
    points = line.get("points")
    return _pictures(line, points) if isinstance(points, list) and points else ""


def _text(line: Line) -> str:
    response = str(line.get("response", ""))
    return safe(response) if response.strip() else "<em>(empty)</em>"


def _reason(line: Line) -> str:
    """Why a response has its score, where the verifier says so, and whether it was cut off."""
    reasons = [str(line["reason"])] if line.get("reason") else []
    reasons += ["cut at the length limit"] if line.get("ended") is False else []
    return f'<p class="reason">{safe(_cut("; ".join(reasons)))}</p>' if reasons else ""


def _training_samples(run: RunData) -> str:
    """Responses of the RL stages at their first and last kept steps, folded away: to the same held-out prompts, side by
    side; of rollouts, one below the other."""
    shown = []
    for stage in run.of_family("rl"):
        if stage.held_out:
            title = f"{stage.name}: held-out prompts, {_steps(stage.held_out)}"
            shown.append(_folded(title, _before_and_after(stage.held_out)))
        if stage.samples:
            shown.append(_folded(f"{stage.name}: rollouts, {_steps(stage.samples)}", "".join(_step_samples(stage))))
    return "".join(shown)


def _steps(samples: dict[int, list[Line]]) -> str:
    return f"step{'s' * (len(samples) > 1)} {' and '.join(map(str, samples))}"


def _before_and_after(samples: dict[int, list[Line]]) -> str:
    """The first held-out prompts, each with a card for each step."""
    cards: dict[Any, list[tuple[int, Line]]] = {}
    for step, lines in samples.items():
        for line in lines:
            if not line.get("sample"):
                cards.setdefault(line.get("number"), []).append((step, line))
    return "".join(
        f'<div class="prompt">{_prompt(str(own[0][1].get("prompt", "")), own[0][1])}<div class="cards">'
        + "".join(_card(f"step {step}", line) for step, line in own) + "</div></div>"
        for own in list(cards.values())[:SHOWN_PROMPTS]
    )  # fmt: skip


def _step_samples(stage: StageData) -> Iterable[str]:
    for step, lines in stage.samples.items():
        yield f"<h4>Step {step}</h4>"
        for line in lines:
            facts = f"score {decimal(line.get('score'), 1, 3)}, KL {decimal(line.get('kl'), 1, 2)} nats"
            yield f'<div class="prompt">{_prompt(str(line.get("prompt", "")), line)}<div class="card">'
            yield f'<span class="mark">{safe(facts)}</span>{_pointed(line)}<pre>{_text(line)}</pre>'
            yield f"{_reason(line)}</div></div>"


# Settings and files


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{safe(summary)}</summary>{body}</details>" if body else ""


def _settings(run: RunData) -> str:
    return f'<p class="note">Mesh: {safe(run.mesh)}. Fields that are not set are left out.</p>' + "".join(
        _folded(f"{stage.name} ({stage.kind})", _fields(stage)) for stage in run.stages
    )


def _fields(stage: StageData) -> str:
    rows = "".join(f"<tr><th class=words>{safe(name)}</th><td class=words>{safe(value)}</td></tr>"
                   for name, value in flat(stage.config))  # fmt: skip
    return f'<div class="scroll"><table class="fields"><tbody>{rows}</tbody></table></div>'


def _files(run: RunData) -> str:
    """What was run, from what, and where it lies."""
    rows = []
    for stage in run.stages:
        made = [(stage.done or {}).get("checkpoint"), *((stage.done or {}).get("files") or ())]
        names = ("metrics.jsonl", "samples", "table.json", "samples.jsonl", "tokenizer.model")
        made += [name for name in names if (stage.folder / name).exists()]
        rows.append((stage.name, ", ".join(stage.needs) or NONE, ", ".join(filter(None, made)) or NONE))
    columns = tuple(Column(name, words=True) for name in ("stage", "made from", "in its folder"))
    listed = table(Table("", columns, tuple(rows)), heading=False)
    averaged = figures.averaged(run.stages)
    return (
        f"<p>Everything lies in <code>{safe(run.folder)}</code>, a folder for each stage, with its <code>config.json"
        "</code> (settings), <code>metrics.jsonl</code> (one line a step) and <code>done.json</code> (what came out)."
        f"</p>{listed}<p class=note>{safe(averaged)}</p>"
    )
