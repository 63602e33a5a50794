"""For a stage that does not fit its pod: searches, by compiling, for the closest settings with which it fits.

First on the requested pod and mesh: more rematerialisation, smaller micro-batches, fewer decode slots, decoding weights
sharded over more devices, optimizer moments in bfloat16 or in host memory, whichever applies to the program that does
not fit. Then on other meshes of the same pod, then on larger pods, each with the same changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from easylm_jax.config import Recipe, Stage, fields
from easylm_jax.plan import shapes, topology
from easylm_jax.plan.report import Planner
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.mesh import batch_split, make_mesh, parse_mesh
from easylm_jax.train import algorithms
from models.errors import UserError

_DECODING = ("prefill", "decode")
_DECODE_MESH = "decode_mesh"  # the only one of the changed fields that belongs to the recipe
_MESHES = ("fsdp=-1", "fsdp=-1,tp=2", "fsdp=-1,tp=4", "fsdp=-1,tp=8")


def suggest_settings(stage: Stage, recipe: Recipe, pod: Topology, planner: Planner) -> tuple[str, ...] | None:
    """Arguments of `easylm plan` with which a stage fits (`--topology`, `mesh=…`, `<stage>.<field>=…`), as close as
    possible to its own settings; None if it fits with none of those tried."""
    for candidate, mesh in _candidates(recipe, pod):
        remeshed = dataclasses.replace(recipe, mesh=mesh)
        try:
            changed = _search(stage, remeshed, candidate, planner)
        except UserError as error:  # rows or heads do not divide over this mesh
            planner.log(f"{stage.name}: {error}")
            continue
        if changed is not None:
            options = [] if candidate == pod else [f"--topology {candidate.name}"]
            return (*options, *settings(stage, remeshed, changed)[mesh == recipe.mesh :])
    return None


def settings(stage: Stage, recipe: Recipe, changed: dict[str, Any]) -> list[str]:
    """The overrides as they are given on the command line: the mesh, and changed fields of the stage."""
    names = {name: name if name == _DECODE_MESH else f"{stage.name}.{name}" for name in changed}
    return [f"mesh={recipe.mesh}", *(f"{names[name]}={value}" for name, value in changed.items())]


def _candidates(recipe: Recipe, pod: Topology) -> Iterator[tuple[Topology, str]]:
    """The (pod, mesh) to try: the pod with its mesh, with other meshes, then larger pods of the same generation."""
    tried = {_mesh_sizes(recipe.mesh, pod)}
    yield pod, recipe.mesh
    if pod.chip.platform == "gpu":
        larger = [Topology(pod.chip, (8,), 2**i) for i in range(8) if 8 * 2**i > pod.chips]
    else:
        sizes = [shape for shape in topology.sizes(pod.chip) if math.prod(shape) > pod.chips // pod.slices]
        larger = [Topology(pod.chip, shape, pod.slices) for shape in sizes]
    for candidate in (pod, *larger):
        for mesh in (recipe.mesh, *_MESHES):
            try:
                axes = _mesh_sizes(mesh, candidate)
            except UserError:  # the mesh fits only the requested pod
                continue
            if axes not in tried:
                tried.add(axes)
                yield candidate, mesh


def _mesh_sizes(mesh: str, pod: Topology) -> tuple[Any, ...]:
    return pod.name, *parse_mesh(mesh, pod.count).values()


def _search(stage: Stage, recipe: Recipe, pod: Topology, planner: Planner) -> dict[str, Any] | None:
    """The changes of fields with which a stage fits this pod and mesh; None if no change helps."""
    devices = pod.devices()
    split = batch_split(make_mesh(recipe.mesh, devices))
    changed: dict[str, Any] = {}
    while True:
        planner.log(f"{stage.name}: trying {' '.join([pod.name, *settings(stage, recipe, changed)])}")
        new_stage, new_recipe = with_changes(stage, recipe, changed)
        over: str | None = "resident"
        if planner.resident_fits(new_stage, new_recipe, pod, devices):
            rows = planner.plan(new_stage, new_recipe, pod, devices, until_over=True)
            if rows and rows[-1].fits:
                return changed
            over = rows[-1].program.name if rows else None
        change = None if over is None else _next_change(new_stage, new_recipe, split, over)
        if change is None:
            return None
        changed |= change


def with_changes(stage: Stage, recipe: Recipe, changed: dict[str, Any]) -> tuple[Stage, Recipe]:
    """A stage with fields set by their dotted paths, and the recipe with that stage."""
    new = stage
    for name, value in changed.items():
        if name == _DECODE_MESH:
            recipe = dataclasses.replace(recipe, decode_mesh=value)
        else:
            new = fields.override(new, name, str(value))
    stages = tuple(new if other.name == stage.name else other for other in recipe.stages)
    return new, dataclasses.replace(recipe, stages=stages)


def _next_change(stage: Any, recipe: Recipe, split: int, over: str) -> dict[str, Any] | None:
    """The next change that may reduce the memory of the program named `over`, or of "resident" arrays; None if none."""
    if over == "weights":  # the decoding weights, replicated over the batch axes
        return _shard_weights(recipe)
    if over.endswith(_DECODING):
        return _fewer_slots(stage, split) or _shard_weights(recipe) or _smaller_moments(stage)
    if over != "resident" and stage.trains:
        if stage.compute.remat != "full":
            return {"compute.remat": "full"}
        rows = stage.rows_per_update // split
        accumulate = next((n for n in range(stage.accumulate + 1, rows + 1) if rows % n == 0), None)
        if accumulate is not None:
            return {"accumulate": accumulate}
    return _smaller_moments(stage)


def _shard_weights(recipe: Recipe) -> dict[str, Any] | None:
    """Shards the decoding weights over twice as many devices."""
    before = _MESHES.index(recipe.decode_mesh) if recipe.decode_mesh in _MESHES else 0
    return {_DECODE_MESH: _MESHES[before + 1]} if before + 1 < len(_MESHES) else None


def _fewer_slots(stage: Any, split: int) -> dict[str, Any] | None:
    if not stage.responses_per_step:
        return None
    slots = min(stage.sampling.slots, stage.responses_per_step)
    half = slots // 2 // split * split
    return {"sampling.slots": half} if 0 < half < slots else None


def _smaller_moments(stage: Stage) -> dict[str, Any] | None:
    """Optimizer moments in bfloat16 (the second only if b2 ≤ 0.99), then in host memory; also the value model's."""
    if not shapes.is_training(stage):
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
