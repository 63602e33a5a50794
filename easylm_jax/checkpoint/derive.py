"""Runs the stages `Average`, `Upcycle` and `AddVision`: a checkpoint that is computed from others, array by array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from easylm_jax.checkpoint import arrays, hub, load, store, tools
from easylm_jax.checkpoint.convert import from_hf
from easylm_jax.config.derive import AddVision, Average, OfOneModel, Upcycle
from easylm_jax.config.workspace import Workspace
from easylm_jax.runtime import processes
from easylm_jax.runtime.processes import log_once
from models import trees
from models.config import DecoderConfig
from models.hf.towers import read_tower
from models.molmo import connector, tower

_STD = 0.02  # of routers and of weights that are drawn anew (allenai/OLMoE, scripts/sparsify_ckpt_unsharded.py)
_PROJECTIONS = ("gate", "up", "down")


def average(stage: Average, workspace: Workspace) -> dict[str, Any]:
    """Runs an `Average` stage; returns its entries of `done.json`."""
    folder = workspace.folder(stage.name)
    parts = [_step_folder(workspace.model(name), folder / "parts" / str(i)) for i, name in enumerate(stage.ingredients)]
    step = max(store.read_manifest(part).step for part in parts)
    target = _fresh(folder, step)
    tools.average(parts, target)
    log_once(f"{stage.name}: the average of {', '.join(stage.ingredients)}")
    return {"step": step, "checkpoint": f"checkpoints/{step}", "average_of": [str(part) for part in parts]}


def upcycle(stage: Upcycle, workspace: Workspace) -> dict[str, Any]:
    """Runs an `Upcycle` stage; returns its entries of `done.json`."""
    return _of_one_model(
        stage, workspace, lambda dense, config: upcycled(dense, stage), lambda source: {"upcycled_from": str(source)},
        f"{stage.experts} experts, {stage.active} active, from {stage.init}",
    )  # fmt: skip


def _of_one_model(
    stage: OfOneModel,
    workspace: Workspace,
    made: Callable[[dict[str, np.ndarray], DecoderConfig], dict[str, np.ndarray]],
    origin: Callable[[Path], dict[str, Any]],
    said: str,
) -> dict[str, Any]:
    """Writes the checkpoint that `made` computes from the parameters of the stage's model and the new configuration;
    `origin` of the model's step folder is told in the checkpoint and in the entries of `done.json`."""
    folder = workspace.folder(stage.name)
    source = _step_folder(workspace.model(stage.init), folder / "parts" / "0")
    config = stage.derived(load.model_of(str(source)))
    names = [name for name in store.read_manifest(source).leaves if name.startswith("params.")]
    parameters = made(arrays.read_arrays(source, names), config)
    meta = {**tools.described(source), "model": dataclasses.asdict(config), **origin(source)}
    tools.write_params(_fresh(folder, 0), parameters, meta, step=0)
    log_once(f"{stage.name}: {said}")
    return {"step": 0, "checkpoint": "checkpoints/0", **origin(source)}


def upcycled(dense: Mapping[str, np.ndarray], stage: Upcycle) -> dict[str, np.ndarray]:
    """The parameters of the mixture, by name: those of the dense model with the feed-forward layers as experts."""
    random = np.random.default_rng(stage.seed)
    made = {name: array for name, array in dense.items() if ".mlp." not in name}
    for projection in _PROJECTIONS:
        kernel = dense[f"params.layers.mlp.{projection}.kernel"]  # [L, inputs, outputs]
        shape = (kernel.shape[0], stage.experts, *kernel.shape[1:])
        experts = np.broadcast_to(kernel[:, None], shape)
        if stage.noise:
            fresh = (_STD * random.standard_normal(shape, np.float32)).astype(kernel.dtype)
            experts = np.where(random.random(shape, np.float32) < stage.noise, fresh, experts)
        if stage.keep_scale and projection == "down":
            experts = experts * np.asarray(stage.experts / stage.active, kernel.dtype)
        made[f"params.layers.moe.{projection}.kernel"] = np.ascontiguousarray(experts)
    layers, width = dense["params.layers.mlp.gate.kernel"].shape[:2]
    router = _STD * random.standard_normal((layers, width, stage.experts), np.float32)
    made["params.layers.moe.router.kernel"] = router
    return made


def add_vision(stage: AddVision, workspace: Workspace) -> dict[str, Any]:
    """Runs an `AddVision` stage; returns its entries of `done.json`."""
    return _of_one_model(
        stage, workspace, lambda language, config: {**language, **_seeing(stage, config)},
        lambda source: {"vision_from": stage.tower}, f"{stage.init} sees with {stage.tower or 'a fresh tower'}",
    )  # fmt: skip


def _seeing(stage: AddVision, config: DecoderConfig) -> dict[str, np.ndarray]:
    """The parameters that are not the language model's, by name."""
    vision_key, connector_key, new_key = jax.random.split(jax.random.key(stage.seed), 3)
    parts = {
        "vision": (
            tower.init(stage.vision, vision_key) if stage.tower is None
            else read_tower(hub.resolve(stage.tower.removeprefix("hf:")), stage.vision)
        ),
        "connector": connector.init(stage.vision, config.width, connector_key),
        "embed": {"new": {"table": _STD * jax.random.normal(new_key, (stage.vision.extra_rows, config.width))}},
    }  # fmt: skip
    return {f"params.{name}": np.asarray(leaf) for name, leaf in trees.flatten(parts).items()}


def _step_folder(model: str, target: Path) -> Any:
    """The step folder of a model; one of the hub is converted to `target` first."""
    if not model.startswith("hf:"):
        return load.trained_step(model.removeprefix("run:"))
    if not store.committed_steps(target / "checkpoints"):
        from_hf(model, str(target))
    return store.resolve(target)


def _fresh(folder: Path, step: int) -> Path:
    """Where a stage's checkpoint is written; what an interrupted run left there is removed."""
    target = folder / "checkpoints" / str(step)
    if processes.is_first_process() and target.exists():
        store.remove_tree(target)
    processes.barrier(f"derive {folder.name}")
    return target
