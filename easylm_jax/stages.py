"""How each kind of stage makes what it makes: data files, a vocabulary, a trained model.

Every function takes the stage, the experiment that resolves its names, and its settings, and returns what `done.json`
will say.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from easylm_jax import checkpoint_arrays, compiler, fields, sharding
from easylm_jax.config import DPO, RL, BestOfN, Evaluate, MajorityVote, MakeData, Stage, Tokenizer, Train
from easylm_jax.data import Loader, load_tokenizer, train_sentencepiece
from easylm_jax.data.examples import source_texts
from easylm_jax.files import write_lines
from easylm_jax.mesh import make_mesh
from easylm_jax.optimizer import make_optimizer
from easylm_jax.reference import with_reference
from easylm_jax.start import Start, check_vocabulary, stage_model
from easylm_jax.trainer import TrainJob, train
from models.config import DecoderConfig
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.experiment import Experiment

Result = dict[str, Any]


def produce(stage: Stage, experiment: Experiment, settings: dict[str, Any]) -> Result:
    """Runs one stage to its end."""
    for kind, make in _MAKERS:
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
    arguments = dict(stage.arguments)
    try:
        inspect.signature(function).bind(stage.seed, **arguments)
    except TypeError as error:
        raise UserError(f"stage {stage.name}: {stage.function} cannot be called so: {error}") from None
    files = function(stage.seed, **arguments)
    if checkpoint_arrays.is_first_process():
        for file, records in files.items():
            write_lines(folder / file, records)
        say(f"{stage.name}: wrote {', '.join(files)}")
    checkpoint_arrays.barrier(f"data {stage.name}")
    return {"files": list(files)}


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
    for data in (stage.data, stage.validation and stage.validation.data):
        if data is not None:
            sharding.check_length(data.sequence_length, mesh)
    source = stage_model(stage, experiment, mesh)
    sharding.check_heads(source.config, mesh)
    tokenizer = experiment.data(stage.data).tokenizer
    check_vocabulary(stage.name, source.config, tokenizer)
    cache = experiment.cache(stage.data)
    held_out = experiment.cache(stage.validation.data) if stage.validation else None
    loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
    steps = steps_of(stage, loader)
    optimizer = make_optimizer(stage.optimizer, steps, stage.batch * cache.sequence_length)
    start = Start(stage, source, optimizer, mesh)
    meta = meta_of(stage, source.config, tokenizer, settings)
    model = source.decoder
    with jax.set_mesh(mesh):
        frozen = {} if stage.lora is None else {"base": start.base()}
        if isinstance(stage, DPO) and stage.needs_reference:
            base = frozen.get("base") or start.base()
            if stage.reference == "model":
                frozen["reference"] = base
            else:
                cache = with_reference(cache, model, base, stage.batch, mesh)
                held_out = with_reference(held_out, model, base, stage.batch, mesh) if held_out else None
                loader = Loader(cache, stage.batch, stage.seed, stage.epochs)
            del base
    metrics = train(
        TrainJob(
            name=stage.name,
            folder=folder,
            mesh=mesh,
            abstract_state=start.abstract(),
            layout=start.layout,
            fresh_state=start.state,
            fingerprint=loader.fingerprint,
            validates=held_out is not None,
            validate_every=stage.validation.every if stage.validation else None,
            steps=steps,
            checkpoints=stage.checkpoints,
            monitoring=stage.monitoring,
            meta=meta,
            model=model.config,
            objective=start.adapted(stage.objective(model, training=True), training=True),
            score=start.adapted(stage.objective(model, training=False), training=False),
            optimizer=optimizer,
            frozen=frozen,
            loader=loader,
            held_out=held_out,
            accumulate=stage.accumulate,
            options=compiler.options(mesh, stage.compute),
        )
    )
    facts = ("rows", "pairs", "tokens", "trained_tokens", "unigram_entropy_nats")
    return {
        "step": steps,
        "checkpoint": start.leave(folder, frozen, steps, meta),
        "metrics": metrics,
        "data": {name: cache.manifest.get(name) for name in facts},
    }


def steps_of(stage: Train, loader: Loader) -> int:
    """How many steps a stage takes: `steps` or `epochs`, whichever ends first."""
    steps = min(length for length in (stage.steps, loader.steps) if length is not None)
    if steps == 0:
        raise UserError(
            f"stage {stage.name}: {stage.epochs} epochs of {loader.cache.rows} rows give no whole batch of "
            f"{stage.batch}"
        )
    told, found = stage.examples, loader.cache.rows
    if told is not None and stage.whole_rows and abs(found - told) > 0.02 * told:
        say(f"{stage.name}: {found:,} rows of data, where the recipe was planned with examples={told:,}")
    return steps


def meta_of(stage: Train, config: DecoderConfig, tokenizer: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What every checkpoint of a stage says of its model."""
    return {
        "model": dataclasses.asdict(config),
        "tokenizer": tokenizer,
        "tokenizer_hash": load_tokenizer(tokenizer).hash,
        "config": fields.encode(stage),
        "config_hash": fields.digest(settings),
    }


def _reinforce(stage: RL, experiment: Experiment, settings: dict[str, Any]) -> Result:
    from easylm_jax import rl_stages

    return rl_stages.run(stage, experiment, settings)


def _best_of_n(stage: BestOfN, experiment: Experiment, settings: dict[str, Any]) -> Result:
    from easylm_jax.best_of_n import best_of_n

    return best_of_n(stage, experiment)


def _majority_vote(stage: MajorityVote, experiment: Experiment, settings: dict[str, Any]) -> Result:
    from easylm_jax.majority_vote import majority_vote

    return majority_vote(stage, experiment)


def _evaluate(stage: Evaluate, experiment: Experiment, settings: dict[str, Any]) -> Result:
    from easylm_jax.evaluate import evaluate

    return evaluate(stage, experiment)


_MAKERS = (
    (MakeData, _make_data),
    (Tokenizer, _train_tokenizer),
    (RL, _reinforce),
    (Train, _train),
    (BestOfN, _best_of_n),
    (MajorityVote, _majority_vote),
    (Evaluate, _evaluate),
)
