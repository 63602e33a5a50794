"""Which figures a run has, made of its metrics and tables; how they are drawn is in `plots.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from easylm_jax.report.plots import MOST_POINTS, Series, bar_chart, line_chart, swatch, thinned
from easylm_jax.report.read import RL_KINDS, SUPERVISED_KINDS, RunData, StageData, number
from easylm_jax.report.tables import decimal, duration, rollout_speed, with_error

Z95 = 1.959964
PANEL = {"width": 400, "height": 220}
# Of RL runs: metric, title, unit of the axis, scale.
HEALTH = (
    ("kl", "KL to the reference", "nats per answer", 1.0),
    ("entropy", "Entropy of the policy", "nats per token", 1.0),
    ("length", "Length of answers", "tokens", 1.0),
    ("ended", "Answers that ended", "%", 100.0),
    ("explained_variance", "Explained variance of returns", "share", 1.0),
    ("clip_fraction", "Tokens whose ratio was clipped", "%", 100.0),
    ("sampler_gap", "Sampler against trainer", "nats per token", 1.0),
    ("equal_groups", "Groups of equal rewards", "%", 100.0),
    ("staleness", "Age of the policy that wrote", "steps", 1.0),
    ("verifier_timeouts", "Verdicts that took too long", "calls", 1.0),
)
TIME_PARTS = ("sampling", "scoring", "training steps", "compiling, evaluation, saving, other")
TIME_COLOURS = (0, 1, 2, 5)


@dataclasses.dataclass(frozen=True)
class Figure:
    """An SVG and the words below it."""

    svg: str
    caption: str = ""


def colours(run: RunData) -> dict[str, int]:
    """One colour for each method, the same in all figures: the table's in its order, then those of the RL stages."""
    methods = [row["method"] for table, _ in run.tables for row in table["rows"]]
    labels = dict.fromkeys([*methods, *run.methods(run.of_kind(RL_KINDS))])
    return {label: i for i, label in enumerate(labels)}


def results(run: RunData) -> list[Figure]:
    """Score against divergence for the methods of each table; bars of the scores where no divergence was measured."""
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
        svg = line_chart(series, x_label="KL to the reference, nats per answer", y_label="held-out score, %",
                         legend=False, width=720, height=400)  # fmt: skip
        figures.append(Figure(svg, "Held-out score against divergence from the reference; bars are 95 % intervals."))
    return [figure for figure in figures if figure.svg]


def _method_point(row: dict, colour: int) -> Series:
    score, kl, error = 100 * row["score"], row["kl"], number(row.get("kl_stderr")) or 0.0
    low, high = row.get("interval") or (row["score"], row["score"])
    return Series(row["method"], [(kl, score)], colour, "marks", [(100 * low, 100 * high)],
                  [(kl - Z95 * error, kl + Z95 * error)], labels=True)  # fmt: skip


def along_kl(run: RunData) -> list[Figure]:
    """What each RL run gained for the divergence it spent: the reward's own score, one figure for each reward (their
    units differ), and the held-out score, which all share."""
    paint, figures = colours(run), []
    for judge, stages in _by_reward(run).items():
        series = _paths(run, stages, paint, lambda stage: stage.points("score", x="kl"))
        svg = line_chart(series, x_label="KL to the reference, nats per answer", y_label="score of the rollout",
                         title=f"Score by {judge}", legend=False, **PANEL)  # fmt: skip
        figures.append(Figure(svg, "From step to step along each run; the dot is its last step."))
    series = _paths(run, run.of_kind(RL_KINDS), paint, _held_out_by_kl)
    svg = line_chart(series, x_label="KL to the reference, nats per answer", y_label="held-out score, %",
                     title="Held-out score", legend=False, **PANEL)  # fmt: skip
    figures.append(Figure(svg, "Greedy answers to held-out prompts; one line for each seed."))
    return [figure for figure in figures if figure.svg]


def _by_reward(run: RunData) -> dict[str, list[StageData]]:
    """RL stages by what judges them while they train: scores of two judges have no unit in common."""
    grouped: dict[str, list[StageData]] = {}
    for stage in run.of_kind(RL_KINDS):
        reward = stage.config.get("reward") or {}
        kinds = {"model": "reward model", "verifier": "verifier"}
        judges = [f"{kind} {reward[name]}" for name, kind in kinds.items() if reward.get(name)]
        grouped.setdefault(" and ".join(judges) or "the reward", []).append(stage)
    return grouped


def _held_out_by_kl(stage: StageData) -> list[tuple[float, float]]:
    lines = [line for line in stage.validations("validation_score") if number(line.get("kl")) is not None]
    return [(line["kl"], 100 * line["validation_score"]) for line in lines]


def _paths(run: RunData, stages: Sequence[StageData], paint: dict[str, int], points: Callable) -> list[Series]:
    """A line for each stage in its method's colour, with its end marked."""
    return [
        Series(method if i == 0 else stage.name, thinned(points(stage), 120), paint[method], "line", in_legend=i == 0,
               end=True)
        for method, seeds in run.methods(stages).items() for i, stage in enumerate(seeds)
    ]  # fmt: skip


def held_out(run: RunData) -> list[Figure]:
    """Held-out score against step for RL stages: a pale line for each seed, a full one for their mean."""
    paint, series = colours(run), []
    for method, stages in run.methods(run.of_kind(RL_KINDS)).items():
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
        spread = [Z95 * 100 * sum(own[x] for own in errors.values()) / len(errors) for x, _ in mean]
        intervals = [(y - wide, y + wide) for (_, y), wide in zip(mean, spread, strict=True)]
        series.append(Series(_named(method, stages), mean, paint[method], "both", intervals))
    svg = line_chart(series, x_label="rollout step", y_label="held-out score, %", width=720, height=360)
    several = " Pale lines are single seeds, full ones their mean." if any(one.look == "thin" for one in series) else ""
    caption = f"Greedy answers to held-out prompts. Bars: 95 % interval from the number of prompts alone.{several}"
    return [Figure(svg, caption)] if svg else []


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean over curves at every x that all of them have."""
    tables = [dict(curve) for curve in curves if curve]
    if not tables or len(tables) < len(curves):
        return []
    return [(x, sum(t[x] for t in tables) / len(tables)) for x in tables[0] if all(x in t for t in tables)]


def _named(method: str, stages: Sequence[StageData]) -> str:
    return f"{method} (mean of {len(stages)})" if len(stages) > 1 else method


def health(run: RunData) -> list[Figure]:
    """Small multiples over the steps of the RL stages."""
    figures = []
    for judge, stages in _by_reward(run).items():
        series = _over_steps(run, stages, "reward", 1.0)
        title = f"Reward, from {judge}"
        figures.append(_panel(series, title, "reward"))
    for metric, title, unit, scale in HEALTH:
        series = _over_steps(run, run.of_kind(RL_KINDS), metric, scale)
        figures.append(_panel(series, title, unit))
    return [figure for figure in figures if figure.svg]


def _panel(series: Sequence[Series], title: str, unit: str) -> Figure:
    return Figure(line_chart(series, x_label="rollout step", y_label=unit, title=title, legend=False, **PANEL))


def key(run: RunData) -> list[tuple[str, str]]:
    """The legend that the panels of RL stages share: (SVG of the line, method)."""
    paint, methods = colours(run), run.methods(run.of_kind(RL_KINDS))
    return [(swatch(Series(method, (), paint[method])), method) for method in methods]


def _over_steps(run: RunData, stages: Sequence[StageData], metric: str, scale: float) -> list[Series]:
    """A metric of each method: a pale line for each seed, a full one for their mean."""
    paint, series = colours(run), []
    for method, seeds in run.methods(stages).items():
        curves = [[(x, scale * y) for x, y in stage.points(metric)] for stage in seeds]
        if len(seeds) > 1:
            series += [Series(stage.name, thinned(curve), paint[method], "thin", in_legend=False)
                       for stage, curve in zip(seeds, curves, strict=True)]  # fmt: skip
        series.append(Series(_named(method, seeds), thinned(mean_curve(curves)), paint[method]))
    return series


def losses(run: RunData) -> list[Figure]:
    """Training and held-out loss of the supervised stages, seeds of one method together."""
    figures = []
    for method, stages in run.methods(run.of_kind(SUPERVISED_KINDS)).items():
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
    """A held-out loss that only `done.json` knows."""
    loss, step = number(stage.values.get("validation_loss")), number(stage.values.get("validation_step"))
    return [] if loss is None or step is None else [(step, loss)]


def time(run: RunData) -> list[Figure]:
    """Where the time went, stage by stage, and how fast the RL stages sampled."""
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
    speeds = [(stage.name, rollout_speed(stage)) for stage in run.of_kind(RL_KINDS)]
    fast = [(name, [speed]) for name, speed in speeds if speed is not None]
    rollouts = bar_chart(fast, ["sampling"], x_label="answers a second while sampling", title="Rollouts per second",
                         values=[decimal(speed, 1, 1) for _, (speed,) in fast])  # fmt: skip
    return [figure for figure in (Figure(svg), Figure(rollouts)) if figure.svg]


def averaged(run: RunData) -> str:
    """A sentence where curves show means of neighbouring steps; "" where every step is drawn."""
    longest = max((len(stage.metrics) for stage in run.stages), default=0)
    if longest <= MOST_POINTS:
        return ""
    return f"Curves of more than {MOST_POINTS} steps are drawn as means of neighbouring steps."
