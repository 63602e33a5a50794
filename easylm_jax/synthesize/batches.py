"""Generates responses to all prompts of a stage, batch by batch; finished batches are kept when a stage is resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from easylm_jax.checkpoint.load import model_from
from easylm_jax.config import Generate, Stage, fields
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Cache, load_tokenizer
from easylm_jax.data.build import stage_cache
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.decode.generator import check_samples, prepare_generator
from easylm_jax.decode.rollout import Rollout
from easylm_jax.runtime import chunked, processes, sharding
from easylm_jax.runtime.files import atomic_write, write_lines
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.monitor import counting
from easylm_jax.runtime.processes import log_once
from models import reading

KEY_FILE = "made_from.txt"
ScoreBatch = Callable[[Rollout, int], Any]  # (rollout, batch number); sets `rollout.scores`
MakeRecords = Callable[[Rollout], Iterator[dict[str, Any]]]


class FinishedBatch(NamedTuple):
    """The file with the records of a batch, and the number of its prompts."""

    path: Path
    prompts: int


def partial_folder(stage: Stage, workspace: Workspace, name: str) -> Path:
    """The folder of a stage's finished batches; a new one if the settings or the inputs of the stage have changed."""
    folder = workspace.folder(stage.name) / name
    inputs = {need: workspace.done(workspace.recipe.stage(need)) for need in stage.needs}
    key = fields.digest({"settings": workspace.settings(stage), "made": inputs})
    if processes.is_first_process():
        key_file = folder / KEY_FILE
        if folder.exists() and not (key_file.is_file() and reading.read_bytes(key_file, limit=1000) == key.encode()):
            aside = folder.with_name(f"{name}.set-aside")  # not deleted: the key itself may be what was damaged
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            log_once(f"{stage.name}: the batches in {folder} are of other inputs; moved to {aside.name}")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(key_file) as file:
            file.write(key.encode())
    processes.barrier(f"{stage.name} parts")
    return folder


def generate_in_batches(
    stage: Generate,
    workspace: Workspace,
    prepare: Callable[[jax.sharding.Mesh, Cache, Tokenizer], tuple[ScoreBatch | None, MakeRecords]],
) -> list[FinishedBatch]:
    """Generates responses to every prompt of a stage, `stage.batch` prompts at a time; skips batches that are done.

    Args:
        stage: the stage.
        workspace: of the recipe.
        prepare: `(mesh, cache, tokenizer)` → a function that scores the rollout of a batch on every process (None for
            no scores), and a function that makes the JSON record of each prompt.

    Returns:
        The JSONL file of each batch, in order.
    """
    check_samples(f"stage {stage.name}", stage.sampling, stage.samples)
    recipe = workspace.recipe
    mesh = sharding.decode_mesh_of(stage.name, make_mesh(recipe.mesh), recipe.decode_mesh)
    cache = stage_cache(workspace, stage.data, stage.name)
    tokenizer = load_tokenizer(workspace.data(stage.data).tokenizer)
    source = model_from(workspace.model(stage.init), mesh, compute=stage.compute)
    generator = prepare_generator(stage.name, source.decoder, tokenizer, stage.sampling, mesh, [cache])
    score, make_records = prepare(mesh, cache, tokenizer)
    count = cache.rows if stage.limit is None else min(stage.limit, cache.rows)
    folder = partial_folder(stage, workspace, "parts")
    chunks = chunked.chunks(count, stage.batch)
    paths = [folder / f"{batch:06d}.jsonl" for batch in range(len(chunks))]
    left = [batch for batch, path in enumerate(paths) if not path.is_file()]
    done = count - sum(chunks[batch].stop - chunks[batch].start for batch in left)
    with jax.set_mesh(mesh), counting(
        stage.name, count * stage.samples, "responses", done * stage.samples
    ) as progress:  # fmt: skip
        params = source.frozen(mesh)
        for batch in left:
            prompts = cache.read(np.arange(chunks[batch].start, chunks[batch].stop))
            seed = rollout.rollout_seed(stage.seed, batch)
            with progress.phase("generating"):
                sampled = generator.sample(
                    params, cache, prompts, samples=stage.samples, seed=seed, progress=progress.part()
                )
            with progress.phase("scoring"):
                if score is not None:
                    score(sampled, batch)
                if processes.is_first_process():
                    write_lines(paths[batch], make_records(sampled))
            processes.barrier(f"{stage.name} {batch}")
    return [FinishedBatch(path, chunk.stop - chunk.start) for path, chunk in zip(paths, chunks, strict=True)]


def read_batch(batch: FinishedBatch, kind: Any) -> Iterator[Any]:
    """The records of a finished batch, one for each prompt and each a `kind` (`models.reading`).

    Raises:
        Damaged: a record is no `kind`, or there are not as many as prompts.
    """
    mend = "delete it and run the stage again, which repeats this batch alone"
    count = 0
    for record in reading.read_lines(batch.path, kind, mend=mend):
        count += 1
        yield record
    if count != batch.prompts:
        raise reading.Damaged(batch.path, f"it has {count} records of {batch.prompts} prompts", mend)
