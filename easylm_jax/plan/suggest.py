"""Where a stage does not fit its pod: the nearest settings with which it does, found by compiling.

On the pod and the mesh that were asked for first: more computed again in the backward pass, smaller micro-batches,
fewer rows decoded at once, weights that write split over more devices, moments in bfloat16 or on the host, whichever
the program that does not fit can use. Then other meshes on the same pod, then larger pods, each with the same means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from easylm_jax.config import Recipe, Stage, fields
from easylm_jax.plan import topology
from easylm_jax.plan.report import Planner
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.mesh import batch_split, make_mesh, parse_mesh
from easylm_jax.train import algorithms
from models.errors import UserError

_WRITING = ("prefill", "decode")
_WRITES_ON = "decode_mesh"  # of what is changed, the one that is the recipe's
_SPLITS = ("fsdp=-1", "fsdp=-1,tp=2", "fsdp=-1,tp=4", "fsdp=-1,tp=8")


def nearest(stage: Stage, recipe: Recipe, pod: Topology, planner: Planner) -> tuple[str, ...] | None:
    """Arguments of `easylm plan` with which a stage fits (`--topology`, `mesh=…`, `<stage>.<field>=…`), as near as can
    be to what it has; None where nothing that is tried does."""
    for place, mesh in _places(recipe, pod):
        moved = dataclasses.replace(recipe, mesh=mesh)
        try:
            changed = _on(stage, moved, place, planner)
        except UserError as error:  # rows or heads do not divide over this mesh
            planner.say(f"{stage.name}: {error}")
            continue
        if changed is not None:
            told = [] if place == pod else [f"--topology {place.name}"]
            return (*told, *settings(stage, moved, changed)[mesh == recipe.mesh :])
    return None


def settings(stage: Stage, recipe: Recipe, changed: dict[str, Any]) -> list[str]:
    """As they are written behind the recipe: the meshes and fields of a stage."""
    names = {name: name if name == _WRITES_ON else f"{stage.name}.{name}" for name in changed}
    return [f"mesh={recipe.mesh}", *(f"{names[name]}={value}" for name, value in changed.items())]


def _places(recipe: Recipe, pod: Topology) -> Iterator[tuple[Topology, str]]:
    """Where to try: the pod with its mesh, with other meshes, then larger pods of the generation."""
    tried = {_same(recipe.mesh, pod)}
    yield pod, recipe.mesh
    if pod.chip.platform == "gpu":
        larger = [Topology(pod.chip, (8,), 2**i) for i in range(8) if 8 * 2**i > pod.chips]
    else:
        shapes = [shape for shape in topology.sizes(pod.chip) if math.prod(shape) > pod.chips // pod.slices]
        larger = [Topology(pod.chip, shape, pod.slices) for shape in shapes]
    for place in (pod, *larger):
        for mesh in (recipe.mesh, *_SPLITS):
            try:
                sizes = _same(mesh, place)
            except UserError:  # its sizes are those of the pod that was asked for
                continue
            if sizes not in tried:
                tried.add(sizes)
                yield place, mesh


def _same(mesh: str, pod: Topology) -> tuple[Any, ...]:
    return pod.name, *parse_mesh(mesh, pod.count).values()


def _on(stage: Stage, recipe: Recipe, pod: Topology, planner: Planner) -> dict[str, Any] | None:
    """The changes of fields with which a stage fits this pod and mesh; None where they do not help."""
    devices = pod.devices()
    split = batch_split(make_mesh(recipe.mesh, devices))
    changed: dict[str, Any] = {}
    while True:
        planner.say(f"{stage.name}: trying {' '.join([pod.name, *settings(stage, recipe, changed)])}")
        now, inside = with_changes(stage, recipe, changed)
        over = planner.least_over(now, inside, pod, devices)
        if over is None:
            rows = planner.plan(now, inside, pod, devices, until_over=True)
            if rows and rows[-1].fits:
                return changed
            over = rows[-1].planned.name if rows else None
        more = None if over is None else _next(now, inside, split, over)
        if more is None:
            return None
        changed |= more


def with_changes(stage: Stage, recipe: Recipe, changed: dict[str, Any]) -> tuple[Stage, Recipe]:
    """A stage with fields at dotted paths set, and the recipe with it."""
    now = stage
    for name, value in changed.items():
        if name == _WRITES_ON:
            recipe = dataclasses.replace(recipe, decode_mesh=value)
        else:
            now = fields.override(now, name, str(value))
    stages = tuple(now if other.name == stage.name else other for other in recipe.stages)
    return now, dataclasses.replace(recipe, stages=stages)


def _next(stage: Stage, recipe: Recipe, split: int, over: str) -> dict[str, Any] | None:
    """The next change that could help a program that does not fit, or "resident", what stays on the devices."""
    if over == "weights":  # whole on every part of the batch
        return _split_weights(recipe)
    if over.endswith(_WRITING):
        return _fewer_rows(stage, split) or _split_weights(recipe) or _smaller_moments(stage)
    if over != "resident" and stage.trains:
        if stage.compute.remat != "full":
            return {"compute.remat": "full"}
        rows = stage.rows_per_update // split
        cut = next((n for n in range(stage.accumulate + 1, rows + 1) if rows % n == 0), None)
        if cut is not None:
            return {"accumulate": cut}
    return _smaller_moments(stage)


def _split_weights(recipe: Recipe) -> dict[str, Any] | None:
    """Twice as many devices for a copy of the weights that write."""
    before = _SPLITS.index(recipe.decode_mesh) if recipe.decode_mesh in _SPLITS else 0
    return {_WRITES_ON: _SPLITS[before + 1]} if before + 1 < len(_SPLITS) else None


def _fewer_rows(stage: Stage, split: int) -> dict[str, Any] | None:
    if not stage.responses_per_step:
        return None
    slots = min(stage.sampling.slots, stage.responses_per_step)
    half = slots // 2 // split * split
    return {"sampling.slots": half} if 0 < half < slots else None


def _smaller_moments(stage: Stage) -> dict[str, Any] | None:
    """Moments in bfloat16, the second too where its decay lets it, then in the host's memory; of the value model as
    well."""
    if not stage.trains:
        return None
    changed: dict[str, Any] = {}
    for name, optimizer in stage.optimizers.items():
        has = algorithms.settings(optimizer.name)
        for moment in ("moment_dtype", *(["second_moment_dtype"] if optimizer.b2 <= 0.99 else [])):
            if moment in has and getattr(optimizer, moment) != "bfloat16":
                changed[f"{name}.{moment}"] = "bfloat16"
    if not changed:
        changed = {f"{name}.offload": True for name, optimizer in stage.optimizers.items() if not optimizer.offload}
    return changed or None
