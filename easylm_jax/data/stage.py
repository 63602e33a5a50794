"""Runs the stages that prepare data: `MakeData` (files written by a function of the recipe) and `Tokenizer`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from easylm_jax.config import MakeData, Tokenizer
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import load_tokenizer, train_sentencepiece
from easylm_jax.data.texts import source_texts
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import write_lines
from easylm_jax.runtime.functions import load_function
from easylm_jax.runtime.monitor import counting
from easylm_jax.runtime.monitor.progress import short_time
from easylm_jax.runtime.processes import log_once
from models import reading
from models.errors import UserError


def make_data(stage: MakeData, workspace: Workspace) -> dict[str, Any]:
    """Runs a `MakeData` stage; returns its entries of `done.json`."""
    try:
        function = load_function(stage.function)
    except UserError as error:
        raise UserError(f"stage {stage.name}: {error}") from None
    folder = workspace.folder(stage.name)
    arguments = dict(stage.arguments)
    try:
        inspect.signature(function).bind(stage.seed, **arguments)
    except TypeError as error:
        raise UserError(
            f"stage {stage.name}: {stage.function} cannot be called with these arguments: {error}"
        ) from None
    with counting(stage.name, None, None) as progress, progress.phase(f"running {stage.function}"):
        files = _files_of(function, stage, arguments)
        for file in files:
            if not reading.is_inside(file):
                raise UserError(f"stage {stage.name}: {stage.function} returned the file name {file!r}, which is none")
        if processes.is_first_process():
            for file, records in files.items():
                try:
                    write_lines(folder / file, records)
                except (TypeError, ValueError, RecursionError) as error:  # such as half of a surrogate pair
                    raise UserError(
                        f"stage {stage.name}: {stage.function} made records for {file} that cannot be written: {error}"
                    ) from None
    log_once(f"{stage.name}: wrote {', '.join(files)}")
    processes.barrier(f"data {stage.name}")
    return {"files": list(files)}


def _files_of(function: Callable[..., Any], stage: MakeData, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the function of the recipe returns; a `UserError` where it fails, ends the program or returns no files."""
    try:
        files = function(stage.seed, **arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the function is the user's program
        why = repr(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        raise UserError(f"stage {stage.name}: {stage.function} failed: {why}") from error
    if not isinstance(files, dict):
        raise UserError(
            f"stage {stage.name}: {stage.function} returned a {type(files).__name__}; it must return a dictionary of "
            "file names and their records"
        )
    return files


def train_tokenizer(stage: Tokenizer, workspace: Workspace) -> dict[str, Any]:
    """Runs a `Tokenizer` stage; returns its entries of `done.json`."""
    folder = workspace.folder(stage.name)
    path = folder / "tokenizer.model"
    sources = workspace.sources(stage.sources)
    if processes.is_first_process():
        log_once(f"{stage.name}: training a vocabulary of {stage.vocab_size}")
        began = time.monotonic()
        with counting(stage.name, None, None) as progress, progress.phase("training the vocabulary"):
            _sentencepiece_of(source_texts(sources), stage, folder)
        log_once(f"{stage.name}: trained in {short_time(time.monotonic() - began)}")
    processes.barrier(f"tokenizer {stage.name}")
    return {"tokenizer": load_tokenizer(f"sp:{path}").describe()}


def _sentencepiece_of(texts: Iterable[str], stage: Tokenizer, folder: Path) -> None:
    """Trains the vocabulary. A `UserError` in the texts is raised as it is, without SentencePiece's error around it."""
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
