"""What a stage has finished of its output so far, kept only as long as nothing that it was made from has changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from easylm_jax.config import fields
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.build import stage_cache
from easylm_jax.runtime import processes

if TYPE_CHECKING:
    from easylm_jax.config import Stage
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from easylm_jax.checkpoint.load import check_same_tokenizer, model_from
from easylm_jax.config import Generate
from easylm_jax.data import Cache, load_tokenizer
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.decode.generator import check_samples, prepare_generator
from easylm_jax.runtime import chunked, sharding
from easylm_jax.runtime.files import write_lines
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.processes import log_once

NOTE = "made_from.txt"


def partial_folder(stage: Stage, workspace: Workspace, name: str) -> Path:
    """The folder for a stage's finished parts. Those made with other settings, or from a stage that was since run anew,
    are taken away."""
    folder = workspace.folder(stage.name) / name
    made = {need: workspace.done(workspace.recipe.stage(need)) for need in stage.needs}
    key = fields.digest({"settings": workspace.settings(stage), "made": made})
    if processes.is_first_process():
        note = folder / NOTE
        if folder.exists() and not (note.is_file() and note.read_text() == key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(key)
    processes.barrier(f"{stage.name} parts")
    return folder


Scoring = Callable[[rollout.Rollout, int], Any]
Writing = Callable[[rollout.Rollout], Iterator[dict[str, Any]]]


def in_parts(
    stage: Generate,
    workspace: Workspace,
    prepared: Callable[[jax.sharding.Mesh, Cache, Tokenizer], tuple[Scoring | None, Writing]],
) -> list[Path]:
    """Answers every prompt of a stage, `batch` at a time; returns the batches' files, in order.

    `prepared(mesh, cache, tokenizer)` gives what scores the answers of batch `number` (on every process; None where
    nothing does) and what makes a record of each prompt for its file. Files that are there already are not made again.
    """
    check_samples(f"stage {stage.name}", stage.sampling, stage.samples)
    recipe = workspace.recipe
    mesh = sharding.decode_mesh_of(stage.name, make_mesh(recipe.mesh), recipe.decode_mesh)
    cache = stage_cache(workspace, stage.data)
    tokenizer = load_tokenizer(workspace.data(stage.data).tokenizer)
    source = model_from(workspace.model(stage.init), mesh, compute=stage.compute)
    check_same_tokenizer(stage.name, "model", stage.init, source, tokenizer)
    generator = prepare_generator(stage.name, source.decoder, tokenizer, stage.sampling, mesh, [cache])
    score, write = prepared(mesh, cache, tokenizer)
    count = cache.rows if stage.limit is None else min(stage.limit, cache.rows)
    folder = partial_folder(stage, workspace, "parts")
    paths = []
    with jax.set_mesh(mesh):
        params = source.frozen(mesh)
        for number, chunk in enumerate(chunked.chunks(count, stage.batch)):
            paths.append(folder / f"{number:06d}.jsonl")
            if paths[-1].is_file():
                continue
            prompts = cache.read(np.arange(chunk.start, chunk.stop))
            made = generator.sample(
                params, cache, prompts, samples=stage.samples, seed=rollout.seed_of(stage.seed, number)
            )
            if score is not None:
                score(made, number)
            if processes.is_first_process():
                write_lines(paths[-1], write(made))
                log_once(f"{stage.name}: {chunk.stop:,} of {count:,} prompts")
            processes.barrier(f"{stage.name} {number}")
    return paths


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file. Parted at newlines alone: an answer may hold other characters that `splitlines`
    takes for the end of a line."""
    text = path.read_text(encoding="utf-8")
    return (json.loads(line) for line in text.rstrip("\n").split("\n") if line)
