"""Rows of files as JSON lines, in blocks of bounded size; a line of a JSONL file stays the bytes that it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from easylm_jax.config.data import Source
from easylm_jax.data import sources
from easylm_jax.data.records import BadRecord, Record, parse_json
from models.errors import UserError

BLOCK_ROWS = 2048
BLOCK_BYTES = 4 << 20
_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson")


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive rows of one file.

    Attributes:
        number: of the block, from 0, over all files.
        file: index of the file.
        first: number of its first row in the file, from 0.
        lines: the rows as JSON without line ends.
        places: where each row stands, `file:line`.
    """

    number: int
    file: int
    first: int
    lines: tuple[bytes, ...]
    places: tuple[str, ...]


def files_of(paths: Sequence[str]) -> list[Path]:
    """The files that paths, globs and folders name, in this order; `UserError` if there are none."""
    return [file for path in paths for file in sources.files_of(Source(path))]


def lines_of(path: Path) -> Iterator[tuple[bytes, str]]:
    """(row as JSON, place) of each row of a file.

    Raises:
        UserError: the file cannot be read, or a row is damaged where rows are not lines of JSON (these are checked by
            `record_of`, in the process that reads them).
    """
    if path.name.lower().endswith(_LINES):
        for number, line in sources.numbered_lines(path):
            if line.strip():
                yield line.rstrip(b"\r\n"), f"{path}:{number}"
        return
    for record, where in sources.read_records(Source(str(path))):
        if isinstance(record, BadRecord):
            raise UserError(f"data: {record}")
        yield json.dumps(record, ensure_ascii=False, default=str).encode(), where


def blocks(files: Sequence[Path]) -> Iterator[Block]:
    """All rows in blocks of at most `BLOCK_ROWS` rows and about `BLOCK_BYTES` bytes; no block is of two files."""
    number = 0
    for index, file in enumerate(files):
        lines: list[bytes] = []
        places: list[str] = []
        first = held = 0
        for line, place in lines_of(file):
            lines.append(line)
            places.append(place)
            held += len(line)
            if len(lines) == BLOCK_ROWS or held >= BLOCK_BYTES:
                yield Block(number, index, first, tuple(lines), tuple(places))
                number, first, held = number + 1, first + len(lines), 0
                lines, places = [], []
        if lines:
            yield Block(number, index, first, tuple(lines), tuple(places))
            number += 1


def record_of(line: bytes, place: str) -> Record:
    """A row as a dictionary; `UserError` if it is no JSON object."""
    try:
        value: Any = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"data: {place}: not UTF-8 text: {error.reason} at byte {error.start + 1} of the line"
        ) from None
    except ValueError as error:
        raise UserError(f"data: {place}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"data: {place}: not a JSON object")
    return value
