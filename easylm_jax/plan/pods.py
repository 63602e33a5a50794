"""Plans many recipes, each on the pod it names, and writes the results as one page.

    recipes → stages → groups with the same programs → one plan per group, cached on disk → one table

Cached plans are valid only for the source code and the versions of the compiler and JAX that made them; an interrupted
run continues where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax

from easylm_jax.config import Recipe, Stage
from easylm_jax.plan import dedupe, report, topology
from easylm_jax.plan.report import Planner
from easylm_jax.plan.topology import Topology
from easylm_jax.rewards.pool import cores
from easylm_jax.runtime import files
from easylm_jax.runtime.chips import GIB
from models import reading
from models.errors import UserError

KINDS = {
    "train": lambda stage: stage.family == "train",
    "rl": lambda stage: stage.family == "rl",
    "generate": lambda stage: stage.family in ("synthesize", "evaluate"),
}


@dataclasses.dataclass
class Group:
    """Stages with the same programs, planned once.

    Attributes:
        members: (name of the recipe on the page, stage); the first one is planned for all.
        programs: the results as `report.Row.as_json`, once planned.
        error: one line, if it could not be planned.
        kept_cells: cells of the existing page, if this group is not planned again.
    """

    key: str
    recipe: Recipe
    topology: Topology
    members: list[tuple[str, Stage]]
    programs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    error: str | None = None
    kept_cells: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage:
        return self.members[0][1]

    @property
    def fits(self) -> bool:
        if self.kept_cells:
            return self.kept_cells[0] == "yes"
        return self.error is None and bool(self.programs) and all(program["fits"] for program in self.programs)


def default_jobs() -> int:
    """How many stages or programs to compile at once: each takes one core and up to 4 GiB."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores(), memory // (4 * GIB)))


def groups(recipes: Iterable[tuple[str, Recipe]]) -> list[Group]:
    """The stages that run on devices, of all recipes that name a pod, grouped by equal programs, in order."""
    found: dict[str, Group] = {}
    for name, recipe in recipes:
        if recipe.pod is None:
            continue
        pod = topology.parse(recipe.pod)
        for stage in recipe.stages:
            if not stage.compiles:
                continue
            try:
                key, error = dedupe.key(stage, recipe, pod), None
            except UserError as problem:
                key, error = f"{name}/{stage.name}", str(problem)
            group = found.setdefault(key, Group(key, recipe, pod, [], error=error))
            group.members.append((name, stage))
    return list(found.values())


def plan(found: Sequence[Group], planner: Planner, jobs: int = 1) -> None:
    """Plans every group that is not cached in the planner's folder, in `jobs` processes; a failure is recorded in its
    group, and the others are still planned."""
    log, cache = planner.log, planner.folder / "stages" / dedupe.versions()
    pending = [group for group in found if group.error is None and not _read(group, cache)]
    log(f"{len(found)} different stages, {len(found) - len(pending)} of them planned already")
    for number, (group, programs, error) in enumerate(_plan_all(pending, planner, jobs)):
        name = f"{group.members[0][0]}, {group.stage.name}"
        if error is not None:
            group.error = error
            log(f"{number + 1} of {len(pending)}: {name}: {error[:300]}")
            continue
        log(f"{number + 1} of {len(pending)}: {name} on {group.topology.name}")
        group.programs = programs
        cache.mkdir(parents=True, exist_ok=True)
        files.write_json(cache / f"{group.key}.json", programs)


PlanResult = tuple[Group, list[dict[str, Any]], str | None]  # a group, its programs, or an error


def _plan_all(pending: Sequence[Group], planner: Planner, jobs: int) -> Iterator[PlanResult]:
    """Yields each group as soon as it is planned."""
    if jobs == 1 or len(pending) < 2:
        yield from ((group, *_plan_group(group, planner)) for group in pending)
        return
    context = multiprocessing.get_context("spawn")  # forking would lose the threads of the compiler
    with ProcessPoolExecutor(min(jobs, len(pending)), context, initializer=topology.configure_compiler_env) as pool:
        quiet = dataclasses.replace(planner, log=report.no_log)
        futures = {pool.submit(_plan_group, group, quiet): group for group in pending}
        try:
            for future in as_completed(futures):
                failure = future.exception()  # the process died
                yield futures[future], *(([], one_line(failure)) if failure else future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _plan_group(group: Group, planner: Planner) -> tuple[list[dict[str, Any]], str | None]:
    try:
        rows = planner.plan(group.stage, group.recipe, group.topology, group.topology.devices())
        return [row.as_json() for row in rows], None
    except Exception as error:  # the other groups are planned nevertheless
        return [], one_line(error)
    finally:
        jax.clear_caches()  # hundreds of traced programs
        gc.collect()


def one_line(error: BaseException) -> str:
    """An error as one line; with its class unless it is one of the user."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _read(group: Group, cache: Path) -> bool:
    """Reads the cached programs of a group; False if there are none."""
    path = cache / f"{group.key}.json"
    if path.is_file():
        with contextlib.suppress(reading.Damaged):  # planned again, as if it were not there
            group.programs = reading.read_json(path, list[reading.Object])
    return bool(group.programs)


@dataclasses.dataclass(frozen=True)
class PublishedDuration:
    """How long a stage took according to its paper: `text` is for example "6 h on 32 H100", `source` the citation."""

    recipe: str
    stage: str
    text: str
    source: str


_RESULTS = ("fits", "GiB per device", "step time, s", "MFU", "steps", "hours", "chip-hours")
HEAD = ("stage", "pod", "mesh", *_RESULTS, "duration in the paper", "recipes")
_KEY_LENGTH = 12  # of a group's key, which is in an HTML comment at the end of its row
_KEY = re.compile(rf"<!-- ([0-9a-f]{{{_KEY_LENGTH}}}) -->")


def keep_rows(found: Sequence[Group], text: str, name: str) -> list[Group]:
    """Sets `kept_cells` of the groups that the existing page `text` (file `name`) has a row for, and returns these.

    Raises:
        UserError: the page was made with other versions of JAX or the compiler.
    """
    rows = {key: line for line in text.splitlines() for key in _KEY.findall(line)}
    if rows and f"with {report.versions()};" not in text:
        raise UserError(f"{name} was made with other versions than {report.versions()}; plan all recipes again")
    kept = [group for group in found if group.key[:_KEY_LENGTH] in rows]
    for group in kept:
        cells = re.split(r"(?<!\\) \| ", rows[group.key[:_KEY_LENGTH]].strip().strip("|").strip())
        group.kept_cells = tuple(cell.replace("\\|", "|") for cell in cells[3 : 3 + len(_RESULTS)])
    return kept


def page(
    found: Sequence[Group], durations: Sequence[PublishedDuration], command: str, missing: Sequence[Group] = ()
) -> str:  # fmt: skip
    """The page in Markdown: one table per folder of recipes, one row per group, and the groups that are `missing`."""
    stages = sum(len(group.members) for group in found)
    failed = [group for group in found if not group.fits]
    verdict = "All fit." if not failed else f"{len(failed)} of the different ones do not fit or could not be planned."
    lines = [
        "# Every recipe on its pod",
        "",
        f"Written by `{command}`, with {report.versions()}; do not edit. {stages} stages, {len(found)} different ones. "
        f"{verdict}",
        "",
        "GiB per device: the program with the highest peak memory, and the memory that the compiler allows. Seconds "
        "and hours are projections ([Planning](plan.md)), lowest and highest; nothing was measured. A step of "
        "reinforcement learning generates, scores and trains on one rollout; a step of best-of-N, majority vote and "
        "evaluation generates one batch of responses (an evaluation: with its first entry's model, on the task with "
        "the longest sequences). MFU is that of training. If the number of steps depends on data of unknown size, "
        "hours are per 1,000 steps.",
    ]
    folders = dict.fromkeys(_folder(group) for group in found)
    for folder in folders:
        lines += ["", f"## {folder}", "", _line(HEAD), _line(["---"] * len(HEAD))]
        lines += [_row(group, durations) for group in found if _folder(group) == folder]
    if missing:
        lines += ["", "## Not planned yet", "", *map(not_planned, missing)]
    members = [member for group in found for member in group.members]
    cited = [one for one in durations if any(_applies_to(one, *member) for member in members)]
    sources = dict.fromkeys(f"{one.recipe}, {one.stage}: {one.source}" for one in cited)
    if sources:
        lines += ["", "## Sources of the papers' durations", "", *(f"- {source}" for source in sources)]
    return "\n".join(lines) + "\n"


def not_planned(group: Group) -> str:
    """The line of a group without a row."""
    return f"- {_folder(group)}/{_names(group.members)}"


def _folder(group: Group) -> str:
    return group.members[0][0].partition("/")[0]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(group: Group, durations: Sequence[PublishedDuration]) -> str:
    *cells, stages = _cells(group, durations)
    return _line([*cells, f"{stages} <!-- {group.key[:_KEY_LENGTH]} -->"])


def _cells(group: Group, durations: Sequence[PublishedDuration]) -> list[str]:
    head = [report.described(group.stage, group.recipe), group.topology.name, _meshes(group)]
    published = dict.fromkeys(one.text for one in durations for member in group.members if _applies_to(one, *member))
    tail = ["; ".join(published), _names(group.members)]
    if group.kept_cells:
        return [*head, *group.kept_cells, *tail]
    if group.error is not None:
        return [*head, f"not planned: {group.error[:160]}", *["–"] * 6, *tail]
    per_chip, limit = group.topology.chip.per_chip, group.topology.chip.memory
    needs = [program["bytes_per_chip"] for program in group.programs]
    most = None if None in needs else max(needs) / per_chip / GIB
    memory = f"{'more' if most is None else f'{most:.1f}'} of {limit / GIB:.1f}"
    if not group.fits:
        return [*head, "**no**", memory, *["–"] * 5, *tail]
    step = [sum(program["step_seconds"][end] for program in group.programs) for end in (0, 1)]
    mfu = group.programs[0]["mfu"] if group.stage.trains else None
    return [
        *head, "yes", memory, report.span(*step), "–" if mfu is None else f"{100 * mfu:.0f} %",
        *_length(group, step), *tail,
    ]  # fmt: skip


def _meshes(group: Group) -> str:
    """The meshes that the stage uses."""
    mesh, decode_mesh = group.recipe.mesh, group.recipe.decode_mesh
    if decode_mesh is None or not group.stage.generates:
        return mesh
    return f"{mesh}, generates on {decode_mesh}" if group.stage.trains else decode_mesh


def _length(group: Group, step: Sequence[float]) -> list[str]:
    """Steps, hours and chip-hours, from the shortest to the longest stage of the group."""
    if not group.stage.trains:
        return ["–"] * 3
    counts = {report.steps_of(stage) for _, stage in group.members if stage.trains}
    known = sorted(steps for steps in counts if steps is not None) or [1000]
    hours = [known[0] * step[0] / 3600, known[-1] * step[1] / 3600]
    text = f"{known[0]:,}" if known[0] == known[-1] else f"{known[0]:,}–{known[-1]:,}"
    if None in counts:
        text = f"{text}, unknown" if len(counts) > 1 else "per 1,000"
    return [text, report.span(*hours), report.span(*(group.topology.chips * one for one in hours))]


def _applies_to(duration: PublishedDuration, recipe: str, stage: Stage) -> bool:
    return recipe == duration.recipe and stage.name == duration.stage


def _names(members: Sequence[tuple[str, Stage]]) -> str:
    """The recipes with the names of their stages, or with the number of stages if there are more than two."""
    by_recipe: dict[str, list[str]] = {}
    for recipe, stage in members:
        by_recipe.setdefault(recipe, []).append(stage.name)
    return "; ".join(
        f"{recipe.rpartition('/')[2]}: {', '.join(names) if len(names) < 3 else f'{len(names)} stages'}"
        for recipe, names in by_recipe.items()
    )
