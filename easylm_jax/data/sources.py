"""Reads records of files, Hugging Face `datasets`, TFDS and seqio tasks, one at a time."""

from __future__ import annotations

import codecs
import csv
import functools
import glob
import gzip
import hashlib
import io
import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from easylm_jax.config.data import Source
from easylm_jax.data.records import DECODER, DEEPEST, BadRecord, Record, is_deep, parse_json, plain
from models.errors import UserError

_LARGEST_CELL = 1 << 30  # characters of a cell of a CSV file; Python's own limit is 128 kB
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


def read_streams(source: Source) -> list[Callable[[], Iterator[tuple[Record | BadRecord, str]]]]:
    """Functions that read a source in parts, whose records one after the other are those of `read_records`: each file
    of a source of files, the whole source where it is a named set or has `skip` or `limit`."""
    if source.named or source.skip or source.limit is not None:
        return [functools.partial(read_records, source)]
    return [functools.partial(_read_file, file, source) for file in files_of(source)]


def _split_name(source: Source) -> tuple[str, str]:
    name = source.path.partition(":")[2]
    name, _, split = name.partition(":")
    return name, split or "train"


def _read_file(path: Path, source: Source) -> Iterator[tuple[Record | BadRecord, str]]:
    kind = _kind(path) or ""
    if kind == ".parquet":
        return _read_parquet(path)
    if kind == ".csv":
        return _read_csv(path)
    return _read_text(path, source) if kind.startswith(".txt") else _read_json(path)


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(path))
    if path.name.lower().endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return open(path, "rb")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, decompressed and without a byte order mark.

    A line that starts with the mark loses it too: files may have been joined. `UserError` where the file cannot be read
    any further. A damaged part of a compressed file is never skipped, since its lines may have changed before the
    damage shows.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.removeprefix(codecs.BOM_UTF8)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"data: cannot read {path} after line {number}: {_first_line(error)}") from None


def _decoded(line: bytes, where: str) -> str:
    """A line as text; `BadRecord` where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"{where}: not UTF-8 text: {error.reason} at byte {error.start + 1} of the line") from None


def _read_json(path: Path) -> Iterator[tuple[Record | BadRecord, str]]:
    """Reads JSON lines; a .json file may also be a single list of records."""
    kind = _kind(path) or ""
    lines = numbered_lines(path)
    if kind.startswith(".json") and not kind.startswith(".jsonl"):
        first = next((numbered for numbered in lines if not _is_blank(numbered[1])), None)
        if first is not None and first[1].lstrip().startswith(b"["):
            yield from _records_of_list(path, b"".join([first[1], *(line for _, line in lines)]))
            return
        lines = itertools.chain([] if first is None else [first], lines)
    for number, line in lines:
        if _is_blank(line):
            continue
        where = f"{path}:{number}"
        try:
            record = parse_json(_decoded(line, where).rstrip("\r\n"))
            yield (record if isinstance(record, dict) else BadRecord(f"{where}: not a JSON object")), where
        except BadRecord as error:
            yield error, where
        except ValueError as error:
            yield BadRecord(f"{where}: {error}"), where


def _records_of_list(path: Path, content: bytes) -> Iterator[tuple[Record | BadRecord, str]]:
    try:
        records = DECODER.decode(content.decode("utf-8"))
    except RecursionError:
        raise UserError(f"data: {path} is not valid JSON: it is nested too deep") from None
    except ValueError as error:
        raise UserError(f"data: {path} is not valid JSON: {error}") from None
    for index, record in enumerate(records):
        where = f"{path} record {index}"
        if not isinstance(record, dict):
            yield BadRecord(f"{where}: not a JSON object"), where
        elif is_deep(record):
            yield BadRecord(f"{where}: JSON nested more than {DEEPEST} levels deep"), where
        else:
            yield record, where


def _read_parquet(path: Path) -> Iterator[tuple[Record, str]]:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    yield record, f"{path} row {index}"
                    index += 1
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data: {path} is not a readable parquet file: {str(error).splitlines()[0]}") from None
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise UserError(f"data: cannot read {path} after row {index}: {_first_line(error)}") from None


def _read_csv(path: Path) -> Iterator[tuple[Record | BadRecord, str]]:
    """Reads CSV with a header. A row that does not have one cell for each column is a bad record, not filled or cut."""
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(_csv_lines(path), strict=True)
    header: list[str] | None = None
    while True:
        began = reader.line_num + 1
        where = f"{path}:{began}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise UserError(f"data: {where}: the header is broken CSV: {error}") from None
            yield BadRecord(f"{where}: broken CSV: {error}"), where
            continue
        if cells is None:
            return
        if header is None:
            header = _header(cells, where)
        elif cells:  # not an empty line
            yield _csv_record(header, cells, where), where


def _csv_lines(path: Path) -> Iterator[str]:
    """The lines of a CSV file, which may also end with "\\r". Bytes that are not UTF-8 become surrogates, so that the
    row is found that holds them."""
    for _, line in numbered_lines(path):
        yield from io.StringIO(line.decode("utf-8", "surrogateescape"), newline="")


def _header(cells: list[str], where: str) -> list[str]:
    twice = next((name for name in cells if cells.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"data: {where}: the header names column {twice!r} twice")
    return cells


def _csv_record(header: list[str], cells: list[str], where: str) -> Record | BadRecord:
    if len(cells) != len(header):
        return BadRecord(f"{where}: {len(cells)} cells, but the header has {len(header)}")
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return BadRecord(f"{where}: not UTF-8 text")
    return dict(zip(header, cells, strict=True))


def _read_text(path: Path, source: Source) -> Iterator[tuple[Record | BadRecord, str]]:
    """Reads the documents of a text file: the whole file, its lines, or its paragraphs."""
    whole = source.text_unit == "file"
    for first, lines in _documents(path, source.text_unit):
        where = str(path) if whole else f"{path}:{first}"
        try:
            text = "".join(_decoded(line, f"{path}:{number}") for number, line in enumerate(lines, first))
            yield {source.text_field: text if whole else text.rstrip("\r\n")}, where
        except BadRecord as error:
            yield error, where


def _documents(path: Path, unit: str) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of each document of a text file, with the number of the first."""
    if unit == "file":
        yield 1, [line for _, line in numbered_lines(path)]
        return
    for blank, group in itertools.groupby(numbered_lines(path), key=lambda numbered: _is_blank(numbered[1])):
        if blank:
            continue
        if unit == "line":
            yield from ((number, [line]) for number, line in group)
            continue
        numbers, lines = zip(*group, strict=True)
        yield numbers[0], list(lines)


def _is_blank(line: bytes) -> bool:
    return not line.decode("utf-8", "replace").strip()


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


def _read_tfds(source: Source) -> Iterator[tuple[Record | BadRecord, str]]:
    import tensorflow_datasets as tfds

    name, split = _split_name(source)
    try:
        loaded = tfds.as_numpy(tfds.load(name, split=split, shuffle_files=False))
    except Exception as error:
        raise UserError(f"data: cannot load {source.path}: {_first_line(error)}") from None
    for index, record in enumerate(loaded):
        where = f"{source.path} row {index}"
        try:
            yield plain(record), where
        except UnicodeDecodeError as error:
            yield BadRecord(f"{where}: not UTF-8 text: {error.reason}"), where


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
