"""Several runs as one HTML page: curves of one method in all runs share a figure, with a colour for each run."""

from __future__ import annotations

from easylm_jax.report import figures
from easylm_jax.report.compare import Comparison, Line, runs_table, settings_table, stage_tables
from easylm_jax.report.figures import Figure, Group
from easylm_jax.report.html import document, drawn, grid, responses, safe, table
from easylm_jax.report.numbers import duration
from easylm_jax.report.plots import COLOURS
from easylm_jax.report.tables import listed, side_by_side


def page(comparison: Comparison) -> str:
    """The whole page."""
    runs = comparison.runs.values()
    several = len(comparison.results) > 1
    results = "".join(table(side_by_side(group), several) for group in comparison.results)
    evaluations = [[(result.name, result.stage) for result in group if result.stage is not None]
                   for group in comparison.results]  # fmt: skip
    times = [(f"{stage.name}, {run}", stage) for run, stage in comparison.stages]
    sections = [
        ("Results", results + drawn(_scores(comparison))),
        ("Settings that differ", table(settings_table(comparison), heading=False)),
        ("Held-out score while training", drawn(figures.held_out(_all_groups(comparison)))),
        ("Reinforcement learning", "".join(_reinforced(comparison, line) for line in comparison.of_family("rl"))),
        ("Supervised stages: loss", grid(figures.losses(_loss_groups(comparison)))),
        ("Responses side by side", responses(evaluations)),
        ("Stages", "".join(table(it, it.title != "Stages") for it in stage_tables(comparison))),
        ("Time", drawn(figures.time(times))),
        ("Runs", table(runs_table(comparison), heading=False)),
    ]
    facts = [("runs", str(len(runs))), ("time", duration(sum(run.seconds for run in runs)))]
    open_runs = [name for name, run in comparison.runs.items() if run.unfinished or run.missing]
    warning = f"Not finished: {listed(open_runs)}." if open_runs else ""
    recipes = ", ".join(dict.fromkeys(run.recipe for run in runs))
    return document(f"Comparison of {listed(list(comparison.runs))}", recipes, facts, warning, sections)


def _colours(comparison: Comparison) -> dict[str, int]:
    return {name: i for i, name in enumerate(comparison.runs)}


def _groups(comparison: Comparison, line: Line) -> list[Group]:
    """A method in each run, in the colour of the run."""
    paint = _colours(comparison)
    return [Group(run, stages, paint[run]) for run, stages in line.stages.items()]


def _all_groups(comparison: Comparison) -> list[Group]:
    """All methods of RL in all runs, in the colour of the run; beyond the first method, lines are dashed."""
    lines = comparison.of_family("rl")
    return [
        Group(f"{line.method}, {group.name}", group.stages, group.colour % COLOURS + COLOURS * i)
        for i, line in enumerate(lines)
        for group in _groups(comparison, line)
    ]


def _loss_groups(comparison: Comparison) -> dict[str, list[Group]]:
    lines = [(line, _groups(comparison, line)) for line in comparison.of_family("train")]
    return {f"{line.method} ({groups[0].name})" if len(groups) == 1 else line.method: groups for line, groups in lines}


def _scores(comparison: Comparison) -> list[Figure]:
    paint = _colours(comparison)
    return [
        figure
        for group in comparison.results
        for figure in figures.scores([(f"{row['method']}, {result.name}", row, paint[result.name])
                                      for result in group for row in result.table["rows"]])
    ]  # fmt: skip


def _reinforced(comparison: Comparison, line: Line) -> str:
    """The panels of one method."""
    groups = _groups(comparison, line)
    panels, zero = figures.health(groups)
    shown = grid([*figures.along_kl(groups), *panels], figures.key(groups), zero)
    return f"<h3>{safe(line.method)}</h3>{shown}" if shown else ""
