"""Compiles the programs of several stages within a time, and estimates those that it did not come to.

First one program of each kind is compiled (an update, a forward pass, a prefill, a block of decode steps), then the
others. What is not compiled in time is estimated from the compiled program of its kind with the nearest number of
FLOPs: seconds in proportion to FLOPs, or to the bytes that it must read, and the same peak beside its own resident
arrays. Compiled programs are cached, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from easylm_jax.config import Recipe
from easylm_jax.plan import pods, report, topology
from easylm_jax.plan.report import Planner
from easylm_jax.plan.sweep import Point
from easylm_jax.plan.topology import Topology

Outline = dict[str, Any]  # `report.Planner.outlines`
Row = dict[
    str, Any
]  # `report.Row.as_json`, and for an estimate `estimated_from`, the program that it is estimated from
Task = tuple[int, str]  # the index of a point, and the name of a program

_KINDS = {
    "train": "update", "policy": "update", "value": "update", "score": "forward", "values": "forward",
    "reward": "forward", "reference": "forward",
}  # fmt: skip
_LONGEST_FIRST = ("train", "policy", "value")  # programs that take the compiler longest


def kind_of(program: str) -> str:
    """The kind of a program: "update", "forward", or its name without whose it is, such as "decode"."""
    name = program.split()[-1]
    return _KINDS.get(name, name)


def ranked(tasks: Sequence[Task], outlines: dict[int, list[Outline]]) -> list[Task]:
    """Tasks in the order in which they are compiled: of each kind the first, then of each kind the second, …, among
    these the longest first, and last what does not run in a step."""
    seen: Counter[str] = Counter()
    order = {}
    for task in tasks:
        number, name = task
        runs = next(one["runs_per_step"] for one in outlines[number] if one["program"] == name)
        order[task] = (runs == 0, seen[kind_of(name)], name not in _LONGEST_FIRST)
        seen[kind_of(name)] += runs > 0
    return sorted(tasks, key=order.__getitem__)


def run(found: Sequence[Point], recipes: Sequence[Recipe], planner: Planner, jobs: int, seconds: float | None) -> None:
    """Fills the programs of all points; `recipes` are theirs. What cannot be compiled is in a point's `refused`.

    Args:
        jobs: processes.
        seconds: the time for it; None compiles everything.
    """
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    others = set(multiprocessing.active_children())
    # Forking would lose the threads of the compiler.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), topology.configure_compiler_env)
    quiet = dataclasses.replace(planner, log=report.no_log)
    active = [number for number, point in enumerate(found) if point.refused is None]
    done: dict[Task, Row | str] = {}
    try:
        asked = {pool.submit(_outlines, found[number], recipes[number], quiet): number for number in active}
        outlines: dict[int, list[Outline]] = {}
        for number, result in _finished(asked, deadline):
            if isinstance(result, str):
                found[number].refused = result
            else:
                outlines[number] = result
        tasks = [(number, one["program"]) for number in sorted(outlines) for one in outlines[number]]
        planner.log(f"{len(tasks)} programs to compile, {jobs} at once")
        futures = {
            pool.submit(_compile, found[number], recipes[number], name, quiet): (number, name)
            for number, name in ranked(tasks, outlines)
        }
        for task, result in _finished(futures, deadline):
            done[task] = result
            planner.log(f"{found[task[0]].stage.name}: {task[1]} compiled")
            _say_if_whole(found[task[0]], [done.get(other) for other in tasks if other[0] == task[0]], planner)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # of what was not compiled in time nothing is needed; it would print a stack for SIGTERM
            process.join(10)
    for number in active:
        if found[number].refused is None:
            _fill(found[number], number, outlines.get(number), done, "not compiled in time")


def _finished(futures: dict[Future[Any], Any], deadline: float) -> Any:
    """(what it was for, result or error in one line) of each future that is done before the deadline."""
    try:
        left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        for future in concurrent.futures.as_completed(futures, left):
            failure = future.exception()  # the process died
            yield futures[future], pods.one_line(failure)[:300] if failure else future.result()
    except TimeoutError:
        return


def _outlines(point: Point, recipe: Recipe, planner: Planner) -> list[Outline] | str:
    try:
        return planner.outlines(point.stage, recipe, point.topology, point.topology.devices())
    except Exception as error:  # the other stages are planned nevertheless
        return pods.one_line(error)[:300]


def _compile(point: Point, recipe: Recipe, name: str, planner: Planner) -> Row | str:
    """One program of a point as JSON, or the error in one line."""
    try:
        rows = planner.plan(point.stage, recipe, point.topology, point.topology.devices(), only=name)
        return rows[0].as_json()
    except Exception as error:  # the other programs are compiled nevertheless
        return pods.one_line(error)[:300]


def _say_if_whole(point: Point, rows: Sequence[Row | str | None], planner: Planner) -> None:
    """Says the result of a stage as soon as all of its programs are compiled."""
    programs = [row for row in rows if isinstance(row, dict)]
    whole = dataclasses.replace(point, programs=programs)
    if len(programs) == len(rows) and whole.fits:
        planner.log(f"{point.stage.name}: fits with {whole.gib:.1f} GiB, {report.span(*whole.seconds)} s a step")


def _fill(point: Point, number: int, outlines: list[Outline] | None, done: dict[Task, Row | str], late: str) -> None:
    """Sets a point's programs, compiled or estimated, or why there are none."""
    if outlines is None:
        point.refused, point.undecided = f"its programs are {late}; the same command goes on", True
        return
    known = [row for row in done.values() if isinstance(row, dict) and row["fits"]]
    for outline in outlines:
        result = done.get((number, outline["program"])) or estimated(outline, known, point.topology)
        if isinstance(result, dict):
            point.programs.append(result)
        elif result is not None:
            point.refused = result
        else:
            point.refused, point.undecided = f"{outline['program']} is {late}; the same command goes on", True


def estimated(outline: Outline, known: Sequence[Row], pod: Topology) -> Row | None:
    """A program that is not compiled, from the compiled one of its kind with the nearest FLOPs; None if none is."""
    alike = [row for row in known if kind_of(row["program"]) == kind_of(outline["program"]) and row["flops"]]
    if not alike:
        return None
    near = min(alike, key=lambda row: abs(math.log(outline["flops"] / row["flops"])))
    scale = outline["flops"] / near["flops"]
    if outline["floor_seconds"] and near["floor_seconds"]:  # as long as reading takes, of one run each
        runs = near["runs_per_step"] / outline["runs_per_step"]
        scale = outline["floor_seconds"] / near["floor_seconds"] * runs
    peak = near["peak_bytes_per_device"]
    need = peak + sum(outline["resident_bytes_per_device"].values())
    per_run = [seconds / near["runs_per_step"] for seconds in near["step_seconds"]] if near["runs_per_step"] else [0, 0]
    return {
        **near, **outline, "fits": need <= pod.chip.memory, "bytes_per_chip": need * pod.chip.per_chip,
        "peak_bytes_per_device": peak, "step_seconds": [scale * one * outline["runs_per_step"] for one in per_run],
        "seconds": {name: scale * one for name, one in near["seconds"].items()}, "hottest": [],
        "estimated_from": f"{near['stage']}: {near['program']}",
    }  # fmt: skip
