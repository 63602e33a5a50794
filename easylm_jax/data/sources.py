"""Reads records of files, Hugging Face `datasets`, TFDS and seqio tasks, one at a time."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from easylm_jax.config.data import Source
from easylm_jax.data.records import BadRecord, Record, plain
from models.errors import UserError

_TEXT_SUFFIXES = (".jsonl", ".json", ".txt")
_COMPRESSED = (".gz", ".zst")
SUFFIXES = (
    *(suffix + compressed for suffix in _TEXT_SUFFIXES for compressed in ("", *_COMPRESSED)),
    ".ndjson",
    ".parquet",
    ".csv",
)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


def files_of(source: Source) -> list[Path]:
    """The files of a source in reading order (sorted by path); `UserError` if there are none or a type is unknown."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
        if not found:
            raise UserError(f"data: folder {path} holds no file that ends in {', '.join(SUFFIXES)}")
        return found
    if path.is_file():
        found = [path]
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise UserError(f"data: no file at {source.path}; give a file, a glob or a folder that exists")
    for file in found:
        if _kind(file) is None:
            raise UserError(f"data: {file} ends in none of {', '.join(SUFFIXES)}")
    return found


def file_fingerprint(path: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Name, size, time and SHA-256 of a file; reuses the hash of `known` if path, size and time are the same."""
    stat = path.stat()
    facts = {"path": str(path.absolute()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if known is not None and all(known.get(key) == value for key, value in facts.items()):
        return {**facts, "sha256": known["sha256"]}
    with open(path, "rb") as file:
        return {**facts, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def source_files(source: Source) -> list[Path]:
    """The files whose content is part of the cache key; none for sets that are known only by name."""
    if not source.named:
        return files_of(source)
    name = _split_name(source)[0]
    folder = Path(name).expanduser()
    if source.path.startswith("hf:") and folder.is_dir():
        return sorted(file for file in folder.rglob("*") if file.is_file())
    return []


def read_records(source: Source) -> Iterator[tuple[Record | BadRecord, str]]:
    """Yields (record, place) after `skip` and up to `limit`; a record that cannot be parsed is a `BadRecord`."""
    records: Iterator[tuple[Record | BadRecord, str]]
    if source.path.startswith("hf:"):
        records = _read_hf(source)
    elif source.path.startswith("tfds:"):
        records = _read_tfds(source)
    elif source.path.startswith("seqio:"):
        from easylm_jax.data.seqio_read import read_task

        name, split = _split_name(source)
        records = read_task(name, split, source.module)
    else:
        records = itertools.chain.from_iterable(_read_file(file, source) for file in files_of(source))
    stop = None if source.limit is None else source.skip + source.limit
    return itertools.islice(records, source.skip, stop)


def _split_name(source: Source) -> tuple[str, str]:
    name = source.path.partition(":")[2]
    name, _, split = name.partition(":")
    return name, split or "train"


def _read_file(path: Path, source: Source) -> Iterator[tuple[Record | BadRecord, str]]:
    kind = _kind(path) or ""
    try:
        if kind == ".parquet":
            yield from _read_parquet(path)
        elif kind == ".csv":
            yield from _read_csv(path)
        elif kind.startswith(".txt"):
            yield from _read_text(path, source)
        else:
            yield from _read_json(path)
    except UnicodeDecodeError as error:
        raise UserError(f"data: {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, EOFError) as error:
        raise UserError(f"data: cannot read {path}: {error}") from None


def _open(path: Path) -> io.TextIOBase:
    if path.name.lower().endswith(".gz"):
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="\n")
    if path.name.lower().endswith(".zst"):
        import pyarrow

        return io.TextIOWrapper(pyarrow.input_stream(path, compression="zstd"), encoding="utf-8", newline="\n")
    return open(path, encoding="utf-8-sig", newline="\n")


def _read_json(path: Path) -> Iterator[tuple[Record | BadRecord, str]]:
    """Reads JSON lines; a .json file may also be a single list of records."""
    with _open(path) as file:
        kind = _kind(path) or ""
        lines: Iterable[str] = file
        if kind.startswith(".json") and not kind.startswith(".jsonl"):
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            if start == "[":
                yield from _records_of_list(path, start + file.read())
                return
            lines = itertools.chain([start + file.readline()], file)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                message = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                yield BadRecord(f"{where}: broken JSON: {message}"), where
                continue
            yield (record if isinstance(record, dict) else BadRecord(f"{where}: not a JSON object")), where


def _records_of_list(path: Path, text: str) -> Iterator[tuple[Record | BadRecord, str]]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise UserError(f"data: {path} is not valid JSON: {error}") from None
    for index, record in enumerate(records):
        where = f"{path} record {index}"
        yield (record if isinstance(record, dict) else BadRecord(f"{where}: not a JSON object")), where


def _read_parquet(path: Path) -> Iterator[tuple[Record, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    yield record, f"{path} row {index}"
                    index += 1
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data: {path} is not a readable parquet file: {str(error).splitlines()[0]}") from None


def _read_csv(path: Path) -> Iterator[tuple[Record, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        for index, record in enumerate(csv.DictReader(file)):
            yield record, f"{path} row {index}"


def _read_text(path: Path, source: Source) -> Iterator[tuple[Record, str]]:
    with _open(path) as file:
        if source.text_unit == "file":
            yield {source.text_field: file.read()}, str(path)
            return
        if source.text_unit == "line":
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield {source.text_field: line.rstrip("\r\n")}, f"{path}:{number}"
            return
        numbered = enumerate(file, 1)
        for blank, group in itertools.groupby(numbered, key=lambda item: not item[1].strip()):
            if not blank:
                lines = list(group)
                yield {source.text_field: "".join(line for _, line in lines).rstrip("\r\n")}, f"{path}:{lines[0][0]}"


def _read_hf(source: Source) -> Iterator[tuple[Record, str]]:
    import datasets

    name, split = _split_name(source)
    folder = Path(name).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            if source.data_files or source.data_dir:
                raise ValueError("a folder made by save_to_disk has no data_files or data_dir to choose from")
            loaded = datasets.load_from_disk(str(folder))
            loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            chosen: dict[str, Any] = {"data_dir": source.data_dir, "streaming": source.streaming}
            if source.data_files is not None:
                chosen["data_files"] = (
                    list(source.data_files) if isinstance(source.data_files, tuple) else source.data_files
                )
            loaded = datasets.load_dataset(name, source.subset, split=split, **chosen)
    except Exception as error:
        raise UserError(f"data: cannot load {source.path}: {_first_line(error)}") from None
    records = enumerate(loaded)
    while True:
        try:
            index, record = next(records, (0, None))
        except Exception as error:  # while streaming: a broken file or a lost connection
            raise UserError(f"data: cannot read {source.path}: {_first_line(error)}") from None
        if record is None:
            return
        yield record, f"{source.path} row {index}"


def _read_tfds(source: Source) -> Iterator[tuple[Record, str]]:
    import tensorflow_datasets as tfds

    name, split = _split_name(source)
    try:
        loaded = tfds.as_numpy(tfds.load(name, split=split, shuffle_files=False))
    except Exception as error:
        raise UserError(f"data: cannot load {source.path}: {_first_line(error)}") from None
    for index, record in enumerate(loaded):
        yield plain(record), f"{source.path} row {index}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
