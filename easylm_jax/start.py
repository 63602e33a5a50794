"""Where a stage's first parameters come from: fresh ones, another stage, a Hugging Face folder; adapters on top.

A `Model` is a decoder and a way to load its parameters; `Start` makes the train state before step 0 of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import models
from easylm_jax import checkpoint_store, hub, lora, sharding
from easylm_jax.checkpoint import Checkpointer, restore_params
from easylm_jax.config import Compute, Train
from easylm_jax.convert import model_of
from easylm_jax.data import Cache, load_tokenizer
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.optimizer import Optimizer, OptState
from easylm_jax.steps import REPLICATED_STATE, Objective, State, new_state
from models.config import DecoderConfig
from models.decoder import Decoder, cast_kernels, score_kernel
from models.errors import UserError
from models.hf import read_config

if TYPE_CHECKING:
    from easylm_jax.experiment import Experiment

PyTree = Any
Load = Callable[..., PyTree]


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder and `load(abstract parameters with shardings) → parameters`; None draws fresh ones."""

    decoder: Decoder
    load: Load | None
    folder: Path | None = None

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def layout(self, mesh: jax.sharding.Mesh) -> PyTree:
        """Shardings of the parameters."""
        return sharding.parameter_shardings(self.decoder.abstract_params(), self.decoder.sharding_rules, mesh)

    def params(self, mesh: jax.sharding.Mesh, seed: int = 0) -> PyTree:
        """The parameters, float32, on the mesh; `seed` draws fresh ones."""
        layout = self.layout(mesh)
        if self.load is None:
            key = jax.random.fold_in(jax.random.key(seed), 1)
            return jax.jit(self.decoder.init, out_shardings=layout)(key)
        return self.load(sharding.placed(self.decoder.abstract_params(), layout))

    def frozen(self, mesh: jax.sharding.Mesh) -> PyTree:
        """The parameters for a model that is not trained: kernels and tables in the type that is computed in.

        That is the type they are cast to wherever they are used, so what is computed is the same bit for bit.
        """
        return jax.jit(functools.partial(cast_kernels, dtype=self.decoder.compute.dtype))(self.params(mesh))


def model_from(
    init: str | None, experiment: Experiment, mesh: jax.sharding.Mesh, *, compute: Compute,
    shape: str | DecoderConfig | None = None, dropout: float = 0.0, scalar_head: bool = False, seed: int = 0,
    head_std: float | None = None,
) -> Model:  # fmt: skip
    """The model that `init` names (a stage, `hf:<name>`, `run:<folder>`), or a fresh one of `shape`.

    With `scalar_head` a language model loses its vocabulary head and gets a fresh scalar one, drawn from `seed` with
    deviation `head_std` (`models.decoder.score_kernel`).
    """
    compute = sharding.computed_on(compute, mesh)
    load: Load | None = None
    folder: Path | None = None
    if init is None:
        assert shape is not None
        config = models.preset(shape) if isinstance(shape, str) else shape
    elif init.startswith("hf:"):
        folder = hub.resolve(init.removeprefix("hf:"))
        config = read_config(folder)
        load = functools.partial(_load_hf, folder, compute)
    else:
        folder = Path(init.removeprefix("run:")) if init.startswith("run:") else experiment.result(init)
        config = model_of(str(folder))
        load = functools.partial(restore_params, folder)
    if scalar_head and not config.scalar_head:
        if load is not None:
            load = functools.partial(_with_scalar_head, models.build(config, compute), load, seed, mesh, head_std)
        config = config.replace(scalar_head=True)
    return Model(models.build(config.replace(dropout=dropout), compute), load, folder)


def stage_model(stage: Train, experiment: Experiment, mesh: jax.sharding.Mesh) -> Model:
    """The model that a stage trains."""
    return model_from(
        stage.init, experiment, mesh, compute=stage.compute, shape=stage.model, dropout=stage.dropout,
        scalar_head=stage.scalar_head, seed=stage.seed, head_std=stage.head_std,
    )  # fmt: skip


def _with_scalar_head(
    source: Decoder, load: Load, seed: int, mesh: jax.sharding.Mesh, std: float | None, abstract: Any
) -> Any:
    """A language model's parameters with a fresh scalar head in place of the vocabulary's."""
    layout = sharding.parameter_shardings(source.abstract_params(), source.sharding_rules, mesh)
    params = load(sharding.placed(source.abstract_params(), layout))
    params.pop("head", None)
    place = abstract["score"]["kernel"].sharding
    fresh = jax.jit(functools.partial(score_kernel, width=source.config.width, std=std), out_shardings=place)
    return {**params, "score": {"kernel": fresh(jax.random.fold_in(jax.random.key(seed), 4))}}


def _load_hf(folder: Path, compute, abstract: Any) -> Any:
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return models.load_hf(folder, compute=compute, shardings=layout)[1]


def check_vocabulary(name: str, config: DecoderConfig, tokenizer: str) -> None:
    """A tokenizer that knows more tokens than the model has rows is an error."""
    size = load_tokenizer(tokenizer).vocab_size
    if size > config.vocab:
        raise UserError(f"stage {name}: the tokenizer has {size} tokens, the model only {config.vocab} (vocab)")


class Start:
    """Where a stage's train state comes from: fresh parameters, another checkpoint, or an adapter on a frozen base."""

    def __init__(self, stage: Train, source: Model, optimizer: Optimizer, mesh: jax.sharding.Mesh):
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
        old: OptState = self.load(sharding.placed(state.opt, self.layout.opt), prefix="opt")
        return state._replace(opt=state.opt._replace(mu=old.mu, nu=old.nu, count=old.count))

    def adapted(self, objective: Objective, *, training: bool) -> Objective:
        """The objective as a function of what is trained."""
        config = self.stage.lora
        if config is None:
            return objective

        def on_adapter(adapter, batch, key, frozen):
            merged = lora.merge(frozen["base"], adapter, config, jax.random.fold_in(key, 3) if training else None)
            return objective(merged, batch, key, frozen)

        return on_adapter

    def leave(self, folder: Path, frozen: PyTree, step: int, meta: Mapping[str, Any]) -> str:
        """What a finished stage leaves to later ones, by its place in the stage's folder; adapters are merged first."""
        if self.stage.lora is None:
            return f"checkpoints/{step}"
        with jax.set_mesh(self.mesh):
            self._save_merged(folder, frozen, step, meta)
        return f"merged/checkpoints/{step}"

    def _save_merged(self, folder: Path, frozen: PyTree, step: int, meta: Mapping[str, Any]) -> None:
        """The base with the trained adapter merged into it, as a checkpoint of `folder`/merged."""
        adapter = restore_params(folder, sharding.placed(self.abstract().params, self.layout.params))
        merge = functools.partial(lora.merge, config=self.stage.lora)
        merged = jax.jit(merge, out_shardings=self.base_layout)(frozen["base"], adapter)
        with Checkpointer(folder / "merged" / "checkpoints", asynchronous=False) as checkpointer:
            checkpointer.save(step, {"params": merged}, {**meta, "data": {"step": step}})


def check_can_speak(name: str, source: Model) -> None:
    """A reward model has no vocabulary to write with."""
    if source.config.scalar_head:
        raise UserError(f"stage {name}: its policy is a reward model (scalar head), which cannot write")


def check_room(name: str, source: Model, prompts: Cache, max_new_tokens: int) -> None:
    """The longest prompt and a whole answer must fit into the context."""
    longest = int(np.asarray(prompts.columns["lengths"]).max())
    if longest + max_new_tokens > source.config.context:
        raise UserError(
            f"stage {name}: a prompt of {longest} tokens and {max_new_tokens} new ones are more than the model's "
            f"context of {source.config.context}; lower data.sequence_length (longer prompts are left out) or "
            "sampling.max_new_tokens"
        )


def check_same_tokenizer(name: str, what: str, init: str, source: Model, tokenizer: Tokenizer) -> None:
    """A model that scores the policy's tokens must know them by the same numbers."""
    theirs = _tokenizer_hash(init, source.folder)
    if theirs is not None and theirs != tokenizer.hash:
        raise UserError(
            f"stage {name}: the {what} {init} was trained with another tokenizer than the prompts' "
            f"({tokenizer.spec}); train it with the same one"
        )
    if tokenizer.vocab_size > source.config.vocab:
        raise UserError(
            f"stage {name}: the tokenizer has {tokenizer.vocab_size} tokens, the {what} {init} only "
            f"{source.config.vocab}"
        )


def _tokenizer_hash(init: str, folder: Path | None) -> str | None:
    """The content hash of the tokenizer that a model was trained with; None where nothing says so."""
    assert folder is not None
    if not init.startswith("hf:"):
        return checkpoint_store.read_meta(checkpoint_store.resolve(folder)).get("tokenizer_hash")
    try:
        return load_tokenizer(f"hf:{folder}").hash
    except UserError:  # a folder of weights alone
        return None
