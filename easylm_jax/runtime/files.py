"""Atomic file writes: a temporary file is renamed, so a killed process leaves either the old file or the new one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file, which replaces `path` when the block ends without an error."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        yield file
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value, indented; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON record per line, consuming `records` lazily; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.writelines((json.dumps(record, ensure_ascii=False) + "\n").encode() for record in records)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file that `write_lines` wrote, lazily. Lines end at "\\n" only: a record may contain other
    characters that `splitlines` treats as line ends."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)
