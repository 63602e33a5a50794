"""The figures of a run, from its metrics and tables; `plots.py` draws them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from easylm_jax.report.plots import MOST_POINTS, Series, bar_chart, line_chart, swatch, thinned
from easylm_jax.report.read import RunData, StageData, number
from easylm_jax.report.tables import decimal, duration, rollout_speed, with_error

Z95 = 1.959964
PANEL: dict[str, Any] = {"width": 400, "height": 220}  # pixels
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


@dataclasses.dataclass(frozen=True)
class Figure:
    """An SVG and its caption."""

    svg: str
    caption: str = ""


def colours(run: RunData) -> dict[str, int]:
    """The colour of each method, the same in all figures: methods of the tables first, then of the RL stages."""
    methods = [row["method"] for table, _ in run.tables for row in table["rows"]]
    labels = dict.fromkeys([*methods, *run.methods(run.of_family("rl"))])
    return {label: i for i, label in enumerate(labels)}


def results(run: RunData) -> list[Figure]:
    """Score against KL divergence for the methods of each table; bars of scores if the KL was not measured."""
    paint = colours(run)
    figures = []
    for table, _ in run.tables:
        rows = [row for row in table["rows"] if number(row["score"]) is not None]
        known = [row for row in rows if number(row.get("kl")) is not None]
        if len(known) < 2:
            bars = [(row["method"], [100 * row["score"]]) for row in rows]
            values = [with_error(row["score"], row.get("stderr"), 100, 1) + " %" for row in rows]
            figures.append(Figure(bar_chart(bars, ["score"], x_label="score, %", values=values)))
            continue
        series = [_method_point(row, paint[row["method"]]) for row in known]
        svg = line_chart(series, x_label="KL to the reference, nats per response", y_label="held-out score, %",
                         legend=False, width=720, height=400)  # fmt: skip
        figures.append(Figure(svg, "Held-out score against KL from the reference; bars are 95 % intervals."))
    return [figure for figure in figures if figure.svg]


def _method_point(row: dict, colour: int) -> Series:
    score, kl, error = 100 * row["score"], row["kl"], number(row.get("kl_stderr")) or 0.0
    low, high = row.get("interval") or (row["score"], row["score"])
    return Series(row["method"], [(kl, score)], colour, "marks", [(100 * low, 100 * high)],
                  [(kl - Z95 * error, kl + Z95 * error)], labels=True)  # fmt: skip


def along_kl(run: RunData) -> list[Figure]:
    """Score against KL along each RL stage: the score of the reward, one figure per reward (their units differ), and
    the held-out score, one figure for all."""
    paint, figures = colours(run), []
    for reward, stages in _by_reward(run).items():
        series = _paths(run, stages, paint, lambda stage: stage.points("score", x="kl"))
        svg = line_chart(series, x_label="KL to the reference, nats per response", y_label="score of the rollout",
                         title=f"Score by {reward}", legend=False, **PANEL)  # fmt: skip
        figures.append(Figure(svg, "Each line follows a stage over its steps; the dot is its last step."))
    series = _paths(run, run.of_family("rl"), paint, _held_out_by_kl)
    svg = line_chart(series, x_label="KL to the reference, nats per response", y_label="held-out score, %",
                     title="Held-out score", legend=False, **PANEL)  # fmt: skip
    figures.append(Figure(svg, "Greedy responses to held-out prompts; one line per seed."))
    return [figure for figure in figures if figure.svg]


def _by_reward(run: RunData) -> dict[str, list[StageData]]:
    """RL stages by their reward, since scores of different rewards have different units."""
    grouped: dict[str, list[StageData]] = {}
    for stage in run.of_family("rl"):
        reward = stage.config.get("reward") or {}
        kinds = {"model": "reward model", "verifier": "verifier"}
        names = [f"{kind} {reward[name]}" for name, kind in kinds.items() if reward.get(name)]
        grouped.setdefault(" and ".join(names) or "the reward", []).append(stage)
    return grouped


def _held_out_by_kl(stage: StageData) -> list[tuple[float, float]]:
    lines = [line for line in stage.validations("validation_score") if number(line.get("kl")) is not None]
    return [(line["kl"], 100 * line["validation_score"]) for line in lines]


def _paths(run: RunData, stages: Sequence[StageData], paint: dict[str, int], points: Callable) -> list[Series]:
    """A line for each stage in the colour of its method, with the last point marked."""
    return [
        Series(method if i == 0 else stage.name, thinned(points(stage), 120), paint[method], "line", in_legend=i == 0,
               end=True)
        for method, seeds in run.methods(stages).items() for i, stage in enumerate(seeds)
    ]  # fmt: skip


def held_out(run: RunData) -> list[Figure]:
    """Held-out score against step for RL stages: a pale line per seed, a solid line for their mean."""
    paint, series = colours(run), []
    for method, stages in run.methods(run.of_family("rl")).items():
        lines = {stage.name: stage.validations("validation_score") for stage in stages}
        curves = {
            name: [(float(line["validation_step"]), 100 * line["validation_score"]) for line in own]
            for name, own in lines.items()
        }
        errors = {
            name: {float(line["validation_step"]): number(line.get("validation_stderr")) or 0.0 for line in own}
            for name, own in lines.items()
        }
        if len(stages) > 1:
            series += [Series(name, points, paint[method], "thin", in_legend=False) for name, points in curves.items()]
        mean = mean_curve(list(curves.values()))
        widths = [Z95 * 100 * sum(own[x] for own in errors.values()) / len(errors) for x, _ in mean]
        intervals = [(y - width, y + width) for (_, y), width in zip(mean, widths, strict=True)]
        series.append(Series(_label(method, stages), mean, paint[method], "both", intervals))
    svg = line_chart(series, x_label="rollout step", y_label="held-out score, %", width=720, height=360)
    seeds = " Pale lines are single seeds, solid lines their mean." if any(one.look == "thin" for one in series) else ""
    caption = f"Greedy responses to held-out prompts. Bars: 95 % intervals over prompts only.{seeds}"
    return [Figure(svg, caption)] if svg else []


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean of curves at every x that all of them have."""
    tables = [dict(curve) for curve in curves if curve]
    if not tables or len(tables) < len(curves):
        return []
    return [(x, sum(t[x] for t in tables) / len(tables)) for x in tables[0] if all(x in t for t in tables)]


def _label(method: str, stages: Sequence[StageData]) -> str:
    return f"{method} (mean of {len(stages)})" if len(stages) > 1 else method


def health(run: RunData) -> list[Figure]:
    """Small panels of metrics over the steps of the RL stages."""
    figures = []
    for reward, stages in _by_reward(run).items():
        series = _over_steps(run, stages, "reward", 1.0)
        title = f"Reward from {reward}"
        figures.append(_panel(series, title, "reward"))
    for metric, title, unit, scale in HEALTH:
        series = _over_steps(run, run.of_family("rl"), metric, scale)
        figures.append(_panel(series, title, unit))
    return [figure for figure in figures if figure.svg]


def _panel(series: Sequence[Series], title: str, unit: str) -> Figure:
    return Figure(line_chart(series, x_label="rollout step", y_label=unit, title=title, legend=False, **PANEL))


def key(run: RunData) -> list[tuple[str, str]]:
    """The common legend of the panels of RL stages: (SVG of the line, method)."""
    paint, methods = colours(run), run.methods(run.of_family("rl"))
    return [(swatch(Series(method, (), paint[method])), method) for method in methods]


def _over_steps(run: RunData, stages: Sequence[StageData], metric: str, scale: float) -> list[Series]:
    """A metric of each method: a pale line per seed, a solid line for their mean."""
    paint, series = colours(run), []
    for method, seeds in run.methods(stages).items():
        curves = [[(x, scale * y) for x, y in stage.points(metric)] for stage in seeds]
        if len(seeds) > 1:
            series += [Series(stage.name, thinned(curve), paint[method], "thin", in_legend=False)
                       for stage, curve in zip(seeds, curves, strict=True)]  # fmt: skip
        series.append(Series(_label(method, seeds), thinned(mean_curve(curves)), paint[method]))
    return series


def losses(run: RunData) -> list[Figure]:
    """Training and held-out loss of the supervised stages, with the seeds of a method in one figure."""
    figures = []
    for method, stages in run.methods(run.of_family("train")).items():
        series = [Series("training", thinned(stage.points("loss")), 0, "line" if len(stages) == 1 else "thin")
                  for stage in stages]  # fmt: skip
        for stage in stages:
            points = [(float(line["validation_step"]), float(line["validation_loss"]))
                      for line in stage.validations("validation_loss")]  # fmt: skip
            series.append(Series("held out", points or _last_held_out(stage), 1, "both"))
        title = method if len(stages) == 1 else f"{method}, {len(stages)} seeds"
        figures.append(Figure(line_chart(series, x_label="step", y_label="loss", title=title, **PANEL)))
    return [figure for figure in figures if figure.svg]


def _last_held_out(stage: StageData) -> list[tuple[float, float]]:
    """The last held-out loss, from `done.json`."""
    loss, step = number(stage.values.get("validation_loss")), number(stage.values.get("validation_step"))
    return [] if loss is None or step is None else [(step, loss)]


def time(run: RunData) -> list[Figure]:
    """The time of each stage by part, and the sampling throughput of the RL stages."""
    stages = [stage for stage in run.stages if stage.seconds is not None]
    total = max((stage.seconds or 0.0 for stage in stages), default=0.0)
    unit, size = ("hours", 3600.0) if total > 4 * 3600 else ("minutes", 60.0) if total > 240 else ("seconds", 1.0)
    bars = []
    for stage in stages:
        clocks = stage.clocks
        known = [clocks.get(name, 0.0) for name in ("rollout", "score", "update")]
        bars.append((stage.name, [part / size for part in (*known, (stage.seconds or 0.0) - sum(known))]))
    used = [i for i in range(len(TIME_PARTS)) if any(lengths[i] > 0 for _, lengths in bars)]
    bars = [(name, [lengths[i] for i in used]) for name, lengths in bars]
    svg = bar_chart(bars, [TIME_PARTS[i] for i in used], x_label=unit, title="Time by stage",
                    values=[duration(stage.seconds) for stage in stages],
                    colours=[TIME_COLOURS[i] for i in used])  # fmt: skip
    speeds = [(stage.name, rollout_speed(stage)) for stage in run.of_family("rl")]
    fast = [(name, [speed]) for name, speed in speeds if speed is not None]
    rollouts = bar_chart(fast, ["sampling"], x_label="responses per second while sampling", title="Rollouts per second",
                         values=[decimal(speed, 1, 1) for _, (speed,) in fast])  # fmt: skip
    return [figure for figure in (Figure(svg), Figure(rollouts)) if figure.svg]


def averaged(run: RunData) -> str:
    """A note if curves show means of neighbouring steps; "" if every step is drawn."""
    longest = max((len(stage.metrics) for stage in run.stages), default=0)
    if longest <= MOST_POINTS:
        return ""
    return f"Curves of more than {MOST_POINTS} steps are drawn as means of neighbouring steps."
