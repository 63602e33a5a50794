"""Runs a recipe: its stages in the order of their needs, finished ones skipped, the one cut short resumed.

    runs/<recipe>/<stage>/   config.json  metrics.jsonl  checkpoints/  done.json
    runs/cache/              packed data caches, shared by every run

`done.json` says what a stage produced and under which settings; a stage whose settings (or whose inputs' settings)
changed since is not run over, but named with what differs.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import models
from easylm_jax import checkpoint_arrays, checkpoint_store, fields, hub, lora, sharding
from easylm_jax.checkpoint import config_difference, guard_fresh_start, restore_params
from easylm_jax.config import DataSpec, MakeData, Recipe, Source, Stage, Tokenizer, Train
from easylm_jax.convert import model_of
from easylm_jax.data import Cache, Loader, build_cache, load_tokenizer, train_sentencepiece
from easylm_jax.data.examples import source_texts
from easylm_jax.mesh import BATCH_AXES, initialize_processes, make_mesh
from easylm_jax.optimizer import OptState, make_optimizer
from easylm_jax.steps import State, new_state
from easylm_jax.trainer import Job, Stopped, train
from models.config import DecoderConfig
from models.decoder import Decoder
from models.errors import UserError
from models.hf import read_config

STOPPED = 130


def run(
    path: str,
    overrides: list[str] | tuple[str, ...] = (),
    only: str | None = None,
    out: str = "runs",
    overwrite: bool = False,
    list_stages: bool = False,
    show_config: bool = False,
) -> int:
    """What `easylm run` does; returns the exit status."""
    recipe = load_recipe(path, overrides)
    if show_config:
        print(json.dumps(fields.encode(recipe), indent=2))
        return 0
    experiment = Experiment(recipe, Path(out))
    stages = experiment.in_order() if only is None else [recipe.stage(only)]
    if list_stages:
        for stage in stages:
            print(f"{stage.name:<24} {experiment.progress(stage)}")
        return 0
    initialize_processes()
    _keep_compiled_programs(Path(out))
    try:
        for stage in stages:
            experiment.run(stage, overwrite)
    except Stopped as stopped:
        print(f"easylm: {stopped}", file=sys.stderr)
        return STOPPED
    return 0


def load_recipe(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The `recipe` of a Python file, with `field=value` overrides applied: `mesh=…` or `<stage>.<field>…=…`."""
    file = Path(path).resolve()
    root = next((folder for folder in file.parents if (folder / "recipes").is_dir()), None)
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))  # recipes share data and suites: `from recipes.tulu25 import data`
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; a recipe is one that holds `recipe = Recipe(...)`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, NameError, ImportError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} holds no recipe; it must set `recipe = Recipe(...)` (easylm_jax.config)")
    for text in overrides:
        recipe = _override(recipe, text)
    return recipe


def _override(recipe: Recipe, text: str) -> Recipe:
    path, _, value = text.partition("=")
    name, _, rest = path.partition(".")
    if not rest:
        if name == "stages" or name in (stage.name for stage in recipe.stages):
            raise UserError(f"{text!r}: name a field of the stage, such as {name}.seed=1")
        return fields.override(recipe, name, value)
    changed = fields.override(recipe.stage(name), rest, value)
    return dataclasses.replace(recipe, stages=tuple(changed if s.name == name else s for s in recipe.stages))


class Experiment:
    """A recipe and the folder that its stages are kept in."""

    def __init__(self, recipe: Recipe, out: Path):
        self.recipe, self.out, self.root = recipe, out, out / recipe.name

    def folder(self, name: str) -> Path:
        """The folder of a stage."""
        return self.root / name

    def in_order(self) -> list[Stage]:
        """All stages, each behind those that it needs."""
        ordered: list[Stage] = []

        def visit(stage: Stage, above: tuple[str, ...]) -> None:
            if stage.name in above:
                raise UserError(f"recipe {self.recipe.name}: stages need each other in a circle: {' → '.join(above)}")
            for need in stage.needs:
                visit(self.recipe.stage(need), (*above, stage.name))
            if stage not in ordered:
                ordered.append(stage)

        for stage in self.recipe.stages:
            visit(stage, ())
        return ordered

    def settings(self, stage: Stage) -> dict[str, Any]:
        """All that decides what a stage produces: its own fields and, under `needs`, those of the stages before it."""
        own = {name: value for name, value in fields.encode(stage).items() if name not in stage.FREE}
        return {**own, "needs": {need: self.settings(self.recipe.stage(need)) for need in stage.needs}}

    def done(self, stage: Stage) -> dict[str, Any] | None:
        """What `done.json` says, or None."""
        path = self.folder(stage.name) / "done.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def progress(self, stage: Stage) -> str:
        """How far a stage is, in words."""
        done = self.done(stage)
        if done is not None:
            return "done" if done["hash"] == fields.digest(self.settings(stage)) else "done, with other settings"
        steps = checkpoint_store.committed_steps(self.folder(stage.name) / "checkpoints")
        return f"at step {steps[-1]}" if steps else "not started"

    def run(self, stage: Stage, overwrite: bool = False) -> None:
        """Runs or resumes one stage whose needs are done."""
        for need in stage.needs:
            if self.done(self.recipe.stage(need)) is None:
                raise UserError(
                    f"stage {stage.name} needs {need}, which is not done; run it first (easylm run --only {need})"
                )
        folder, settings = self.folder(stage.name), self.settings(stage)
        done = None if overwrite else self.done(stage)
        if not overwrite:
            self._refuse_other_settings(stage, folder, settings)
        if done is not None:
            _say(f"{stage.name}: done ({folder})")
            return
        if overwrite:
            guard_fresh_start(folder / "checkpoints", overwrite=True)
            (folder / "done.json").unlink(missing_ok=True)
            (folder / "metrics.jsonl").unlink(missing_ok=True)
        _write_json(folder / "config.json", {"recipe": self.recipe.name, "mesh": self.recipe.mesh,
                                             "stage": fields.encode(stage), "settings": settings})  # fmt: skip
        began = time.time()
        result = self._produce(stage, settings)
        _write_json(folder / "done.json", {"stage": stage.name, "kind": type(stage).__name__,
                                           "hash": fields.digest(settings), "seconds": time.time() - began,
                                           **result})  # fmt: skip

    def _produce(self, stage: Stage, settings: dict[str, Any]) -> dict[str, Any]:
        if isinstance(stage, MakeData):
            return self._make_data(stage)
        if isinstance(stage, Tokenizer):
            return self._train_tokenizer(stage)
        if isinstance(stage, Train):
            return self._train(stage, settings)
        raise UserError(f"stage {stage.name}: a {type(stage).__name__} cannot be run")

    def _refuse_other_settings(self, stage: Stage, folder: Path, settings: dict[str, Any]) -> None:
        path = folder / "config.json"
        started = checkpoint_store.committed_steps(folder / "checkpoints") or (folder / "done.json").is_file()
        if not (started and path.is_file()):
            return
        changes = config_difference(json.loads(path.read_text())["settings"], settings)
        if changes:
            raise UserError(
                f"stage {stage.name} in {folder} was run with other settings ({'; '.join(changes[:3])}"
                f"{' …' if len(changes) > 3 else ''}); use another --out, or --overwrite to begin again"
            )

    def _train_tokenizer(self, stage: Tokenizer) -> dict[str, Any]:
        folder = self.folder(stage.name)
        path = folder / "tokenizer.model"
        sources = self._sources(stage.sources)
        if checkpoint_arrays.is_first_process():
            _say(f"{stage.name}: training a vocabulary of {stage.vocab_size}")
            train_sentencepiece(source_texts(sources), stage.vocab_size, folder, symbols=stage.symbols)
        checkpoint_arrays.barrier(f"tokenizer {stage.name}")
        return {"tokenizer": f"sp:{path}", **load_tokenizer(f"sp:{path}").describe()}

    def _make_data(self, stage: MakeData) -> dict[str, Any]:
        module, _, name = stage.function.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"stage {stage.name}: no function {stage.function!r} (module:name): {error}") from None
        folder = self.folder(stage.name)
        files: list[str] = []
        if checkpoint_arrays.is_first_process():
            for file, records in function(stage.seed).items():
                _write_lines(folder / file, records)
                files.append(file)
            _say(f"{stage.name}: wrote {', '.join(files)}")
        checkpoint_arrays.barrier(f"data {stage.name}")
        return {"files": files}

    def _sources(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """Sources with `stage:<name>/<file>` replaced by the file that the stage wrote."""
        return tuple(
            dataclasses.replace(source, path=str(self.root / source.path.removeprefix("stage:")))
            if source.path.startswith("stage:") else source
            for source in sources
        )  # fmt: skip

    def _data(self, spec: DataSpec) -> DataSpec:
        """The spec with what `stage:<name>` names (the tokenizer, files) replaced by what that stage made."""
        tokenizer = spec.tokenizer
        if tokenizer.startswith("stage:"):
            tokenizer = f"sp:{self.folder(tokenizer.removeprefix('stage:')) / 'tokenizer.model'}"
        return dataclasses.replace(spec, sources=self._sources(spec.sources), tokenizer=tokenizer)

    def cache(self, spec: DataSpec) -> Cache:
        """The packed cache of a spec, built if there is none yet (by one process of those that share the folder)."""
        return build_cache(self._data(spec), self.out / "cache", _progress())

    def _train(self, stage: Train, settings: dict[str, Any]) -> dict[str, Any]:
        folder = self.folder(stage.name)
        cache = self.cache(stage.data)
        held_out = self.cache(stage.validation.data) if stage.validation else None
        loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
        steps = stage.steps or loader.steps
        if not steps:
            raise UserError(
                f"stage {stage.name}: {stage.epochs} epochs of {cache.rows} rows give no whole batch of {stage.batch}"
            )
        mesh = make_mesh(self.recipe.mesh)
        model, load = self._model(stage, mesh)
        _check_vocabulary(stage, model.config, self._data(stage.data).tokenizer)
        optimizer = make_optimizer(stage.optimizer, steps, stage.batch * cache.sequence_length)
        start = _Start(stage, model, load, optimizer, mesh)
        with jax.set_mesh(mesh):
            frozen = start.frozen()
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
                meta={"model": dataclasses.asdict(model.config), "config": fields.encode(stage),
                      "config_hash": fields.digest(settings), "tokenizer": self._data(stage.data).tokenizer},
            )
        )  # fmt: skip
        facts = ("rows", "tokens", "trained_tokens", "unigram_entropy_nats")
        return {
            "step": steps,
            "checkpoint": f"checkpoints/{steps}",
            "metrics": metrics,
            "data": {name: cache.manifest.get(name) for name in facts},
        }

    def _model(self, stage: Train, mesh: jax.sharding.Mesh):
        """The model of a stage, and a function that loads its first parameters (None: fresh ones)."""
        compute = dataclasses.replace(stage.compute, batch_axes=BATCH_AXES if mesh.size > 1 else None)
        if stage.init is None:
            config = models.preset(stage.model) if isinstance(stage.model, str) else stage.model
            load = None
        elif stage.init.startswith("hf:"):
            folder = hub.resolve(stage.init.removeprefix("hf:"))
            config = read_config(folder)
            load = functools.partial(_load_hf, folder, compute)
        else:
            run = stage.init.startswith("run:")
            folder = Path(stage.init.removeprefix("run:")) if run else self.folder(stage.init)
            config = model_of(str(folder))
            load = functools.partial(restore_params, folder)
        return models.build(config.replace(dropout=stage.dropout), compute), load


class _Start:
    """Where a stage's train state comes from: fresh parameters, another checkpoint, or an adapter on a frozen base."""

    def __init__(self, stage: Train, model: Decoder, load, optimizer, mesh: jax.sharding.Mesh):
        self.stage, self.model, self.load, self.optimizer, self.mesh = stage, model, load, optimizer, mesh
        self.base_layout = sharding.parameter_shardings(model.abstract_params(), model.sharding_rules, mesh)
        self.rules = model.sharding_rules if stage.lora is None else sharding.adapter_rules(model.sharding_rules)

    def base(self) -> Any:
        """The model's own parameters, float32, on the mesh."""
        if self.load is None:
            key = jax.random.fold_in(jax.random.key(self.stage.seed), 1)
            return jax.jit(self.model.init, out_shardings=self.base_layout)(key)
        abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.model.abstract_params(), self.base_layout,
        )  # fmt: skip
        return self.load(abstract)

    def frozen(self) -> Any:
        """What the objective needs besides the trained parameters: the base under an adapter."""
        return {} if self.stage.lora is None else {"base": self.base()}

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
        folder = getattr(self.load, "args", (None,))[0]
        if self.load is None or self.load.func is not restore_params:
            raise UserError(f"stage {self.stage.name}: keep_moments needs init to be a stage or run:<folder>")
        abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state.opt, layout.opt
        )
        old: OptState = restore_params(folder, abstract, prefix="opt")
        return state._replace(opt=state.opt._replace(mu=old.mu, nu=old.nu, count=old.count))

    def adapted(self, objective, *, training: bool):
        """The objective as a function of what is trained."""
        config = self.stage.lora
        if config is None:
            return objective

        def on_adapter(adapter, batch, key, frozen):
            merged = lora.merge(frozen["base"], adapter, config, jax.random.fold_in(key, 3) if training else None)
            return objective(merged, batch, key, frozen)

        return on_adapter


def _load_hf(folder: Path, compute, abstract: Any) -> Any:
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return models.load_hf(folder, compute=compute, shardings=layout)[1]


def _check_vocabulary(stage: Train, config: DecoderConfig, tokenizer: str) -> None:
    size = load_tokenizer(tokenizer).vocab_size
    if size > config.vocab:
        raise UserError(f"stage {stage.name}: the tokenizer has {size} tokens, the model only {config.vocab} (vocab)")


def _keep_compiled_programs(out: Path) -> None:
    """Compiled programs are kept on disk, so that a resumed run starts at once."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str((out / "cache" / "programs").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _progress():
    """A line every few seconds while a cache is built."""
    last = [time.monotonic()]

    def progress(done: int, total: int | None, phase: str) -> None:
        if time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            _say(f"data: {phase} {done:,}" + (f" of {total:,}" if total else ""))

    return progress


def _say(text: str) -> None:
    if checkpoint_arrays.is_first_process():
        print(text, file=sys.stderr, flush=True)


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_json(path: Path, value: Any) -> None:
    """Written beside and renamed, so that a kill leaves the old file or the new one."""
    if not checkpoint_arrays.is_first_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
