"""Where a stage's first parameters come from: fresh ones, another stage, a Hugging Face folder; adapters on top.

A `Model` is a decoder and a way to load its parameters; `Start` makes the train state before step 0 of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import models
from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.checkpoint.load import ModelSource, fresh_config, model_from, model_of
from easylm_jax.config import Train
from easylm_jax.config.optimizer import OptimizerConfig
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import load_tokenizer
from easylm_jax.objectives.base import Objective
from easylm_jax.runtime import sharding
from easylm_jax.train import lora
from easylm_jax.train.optimizer import Optimizer, OptState
from easylm_jax.train.step import REPLICATED_STATE, State, new_state
from models import registry
from models.config import DecoderConfig
from models.errors import UserError

PyTree = Any


def stage_model(stage: Train, workspace: Workspace, mesh: jax.sharding.Mesh) -> ModelSource:
    """The model that a stage trains."""
    name = None if stage.init is None else workspace.model(stage.init)
    source = model_from(
        name, mesh, compute=stage.compute, shape=_fresh_shape(stage, workspace), dropout=stage.dropout,
        scalar_head=stage.scalar_head, seed=stage.seed, head_std=stage.head_std,
    )  # fmt: skip
    decoder, config = source.decoder, with_router_losses(stage, source.config)
    return dataclasses.replace(source, decoder=models.build(config, decoder.compute, decoder.placement))


def with_router_losses(stage: Train, config: DecoderConfig) -> DecoderConfig:
    """The configuration of a stage's model with the weights of routers' losses that the stage sets."""
    try:
        return config.with_router_losses(load_balancing=stage.load_balancing, router_z=stage.router_z)
    except UserError as error:
        raise UserError(f"stage {stage.name}: {error}") from None


def _fresh_shape(stage: Train, workspace: Workspace) -> str | DecoderConfig | None:
    """The shape of a stage's fresh model. A preset of a scaling ladder gets the vocabulary of the stage's tokenizer.

    A stage that has checkpoints keeps their shape: earlier versions gave every preset the vocabulary of its family.
    """
    if not (isinstance(stage.model, str) and registry.fits_tokenizer(stage.model)):
        return stage.model
    checkpoints = workspace.folder(stage.name) / "checkpoints"
    for step in reversed(store.committed_steps(checkpoints)):
        try:
            return model_of(str(checkpoints / str(step)))
        except UserError:  # damaged: restoring goes on with an earlier one too
            continue
    return fresh_config(stage.model, load_tokenizer(workspace.data(stage.data).tokenizer))


class TrainStateInit:
    """Where a stage's train state comes from: fresh parameters, another checkpoint, or an adapter on a frozen base."""

    def __init__(self, stage: Train, source: ModelSource, optimizer: Optimizer, mesh: jax.sharding.Mesh):
        self.stage, self.source, self.optimizer, self.mesh = stage, source, optimizer, mesh
        self.model, self.load = source.decoder, source.load
        rules = self.model.sharding_rules
        self.base_layout = source.layout(mesh)
        self.rules = rules if stage.lora is None else sharding.adapter_rules(rules)
        layout = sharding.state_shardings(self.abstract(), self.rules, mesh, REPLICATED_STATE)
        self.layout = sharding.with_moments_on_host(layout) if optimizer.config.offload else layout

    def base(self) -> Any:
        """The model's own parameters, float32, on the mesh."""
        return self.source.params(self.mesh, self.stage.seed)

    def _trained(self, base: Any) -> Any:
        if self.stage.lora is None:
            return base
        return lora.init_lora(jax.random.fold_in(jax.random.key(self.stage.seed), 2), base, self.stage.lora)

    def _state(self, base: Any) -> State:
        params = self._trained(base)
        return new_state(params, self.optimizer.init(params), self.stage.seed)

    def abstract(self) -> State:
        """Shapes and types of the train state."""
        return jax.eval_shape(self._state, self.model.abstract_params())

    def state(self) -> State:
        """The train state before the first step, on the mesh."""
        layout = self.layout
        if self.stage.lora is not None:  # an adapter's start depends on the base's shapes alone
            return jax.jit(lambda: self._state(self.model.abstract_params()), out_shardings=layout)()
        state = jax.jit(self._state, out_shardings=layout, donate_argnums=0)(self.base())
        return self._with_moments(state) if self.stage.keep_moments else state

    def _with_moments(self, state: State) -> State:
        """The state with the optimiser's moments of the checkpoint that the parameters came from."""
        if not (isinstance(self.load, functools.partial) and self.load.func is restore_params):
            raise UserError(f"stage {self.stage.name}: keep_moments needs init to be a stage or run:<folder>")
        theirs, ours = _optimizer_of(self.load.args[0]), self.optimizer.config.name
        if theirs not in (None, ours):
            raise UserError(
                f"stage {self.stage.name}: keep_moments: {self.load.args[0]} has the moments of {theirs}, which {ours} "
                "cannot go on with; leave keep_moments out, or train with the same optimizer"
            )
        old: OptState = self.load(sharding.with_shardings(state.opt, self.layout.opt), prefix="opt")
        return state._replace(opt=state.opt._replace(inner=old.inner))

    def adapted(self, objective: Objective, *, training: bool) -> Objective:
        """The objective as a function of what is trained."""
        config = self.stage.lora
        if config is None:
            return objective

        def on_adapter(adapter, batch, key, frozen):
            merged = lora.merge(frozen["base"], adapter, config, jax.random.fold_in(key, 3) if training else None)
            return objective(merged, batch, key, frozen)

        return on_adapter

    def finalize(self, folder: Path, frozen: PyTree, step: int, meta: Mapping[str, Any]) -> str:
        """What a finished stage leaves to later ones, by its place in the stage's folder; adapters are merged first."""
        if self.stage.lora is None:
            return f"checkpoints/{step}"
        with jax.set_mesh(self.mesh):
            self._save_merged(folder, frozen, step, meta)
        return f"merged/checkpoints/{step}"

    def _save_merged(self, folder: Path, frozen: PyTree, step: int, meta: Mapping[str, Any]) -> None:
        """The base with the trained adapter merged into it, as a checkpoint of `folder`/merged."""
        adapter = restore_params(folder, sharding.with_shardings(self.abstract().params, self.layout.params))
        assert self.stage.lora is not None
        merge = functools.partial(lora.merge, config=self.stage.lora)
        merged = jax.jit(merge, out_shardings=self.base_layout)(frozen["base"], adapter)
        with Checkpointer(folder / "merged" / "checkpoints", asynchronous=False) as checkpointer:
            checkpointer.save(step, {"params": merged}, {**meta, "data": {"step": step}})


def _optimizer_of(folder: Path) -> str | None:
    """The algorithm that the run of a checkpoint was trained with; None where the checkpoint does not say."""
    optimizer = (store.read_meta(store.resolve(folder)).get("config") or {}).get("optimizer")
    return None if optimizer is None else optimizer.get("name", OptimizerConfig.name)
