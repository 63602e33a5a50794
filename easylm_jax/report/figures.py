"""The figures of a run, from its metrics and tables; `curves.py` says what is drawn, `plots.py` draws it.

A figure shows groups: stages that are drawn as one, with a name and a colour. On the page of one run, a group is a
method with its seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from easylm_jax.report.curves import SMOOTH_FROM, Point, band, is_noisy, mean_curve, robust_range, smoothed, thinned
from easylm_jax.report.numbers import decimal, duration, with_error
from easylm_jax.report.plots import Series, bar_chart, line_chart, swatch
from easylm_jax.report.read import Line, RunData, StageData, number
from easylm_jax.report.settings import common_name
from easylm_jax.report.stage_tables import rollout_speed

Z95 = 1.959964
# Sizes in pixels. A wide figure has a narrow version for phones, since text would become too small to read.
PANEL: dict[str, Any] = {"width": 400, "height": 220}
WIDE: dict[str, Any] = {"width": 720, "height": 380}
NARROW: dict[str, Any] = {"width": 400, "height": 280}
PATH_POINTS = 48  # of a line through the plane of KL and score
# For RL stages: (metric, title, unit of the axis, scale).
HEALTH = (
    ("kl", "KL to the reference", "nats per response", 1.0),
    ("entropy", "Entropy of the policy", "nats per token", 1.0),
    ("length", "Response length", "tokens", 1.0),
    ("ended", "Responses that ended", "%", 100.0),
    ("explained_variance", "Explained variance of returns", "share", 1.0),
    ("clip_fraction", "Clipped tokens", "%", 100.0),
    ("sampler_gap", "Gap between sampler and trainer", "nats per token", 1.0),
    ("equal_groups", "Zero-variance groups", "%", 100.0),
    ("staleness", "Staleness of rollouts", "steps", 1.0),
    ("verifier_timeouts", "Verifier timeouts", "calls", 1.0),
)
TIME_PARTS = ("sampling", "scoring", "training steps", "compilation, evaluation, checkpoints, other")
TIME_COLOURS = (0, 1, 2, 5)
KL_AXIS = "KL to the reference, nats per response"


@dataclasses.dataclass(frozen=True)
class Figure:
    """An SVG and its caption. `narrow` is the same figure for a narrow screen, where it needs another one."""

    svg: str
    caption: str = ""
    narrow: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """Stages that are drawn as one, such as the seeds of a method. All have the same settings except for seeds."""

    name: str
    stages: Sequence[StageData]
    colour: int

    @property
    def label(self) -> str:
        return f"{self.name} (mean of {len(self.stages)})" if len(self.stages) > 1 else self.name


def colours(run: RunData) -> dict[str, int]:
    """The colour of each method, the same in all figures: methods of the tables first, then of the RL stages."""
    methods = [row["method"] for table, _ in run.tables for row in table["rows"]]
    labels = dict.fromkeys([*methods, *run.methods(run.of_family("rl"))])
    return {label: i for i, label in enumerate(labels)}


def rl_groups(run: RunData) -> list[Group]:
    """The methods of the RL stages in their colours."""
    paint = colours(run)
    return [Group(method, stages, paint[method]) for method, stages in run.methods(run.of_family("rl")).items()]


def _chart(series: Sequence[Series], caption: str = "", **layout: Any) -> list[Figure]:
    """A panel; none if there is nothing to draw. The caption tells of outliers."""
    svg = line_chart(series, **layout, legend=False, **PANEL)
    return [Figure(svg, " ".join(filter(None, [caption, _outliers(series)])))] if svg else []


def _wide_chart(series: Sequence[Series], caption: str, **layout: Any) -> list[Figure]:
    """A figure of its own, in both widths; none if there is nothing to draw."""
    svg, narrow = line_chart(series, **layout, **WIDE), line_chart(series, **layout, **NARROW)
    return [Figure(svg, " ".join(filter(None, [caption, _outliers(series)])), narrow)] if svg else []


def _outliers(series: Sequence[Series]) -> str:
    """A sentence on the points of curves that lie beyond the axis; marked points have their value beside them."""
    away = [y for one in series if not one.labels for _, y in one.outside]
    if not away:
        return ""
    low, high = min(away), max(away)
    if len(away) == 1:
        return f"A triangle marks a value beyond the axis: {_plain(low)}."
    ends = f"{_plain(low)} to {_plain(high)}" if low != high else f"{_plain(low)} each"
    return f"Triangles mark {len(away)} values beyond the axis: {ends}."


def _plain(value: float) -> str:
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")


# Results


def results(run: RunData) -> list[Figure]:
    """Score against KL divergence for the methods of each table; bars of scores if the KL was not measured."""
    paint = colours(run)
    return [figure for table, _ in run.tables
            for figure in scores([(row["method"], row, paint[row["method"]]) for row in table["rows"]])]  # fmt: skip


def scores(rows: Iterable[tuple[str, dict[str, Any], int]]) -> list[Figure]:
    """Rows of tables, each with its name and colour: score against KL, or bars of scores."""
    rows = [(name, row, colour) for name, row, colour in rows if number(row["score"]) is not None]
    known = [(name, row, colour) for name, row, colour in rows if number(row.get("kl")) is not None]
    if len(known) < 2:
        bars = [(name, [100 * row["score"]]) for name, row, _ in rows]
        values = [with_error(row["score"], row.get("stderr"), 100, 1) + " %" for _, row, _ in rows]
        drawn = [bar_chart(bars, ["score"], x_label="score, %", values=values, width=width) for width in (640, 400)]
        return [Figure(drawn[0], narrow=drawn[1])] if drawn[0] else []
    series = [_method_point(*one) for one in known]
    low, high = robust_range([[one.points[0][0]] for one in series])
    series = [one if low <= one.points[0][0] <= high
              else dataclasses.replace(one, points=(), outside=one.points, x_intervals=None, y_intervals=None)
              for one in series]  # fmt: skip
    beyond = " Triangles mark methods beyond the axis." if any(one.outside for one in series) else ""
    return _wide_chart(series, f"Held-out score against KL from the reference; bars are 95 % intervals.{beyond}",
                       x_label=KL_AXIS, y_label="held-out score, %", legend=False)  # fmt: skip


def _method_point(name: str, row: dict[str, Any], colour: int) -> Series:
    score, kl, error = 100 * row["score"], row["kl"], number(row.get("kl_stderr")) or 0.0
    low, high = row.get("interval") or (row["score"], row["score"])
    return Series(name, [(kl, score)], colour, "marks", [(100 * low, 100 * high)],
                  [(kl - Z95 * error, kl + Z95 * error)], labels=True)  # fmt: skip


# RL stages


def held_out(groups: Sequence[Group]) -> list[Figure]:
    """Held-out score against step: a pale line per seed, a solid line for their mean."""
    series = []
    for group in groups:
        lines = [stage.validations("validation_score") for stage in group.stages]
        curves = [[(float(line["validation_step"]), 100 * line["validation_score"]) for line in own] for own in lines]
        errors = [
            {float(line["validation_step"]): number(line.get("validation_stderr")) or 0.0 for line in own}
            for own in lines
        ]
        if len(group.stages) > 1:
            series += [Series(stage.name, points, group.colour, "thin", in_legend=False)
                       for stage, points in zip(group.stages, curves, strict=True)]  # fmt: skip
        mean = mean_curve(curves)
        widths = [Z95 * 100 * sum(own[x] for own in errors) / len(errors) for x, _ in mean]
        intervals = [(y - width, y + width) for (_, y), width in zip(mean, widths, strict=True)]
        series.append(Series(group.label, mean, group.colour, "both", intervals))
    seeds = " Pale lines are single seeds, full lines their mean." if any(one.look == "thin" for one in series) else ""
    caption = f"Greedy responses to held-out prompts. Bars: 95 % intervals over prompts only.{seeds}"
    return _wide_chart(series, caption, x_label="rollout step", y_label="held-out score, %")


def along_kl(groups: Sequence[Group]) -> list[Figure]:
    """Score against KL along the steps: the score of the reward, one figure per reward (their units differ), and the
    held-out score, one figure for all."""
    figures = []
    for reward, own in by_reward(groups).items():
        series = _paths(own, lambda stage: stage.metrics, "score", 1.0)
        figures += _chart(
            series, "Moving averages over the steps, from pale to full; the dot is the last step.", x_label=KL_AXIS,
            y_label="score of the rollout", title=f"Score by {reward}",
        )  # fmt: skip
    series = _paths(groups, lambda stage: stage.validations("validation_score"), "validation_score", 100.0)
    figures += _chart(series, "Greedy responses to held-out prompts, from the first evaluation to the last (dot).",
                      x_label=KL_AXIS, y_label="held-out score, %", title="Held-out score", least=5.0)  # fmt: skip
    return figures


def by_reward(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups by their reward, since scores of different rewards have different units."""
    grouped: dict[str, list[Group]] = {}
    for group in groups:
        names = []
        for field, kind in (("model", "reward model"), ("verifier", "verifier")):
            used = dict.fromkeys((stage.config.get("reward") or {}).get(field) for stage in group.stages)
            if given := [str(name) for name in used if name]:
                names.append(f"{kind} {common_name(given)}")
        grouped.setdefault(" and ".join(names) or "the reward", []).append(group)
    return grouped


def _paths(
    groups: Sequence[Group], lines: Callable[[StageData], Sequence[Line]], metric: str, scale: float
) -> list[Series]:
    """The way of each group through the plane of KL and `metric`: the mean of its seeds."""
    ways = {}
    for group in groups:
        means = [mean_curve([_points(lines(stage), name) for stage in group.stages]) for name in ("kl", metric)]
        score_at = dict(means[1])
        ways[group.name] = [(step, kl, scale * score_at[step]) for step, kl in means[0] if step in score_at]
    shown = [robust_range([[point[axis] for point in way] for way in ways.values()]) for axis in (1, 2)]
    series = []
    for group in groups:
        near = [
            point
            for point in ways[group.name]
            if all(low <= point[axis] <= high for axis, (low, high) in zip((1, 2), shown, strict=True))
        ]
        x, y = ([(point[0], point[axis]) for point in near] for axis in (1, 2))
        if len(near) > 8:
            x, y = (thinned(smoothed(curve, 1 / 6), PATH_POINTS) for curve in (x, y))
        path = [(kl, score) for (_, kl), (_, score) in zip(x, y, strict=True)]
        series.append(Series(group.label, path, group.colour, "path", end=True))
    return series


def _points(lines: Sequence[Line], metric: str) -> list[Point]:
    """(step, value) of every line in which the metric is a finite number."""
    pairs = [(float(line["step"]), number(line.get(metric))) for line in lines]
    return [(step, value) for step, value in pairs if value is not None]


def health(groups: Sequence[Group]) -> tuple[list[Figure], str]:
    """Small panels of metrics over the steps, and a sentence on those that are left out because they are always 0."""
    figures, zero = [], []
    for reward, own in by_reward(groups).items():
        figures += _over_steps(own, "reward", 1.0, f"Reward from {reward}", "reward")
    for metric, title, unit, scale in HEALTH:
        values = [y for group in groups for stage in group.stages for _, y in stage.points(metric)]
        if values and not any(values):
            zero.append(title.lower())
        else:
            figures += _over_steps(groups, metric, scale, title, unit)
    return figures, f"Always 0 and not shown: {', '.join(zero)}." if zero else ""


def key(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """The common legend of panels: (SVG of the line, name)."""
    return [(swatch(Series(group.name, (), group.colour)), group.name) for group in groups]


def _over_steps(groups: Sequence[Group], metric: str, scale: float, title: str, unit: str) -> list[Figure]:
    """A metric of each group: the mean over seeds, with a pale line for each; as a moving average in a pale band where
    the curves are long and noisy."""
    raw = {group.name: [[(x, scale * y) for x, y in stage.points(metric)] for stage in group.stages]
           for group in groups}  # fmt: skip
    inside, outside = _set_aside(raw)
    series = []
    for group in groups:
        curves, mean = inside[group.name], mean_curve(inside[group.name])
        if is_noisy(mean):
            series.append(Series(group.label, thinned(smoothed(mean)), group.colour, band=band(curves),
                                 outside=outside[group.name]))  # fmt: skip
            continue
        if len(curves) > 1:
            series += [Series(stage.name, thinned(curve), group.colour, "thin", in_legend=False)
                       for stage, curve in zip(group.stages, curves, strict=True)]  # fmt: skip
        series.append(Series(group.label, thinned(mean), group.colour, outside=outside[group.name]))
    return _chart(series, x_label="rollout step", y_label=unit, title=title)


Curves = dict[str, list[list[Point]]]


def _set_aside(raw: Curves) -> tuple[Curves, dict[str, list[Point]]]:
    """The curves of each group without outliers, and the outliers of each group."""
    low, high = robust_range([[y for _, y in curve] for curves in raw.values() for curve in curves])
    inside = {name: [[point for point in curve if low <= point[1] <= high] for curve in curves]
              for name, curves in raw.items()}  # fmt: skip
    outside = {name: [point for curve in curves for point in curve if not low <= point[1] <= high]
               for name, curves in raw.items()}  # fmt: skip
    return inside, outside


# Supervised stages


def losses(methods: Mapping[str, Sequence[Group]]) -> list[Figure]:
    """Training and held-out loss, a panel for each of the methods; a single group has a colour for each of both."""
    figures = []
    for method, groups in methods.items():
        raw = {group.name: [stage.points("loss") for stage in group.stages] for group in groups}
        inside, outside = _set_aside(raw)
        series = []
        for group in groups:
            alone = len(groups) == 1
            colour, names = (0, ("training", "held out")) if alone else (group.colour, (group.name,) * 2)
            curves, mean = inside[group.name], mean_curve(inside[group.name])
            noisy = is_noisy(mean)
            if noisy or len(curves) > 1:
                series += [Series(names[0], thinned(curve), colour, "thin", in_legend=False) for curve in curves]
            series.append(Series(names[0], thinned(smoothed(mean) if noisy else mean), colour,
                                 outside=outside[group.name]))  # fmt: skip
            held = mean_curve([_held_out_loss(stage) for stage in group.stages])
            series.append(Series(names[1], held, 1 if alone else colour, "both", in_legend=alone))
        seeds = {len(group.stages) for group in groups}
        title = f"{method}, {seeds.pop()} seeds" if len(seeds) == 1 and seeds != {1} else method
        svg = line_chart(series, x_label="step", y_label="loss", title=title, **PANEL)
        figures += [Figure(svg, _outliers(series))] if svg else []
    return figures


def benchmarks(methods: Mapping[str, Sequence[Group]]) -> list[Figure]:
    """The score of each benchmark that was asked while training (`benchmark/<name>` in the metrics), a panel each."""
    groups = [group for several in methods.values() for group in several]
    names = dict.fromkeys(
        name for group in groups for stage in group.stages for line in stage.metrics for name in line
        if name.startswith("benchmark/")
    )  # fmt: skip
    figures = []
    for name in names:
        series = [
            Series(group.name, mean_curve([stage.points(name) for stage in group.stages]), number, "both",
                   in_legend=len(groups) > 1)
            for number, group in enumerate(groups)
        ]  # fmt: skip
        svg = line_chart(series, x_label="step", y_label="score", title=name.partition("/")[2], **PANEL)
        figures += [Figure(svg)] if svg else []
    return figures


def loss_groups(run: RunData) -> dict[str, list[Group]]:
    """The supervised methods of a run, each alone."""
    return {method: [Group(method, stages, 0)] for method, stages in run.methods(run.of_family("train")).items()}


def _held_out_loss(stage: StageData) -> list[Point]:
    """The held-out loss at each validation, or the last one, from `done.json`."""
    lines = stage.validations("validation_loss")
    points = [(float(line["validation_step"]), float(line["validation_loss"])) for line in lines]
    loss, step = number(stage.values.get("validation_loss")), number(stage.values.get("validation_step"))
    return points or ([] if loss is None or step is None else [(step, loss)])


# Time


def time(stages: Sequence[tuple[str, StageData]]) -> list[Figure]:
    """The time of stages, each with its name, by part; and the sampling throughput of those of RL."""
    known = [(name, stage, stage.seconds) for name, stage in stages if stage.seconds is not None]
    total = max((seconds for _, _, seconds in known), default=0.0)
    unit, size = ("hours", 3600.0) if total > 4 * 3600 else ("minutes", 60.0) if total > 240 else ("seconds", 1.0)
    bars = []
    for name, stage, seconds in known:
        parts = [stage.clocks.get(part, 0.0) for part in ("rollout", "score", "update")]
        bars.append((name, [part / size for part in (*parts, seconds - sum(parts))]))
    used = [i for i in range(len(TIME_PARTS)) if any(lengths[i] > 0 for _, lengths in bars)]
    bars = [(name, [lengths[i] for i in used]) for name, lengths in bars]
    drawn = [
        bar_chart(bars, [TIME_PARTS[i] for i in used], x_label=unit, title="Time by stage", width=width,
                  values=[duration(seconds) for _, _, seconds in known], colours=[TIME_COLOURS[i] for i in used])
        for width in (640, 400)
    ]  # fmt: skip
    speeds = [(name, rollout_speed(stage)) for name, stage in stages if stage.family == "rl"]
    fast = [(name, [speed]) for name, speed in speeds if speed is not None]
    rollouts = [
        bar_chart(fast, ["sampling"], x_label="responses per second while sampling", title="Responses per second",
                  values=[decimal(speed, 1, 1) for _, (speed,) in fast], width=width)
        for width in (640, 400)
    ]  # fmt: skip
    return [Figure(svg, narrow=narrow) for svg, narrow in (drawn, rollouts) if svg]


def averaged(stages: Sequence[StageData]) -> str:
    """A note if curves may show moving averages; "" if every step is drawn."""
    if all(len(stage.metrics) <= SMOOTH_FROM for stage in stages):
        return ""
    return (f"Noisy curves of more than {SMOOTH_FROM} steps are drawn as moving averages over 5 % of their steps; pale "
            "bands hold 80 % of the values.")  # fmt: skip
