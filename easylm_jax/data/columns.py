"""Columns computed from a complete cache and stored with it, such as reference log-probabilities or scores.

    <cache>/extra/<name>-<key>/columns.json    the key of the cache, the key of the columns, checksums
    <cache>/extra/<name>-<key>/NAME.npy        one array [n, ...], by index of the pair or prompt

`key` identifies everything else that decides the values, such as the model's parameters and the objective's options.
Another key is another folder, so that stale values are never read. Columns are written completely or not at all.

    store = open_columns(cache, "reference", key)
    if store is None:
        store = write_columns(cache, "reference", key, {"reference_chosen": ..., "reference_rejected": ...})
    loader = Loader(cache.with_columns(store), ...)
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from easylm_jax.data.cache import Cache, digest_of, publish
from easylm_jax.runtime.files import write_json
from models import reading
from models.durable import sync_tree
from models.errors import UserError

_COUNTS = {"pair_index": "pairs", "prompt_index": "prompts"}  # index column: the manifest's count


class _ColumnsFile(TypedDict):
    cache: str
    key: str
    index: str
    columns: dict[str, str]


class ColumnStore:
    """Arrays [n, ...] by name, which are indexed by the batch column `index`.

    In a batch each has the shape [*shape of the index, ...], with 0 where the index is -1.
    """

    def __init__(self, fingerprint: str, arrays: Mapping[str, np.ndarray], index: str = "pair_index"):
        self.fingerprint, self.arrays, self.index = fingerprint, dict(arrays), index

    def check(self, cache: Cache) -> None:
        """Raises `UserError` unless the arrays belong to `cache` and have a value for each pair or prompt."""
        if self.fingerprint != cache.fingerprint:
            raise UserError(
                f"columns {', '.join(self.arrays)} were computed for cache {self.fingerprint[:16]}, "
                f"not for {cache.folder}; compute them again"
            )
        _check_arrays(cache, self.arrays, self.index)

    def gather(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns of one batch."""
        numbers = batch[self.index]
        there, safe = numbers >= 0, np.maximum(numbers, 0)
        gathered = {}
        for name, values in self.arrays.items():
            picked = np.asarray(values[safe])
            mask = there.reshape(there.shape + (1,) * (picked.ndim - there.ndim))
            gathered[name] = np.where(mask, picked, np.zeros((), picked.dtype))
        return gathered


def _check_arrays(cache: Cache, arrays: Mapping[str, np.ndarray], index: str) -> None:
    if index not in cache.columns or index not in _COUNTS:
        raise UserError(f"cache {cache.folder} has no column {index} to read other columns by")
    count = cache.manifest[_COUNTS[index]]
    for name, values in arrays.items():
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"columns: {name!r} is not a valid name of a column; use letters, digits and _")
        if len(np.shape(values)) < 1 or len(values) != count:
            raise UserError(
                f"columns: {name} has shape {np.shape(values)}, cache {cache.folder} has {count} {_COUNTS[index]}"
            )


def columns_folder(cache: Cache, name: str, key: str) -> Path:
    """The folder of the columns called `name` with this `key`."""
    return cache.folder / "extra" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def open_columns(cache: Cache, name: str, key: str) -> ColumnStore | None:
    """The columns written under `name` and `key`, or None; `UserError` when they are damaged."""
    folder = columns_folder(cache, name, key)
    if not (folder / "columns.json").is_file():
        return None
    try:
        facts = reading.read_json(folder / "columns.json", _ColumnsFile)
        files = facts["columns"]
        if not all(re.fullmatch(r"\w+", column) for column in files):
            raise UserError(f"a column is called {next(iter(files))!r}")
        if facts["key"] != key or any(digest_of(folder / f"{name}.npy") != files[name] for name in files):
            raise UserError("a checksum differs")
        arrays = {column: reading.read_array(folder / f"{column}.npy") for column in files}
    except (UserError, OSError) as error:
        reason = error.why if isinstance(error, reading.Damaged) else str(error)
        raise UserError(f"columns {folder} are damaged ({reason}); delete the folder and compute them again") from None
    store = ColumnStore(facts["cache"], arrays, facts["index"])
    store.check(cache)
    return store


def write_columns(
    cache: Cache,
    name: str,
    key: str,
    arrays: Mapping[str, np.ndarray],
    *,
    index: str = "pair_index",
    facts: Mapping[str, Any] | None = None,
) -> ColumnStore:
    """Stores `arrays` (each [number of pairs or prompts, ...]; floats become float32) and opens them.

    If another process has written them already, its columns stay. `facts` are stored too, for information.

    Raises:
        UserError: a shape is wrong, a value is not finite, or the folder cannot be written.
    """
    arrays = {column: np.asarray(values) for column, values in arrays.items()}
    _check_arrays(cache, arrays, index)
    for column, values in arrays.items():
        if np.issubdtype(values.dtype, np.floating):
            arrays[column] = values = values.astype(np.float32)
            if not np.isfinite(values).all():
                first = int(np.argwhere(~np.isfinite(values))[0][0])
                raise UserError(
                    f"columns: {column} is {values[first]} at index {first}; only finite values can be stored"
                )
    folder = columns_folder(cache, name, key)
    work = folder.with_name(f".{folder.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        checksums = {}
        for column, values in arrays.items():
            np.save(work / f"{column}.npy", values)
            checksums[column] = digest_of(work / f"{column}.npy")
        described = {"cache": cache.fingerprint, "name": name, "key": key, "index": index, "columns": checksums}
        write_json(work / "columns.json", {**described, "facts": dict(facts or {})})
        sync_tree(work)  # the rename that follows must not reach the disk before the data
        _publish(work, folder)
    except OSError as error:
        raise UserError(f"columns: cannot write below {folder.parent}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    store = open_columns(cache, name, key)
    if store is None:
        raise UserError(f"columns: {folder} exists but holds no columns; move it away and compute them again")
    return store


def _publish(work: Path, folder: Path) -> None:
    try:
        publish(work, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
