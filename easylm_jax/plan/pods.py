"""Many recipes planned at once, each on the pod it names, and the page that says what came out.

    recipes → stages → those alike together → one plan for each, kept on disk → one table

What is kept is valid for the source, the compiler and JAX that made it; a run that was cut short goes on where it was.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
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
from easylm_jax.runtime import files
from easylm_jax.runtime.chips import GIB
from models.errors import UserError

KINDS = {
    "train": lambda stage: stage.family == "train",
    "rl": lambda stage: stage.family == "rl",
    "generate": lambda stage: stage.family in ("synthesize", "evaluate"),
}


@dataclasses.dataclass
class Group:
    """Stages that are alike: `members` are (the recipe's name on the page, stage); the first stands for all of them.

    `programs` as `report.Row.as_json` gives them, once planned; `error` in one line where that could not be done;
    `told`, the cells that a page has for it from an earlier time.
    """

    key: str
    recipe: Recipe
    topology: Topology
    members: list[tuple[str, Stage]]
    programs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    error: str | None = None
    told: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage:
        return self.members[0][1]

    @property
    def fits(self) -> bool:
        if self.told:
            return self.told[0] == "yes"
        return self.error is None and bool(self.programs) and all(one["fits"] for one in self.programs)


def groups(recipes: Iterable[tuple[str, Recipe]]) -> list[Group]:
    """The stages that run on devices, of recipes that name a pod, those alike together, in order."""
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
    """Plans every group that is not kept in the planner's folder yet, `jobs` at a time, each in a process of its own;
    what fails is told in its group and the rest goes on."""
    say, kept = planner.say, planner.folder / "stages" / dedupe.versions()
    waiting = [group for group in found if group.error is None and not _read(group, kept)]
    say(f"{len(found)} different stages, {len(found) - len(waiting)} of them planned already")
    for number, (group, programs, error) in enumerate(_planned(waiting, planner, jobs)):
        name = f"{group.members[0][0]}, {group.stage.name}"
        if error is not None:
            group.error = error
            say(f"{number + 1} of {len(waiting)}: {name}: {error[:300]}")
            continue
        say(f"{number + 1} of {len(waiting)}: {name} on {group.topology.name}")
        group.programs = programs
        kept.mkdir(parents=True, exist_ok=True)
        files.write_json(kept / f"{group.key}.json", programs)


Made = tuple[Group, list[dict[str, Any]], str | None]  # a group, its programs, or why there are none


def _planned(waiting: Sequence[Group], planner: Planner, jobs: int) -> Iterator[Made]:
    """Each group as soon as it is planned."""
    if jobs == 1 or len(waiting) < 2:
        yield from ((group, *_one(group, planner)) for group in waiting)
        return
    start = multiprocessing.get_context("spawn")  # the compiler has threads, which a forked process would lack
    with ProcessPoolExecutor(min(jobs, len(waiting)), start, initializer=topology.configure_compiler_env) as pool:
        silent = dataclasses.replace(planner, say=report.silent)
        asked = {pool.submit(_one, group, silent): group for group in waiting}
        try:
            for done in as_completed(asked):
                failed = done.exception()  # its process died
                yield asked[done], *(([], _told(failed)) if failed else done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(group: Group, planner: Planner) -> tuple[list[dict[str, Any]], str | None]:
    try:
        rows = planner.plan(group.stage, group.recipe, group.topology, group.topology.devices())
        return [row.as_json() for row in rows], None
    except Exception as error:  # whatever it is, the other recipes are planned all the same
        return [], _told(error)
    finally:
        jax.clear_caches()  # traced programs, of which there are hundreds
        gc.collect()


def _told(error: BaseException) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _read(group: Group, kept: Path) -> bool:
    path = kept / f"{group.key}.json"
    if path.is_file():
        group.programs = json.loads(path.read_text(encoding="utf-8"))
    return bool(group.programs)


@dataclasses.dataclass(frozen=True)
class Took:
    """What a paper says a stage took: `recipe` and `stage` name it, `text` such as "6 h on 32 H100"; `source`."""

    recipe: str
    stage: str
    text: str
    source: str


_TOLD = ("fits", "GiB of a device", "a step, s", "MFU", "steps", "hours", "chip-hours")
HEAD = ("trains", "pod", "mesh", *_TOLD, "the paper's own", "stages")
_SHOWN = 12  # letters of a group's key, which stand behind its row where no reader sees them
_KEY = re.compile(rf"<!-- ([0-9a-f]{{{_SHOWN}}}) -->")


def keep(found: Sequence[Group], text: str, name: str) -> list[Group]:
    """Of groups that were not planned, those that a page `text` (the file `name`) has a row for, with what it says.

    Raises:
        UserError: the page was made with another compiler.
    """
    rows = {key: line for line in text.splitlines() for key in _KEY.findall(line)}
    if rows and f"with {report.versions()};" not in text:
        raise UserError(f"{name} was made with other versions than {report.versions()}; plan all recipes anew")
    kept = [group for group in found if group.key[:_SHOWN] in rows]
    for group in kept:
        cells = re.split(r"(?<!\\) \| ", rows[group.key[:_SHOWN]].strip().strip("|").strip())
        group.told = tuple(cell.replace("\\|", "|") for cell in cells[3 : 3 + len(_TOLD)])
    return kept


def page(found: Sequence[Group], took: Sequence[Took], command: str) -> str:
    """The page in Markdown: one table for each folder of recipes, a row for each group."""
    stages = sum(len(group.members) for group in found)
    bad = [group for group in found if not group.fits]
    verdict = "All fit." if not bad else f"{len(bad)} of the different ones do not fit or could not be planned."
    lines = [
        "# Every recipe on its pod",
        "",
        f"Written by `{command}`, with {report.versions()}; do not edit. {stages} stages, {len(found)} different ones. "
        f"{verdict}",
        "",
        "GiB: the program that needs most, of what the compiler allows on a device. Seconds and hours are projections "
        "([Planning](plan.md)), lowest and highest; nothing was measured. A step of reinforcement learning writes, "
        "scores and trains one rollout; of best-of-N, votes and evaluations it answers one batch, an evaluation as its "
        "first entry's model on the task with the longest answers. MFU is that of training. Where the length of a "
        "stage depends on data of unknown size, hours are those of 1,000 steps.",
    ]
    folders = dict.fromkeys(_folder(group) for group in found)
    for folder in folders:
        lines += ["", f"## {folder}", "", _line(HEAD), _line(["---"] * len(HEAD))]
        lines += [_row(group, took) for group in found if _folder(group) == folder]
    cited = [one for one in took if any(_is_of(one, *member) for group in found for member in group.members)]
    sources = dict.fromkeys(f"{one.recipe}, {one.stage}: {one.source}" for one in cited)
    if sources:
        lines += ["", "## Sources of the papers' own times", "", *(f"- {source}" for source in sources)]
    return "\n".join(lines) + "\n"


def _folder(group: Group) -> str:
    return group.members[0][0].partition("/")[0]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(group: Group, took: Sequence[Took]) -> str:
    *cells, stages = _cells(group, took)
    return _line([*cells, f"{stages} <!-- {group.key[:_SHOWN]} -->"])


def _cells(group: Group, took: Sequence[Took]) -> list[str]:
    head = [report.described(group.stage, group.recipe), group.topology.name, _meshes(group)]
    known = dict.fromkeys(one.text for one in took for member in group.members if _is_of(one, *member))
    tail = ["; ".join(known), _names(group.members)]
    if group.told:
        return [*head, *group.told, *tail]
    if group.error is not None:
        return [*head, f"not planned: {group.error[:160]}", *["–"] * 6, *tail]
    per_chip, limit = group.topology.chip.per_chip, group.topology.chip.memory
    needs = [one["bytes_per_chip"] for one in group.programs]
    most = None if None in needs else max(needs) / per_chip / GIB
    memory = f"{'more' if most is None else f'{most:.1f}'} of {limit / GIB:.1f}"
    if not group.fits:
        return [*head, "**no**", memory, *["–"] * 5, *tail]
    step = [sum(one["step_seconds"][end] for one in group.programs) for end in (0, 1)]
    trained = group.programs[0]["mfu"] if group.stage.trains else None
    return [
        *head, "yes", memory, report.span(*step), "–" if trained is None else f"{100 * trained:.0f} %",
        *_length(group, step), *tail,
    ]  # fmt: skip


def _meshes(group: Group) -> str:
    """The shapes of the devices that the stage makes use of."""
    trained, written = group.recipe.mesh, group.recipe.decode_mesh
    if written is None or not group.stage.generates:
        return trained
    return f"{trained}, writes on {written}" if group.stage.trains else written


def _length(group: Group, step: Sequence[float]) -> list[str]:
    """Steps, hours and chip-hours of the shortest to the longest of the stages."""
    if not group.stage.trains:
        return ["–"] * 3
    known = {report.steps_of(stage) for _, stage in group.members if stage.trains}
    told = sorted(steps for steps in known if steps is not None)
    if not told:
        told = [1000]
    hours = [told[0] * step[0] / 3600, told[-1] * step[1] / 3600]
    steps = f"{told[0]:,}" if told[0] == told[-1] else f"{told[0]:,}–{told[-1]:,}"
    if None in known:
        steps = f"{steps}, unknown" if len(known) > 1 else "per 1,000"
    return [steps, report.span(*hours), report.span(*(group.topology.chips * one for one in hours))]


def _is_of(one: Took, recipe: str, stage: Stage) -> bool:
    return recipe == one.recipe and stage.name == one.stage


def _names(members: Sequence[tuple[str, Stage]]) -> str:
    """The recipes with the names of their stages, or how many where there are many."""
    by_recipe: dict[str, list[str]] = {}
    for recipe, stage in members:
        by_recipe.setdefault(recipe, []).append(stage.name)
    return "; ".join(
        f"{recipe.rpartition('/')[2]}: {', '.join(names) if len(names) < 3 else f'{len(names)} stages'}"
        for recipe, names in by_recipe.items()
    )
