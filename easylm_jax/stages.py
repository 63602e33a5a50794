"""How each kind of stage makes what it makes: data files, a vocabulary, a trained model.

Every function takes the stage, the experiment that resolves its names, and its settings, and returns what `done.json`
will say.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

import models
from easylm_jax import checkpoint_arrays, fields, hub, lora, sharding
from easylm_jax.checkpoint import Checkpointer, restore_params
from easylm_jax.config import DPO, MakeData, Stage, Tokenizer, Train
from easylm_jax.convert import model_of
from easylm_jax.data import Loader, load_tokenizer, train_sentencepiece
from easylm_jax.data.examples import source_texts
from easylm_jax.mesh import BATCH_AXES, make_mesh
from easylm_jax.optimizer import Optimizer, OptState, make_optimizer
from easylm_jax.reference import with_reference
from easylm_jax.steps import Objective, State, new_state
from easylm_jax.trainer import Job, train
from models.config import DecoderConfig
from models.decoder import Decoder, score_kernel
from models.errors import UserError
from models.hf import read_config

if TYPE_CHECKING:
    from easylm_jax.experiment import Experiment

Load = Callable[[Any], Any]


def produce(stage: Stage, experiment: Experiment, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs one stage to its end."""
    for kind, make in ((MakeData, _make_data), (Tokenizer, _train_tokenizer), (Train, _train)):
        if isinstance(stage, kind):
            return make(stage, experiment, settings)
    raise UserError(f"stage {stage.name}: a {type(stage).__name__} cannot be run")


def say(text: str) -> None:
    """A line for the person who watches, once however many processes there are."""
    if checkpoint_arrays.is_first_process():
        print(text, file=sys.stderr, flush=True)


def _make_data(stage: MakeData, experiment: Experiment, settings: dict[str, Any]) -> dict[str, Any]:
    module, _, name = stage.function.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"stage {stage.name}: no function {stage.function!r} (module:name): {error}") from None
    folder = experiment.folder(stage.name)
    files = function(stage.seed)
    if checkpoint_arrays.is_first_process():
        for file, records in files.items():
            _write_lines(folder / file, records)
        say(f"{stage.name}: wrote {', '.join(files)}")
    checkpoint_arrays.barrier(f"data {stage.name}")
    return {"files": list(files)}


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _train_tokenizer(stage: Tokenizer, experiment: Experiment, settings: dict[str, Any]) -> dict[str, Any]:
    folder = experiment.folder(stage.name)
    path = folder / "tokenizer.model"
    sources = experiment.sources(stage.sources)
    if checkpoint_arrays.is_first_process():
        say(f"{stage.name}: training a vocabulary of {stage.vocab_size}")
        _sentencepiece_of(source_texts(sources), stage, folder)
    checkpoint_arrays.barrier(f"tokenizer {stage.name}")
    return {"tokenizer": load_tokenizer(f"sp:{path}").describe()}


def _sentencepiece_of(texts: Iterable[str], stage: Tokenizer, folder: Path) -> None:
    """Trains the vocabulary. An error in the texts is told as it is, not in the words that SentencePiece has for it."""
    failed: list[UserError] = []

    def watched() -> Iterator[str]:
        try:
            yield from texts
        except UserError as error:
            failed.append(error)
            raise

    try:
        train_sentencepiece(watched(), stage.vocab_size, folder, symbols=stage.symbols)
    except UserError as error:
        raise (failed or [error])[0] from None


def _train(stage: Train, experiment: Experiment, settings: dict[str, Any]) -> dict[str, Any]:
    folder = experiment.folder(stage.name)
    # What needs no data is looked at first: a large cache takes hours to build.
    mesh = make_mesh(experiment.recipe.mesh)
    sharding.check_rows(stage.batch, stage.accumulate, mesh)
    model, load = _model(stage, experiment, mesh)
    sharding.check_heads(model.config, mesh)
    tokenizer = experiment.data(stage.data).tokenizer
    _check_vocabulary(stage, model.config, tokenizer)
    cache = experiment.cache(stage.data)
    held_out = experiment.cache(stage.validation.data) if stage.validation else None
    loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
    steps = min(length for length in (stage.steps, loader.steps) if length is not None)
    if steps == 0:
        raise UserError(
            f"stage {stage.name}: {stage.epochs} epochs of {cache.rows} rows give no whole batch of {stage.batch}"
        )
    optimizer = make_optimizer(stage.optimizer, steps, stage.batch * cache.sequence_length)
    start = _Start(stage, model, load, optimizer, mesh)
    meta = {
        "model": dataclasses.asdict(model.config),
        "tokenizer": tokenizer,
        "config": fields.encode(stage),
        "config_hash": fields.digest(settings),
    }
    with jax.set_mesh(mesh):
        frozen = start.frozen()
        if isinstance(stage, DPO) and stage.needs_reference and stage.reference == "cached":
            base = frozen.get("base") or start.base()
            cache = with_reference(cache, model, base, stage.batch, mesh)
            held_out = with_reference(held_out, model, base, stage.batch, mesh) if held_out else None
            loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
            del base
    metrics = train(
        Job(
            name=stage.name,
            folder=folder,
            mesh=mesh,
            model=model.config,
            rules=start.rules,
            objective=start.adapted(stage.objective(model, training=True), training=True),
            score=start.adapted(stage.objective(model, training=False), training=False),
            optimizer=optimizer,
            abstract_state=start.abstract(),
            fresh_state=start.state,
            frozen=frozen,
            loader=loader,
            held_out=held_out,
            validate_every=stage.validation.every if stage.validation else None,
            steps=steps,
            accumulate=stage.accumulate,
            checkpoints=stage.checkpoints,
            monitoring=stage.monitoring,
            meta=meta,
        )
    )
    checkpoint = f"checkpoints/{steps}"
    if stage.lora is not None:
        checkpoint = f"merged/{checkpoint}"
        with jax.set_mesh(mesh):
            start.save_merged(folder, frozen, steps, meta)
    facts = ("rows", "pairs", "tokens", "trained_tokens", "unigram_entropy_nats")
    return {
        "step": steps,
        "checkpoint": checkpoint,
        "metrics": metrics,
        "data": {name: cache.manifest.get(name) for name in facts},
    }


def _model(stage: Train, experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[Decoder, Load | None]:
    """The model of a stage, and a function that loads its first parameters (None: fresh ones)."""
    compute = dataclasses.replace(stage.compute, batch_axes=BATCH_AXES if mesh.size > 1 else None)
    load: Load | None = None
    if stage.init is None:
        config = models.preset(stage.model) if isinstance(stage.model, str) else stage.model
    elif stage.init.startswith("hf:"):
        folder = hub.resolve(stage.init.removeprefix("hf:"))
        config = read_config(folder)
        load = functools.partial(_load_hf, folder, compute)
    else:
        run = stage.init.startswith("run:")
        folder = Path(stage.init.removeprefix("run:")) if run else experiment.result(stage.init)
        config = model_of(str(folder))
        load = functools.partial(restore_params, folder)
    if stage.scalar_head and not config.scalar_head:
        if load is not None:
            load = functools.partial(_with_scalar_head, models.build(config, compute), load, stage.seed, mesh)
        config = config.replace(scalar_head=True)
    return models.build(config.replace(dropout=stage.dropout), compute), load


def _with_scalar_head(source: Decoder, load: Load, seed: int, mesh: jax.sharding.Mesh, abstract: Any) -> Any:
    """A language model's parameters with a fresh scalar head in place of the vocabulary's."""
    layout = sharding.parameter_shardings(source.abstract_params(), source.sharding_rules, mesh)
    params = load(sharding.placed(source.abstract_params(), layout))
    params.pop("head", None)
    place = abstract["score"]["kernel"].sharding
    fresh = jax.jit(functools.partial(score_kernel, width=source.config.width), out_shardings=place)
    return {**params, "score": {"kernel": fresh(jax.random.fold_in(jax.random.key(seed), 4))}}


def _load_hf(folder: Path, compute, abstract: Any) -> Any:
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return models.load_hf(folder, compute=compute, shardings=layout)[1]


def _check_vocabulary(stage: Train, config: DecoderConfig, tokenizer: str) -> None:
    size = load_tokenizer(tokenizer).vocab_size
    if size > config.vocab:
        raise UserError(f"stage {stage.name}: the tokenizer has {size} tokens, the model only {config.vocab} (vocab)")


class _Start:
    """Where a stage's train state comes from: fresh parameters, another checkpoint, or an adapter on a frozen base."""

    def __init__(self, stage: Train, model: Decoder, load: Load | None, optimizer: Optimizer, mesh: jax.sharding.Mesh):
        self.stage, self.model, self.load, self.optimizer, self.mesh = stage, model, load, optimizer, mesh
        self.base_layout = sharding.parameter_shardings(model.abstract_params(), model.sharding_rules, mesh)
        self.rules = model.sharding_rules if stage.lora is None else sharding.adapter_rules(model.sharding_rules)

    def base(self) -> Any:
        """The model's own parameters, float32, on the mesh."""
        if self.load is None:
            key = jax.random.fold_in(jax.random.key(self.stage.seed), 1)
            return jax.jit(self.model.init, out_shardings=self.base_layout)(key)
        return self.load(sharding.placed(self.model.abstract_params(), self.base_layout))

    def frozen(self) -> Any:
        """What the objective needs besides the trained parameters: the base under an adapter, a reference model."""
        frozen = {} if self.stage.lora is None else {"base": self.base()}
        if isinstance(self.stage, DPO) and self.stage.needs_reference and self.stage.reference == "model":
            frozen["reference"] = frozen.get("base") or self.base()
        return frozen

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

    def state(self, layout: State) -> State:
        """The train state before the first step, on the shardings of `layout`."""
        if self.stage.lora is not None:  # an adapter's start depends on the base's shapes alone
            return jax.jit(lambda: self._state(self.model.abstract_params()), out_shardings=layout)()
        state = jax.jit(self._state, out_shardings=layout, donate_argnums=0)(self.base())
        return self._with_moments(state, layout) if self.stage.keep_moments else state

    def _with_moments(self, state: State, layout: State) -> State:
        """The state with the optimiser's moments of the checkpoint that the parameters came from."""
        if not (isinstance(self.load, functools.partial) and self.load.func is restore_params):
            raise UserError(f"stage {self.stage.name}: keep_moments needs init to be a stage or run:<folder>")
        old: OptState = self.load(sharding.placed(state.opt, layout.opt), prefix="opt")
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

    def save_merged(self, folder: Path, frozen: Any, step: int, meta: dict[str, Any]) -> None:
        """The base with the trained adapter merged into it, as a checkpoint of `folder`/merged."""
        layout = sharding.parameter_shardings(self.abstract().params, self.rules, self.mesh)
        adapter = restore_params(folder, sharding.placed(self.abstract().params, layout))
        merge = functools.partial(lora.merge, config=self.stage.lora)
        merged = jax.jit(merge, out_shardings=self.base_layout)(frozen["base"], adapter)
        with Checkpointer(folder / "merged" / "checkpoints", asynchronous=False) as checkpointer:
            checkpointer.save(step, {"params": merged}, {**meta, "data": {"step": step}})
