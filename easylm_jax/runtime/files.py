"""Files that are written whole: synced to the disk under another name, then renamed.

A process that is killed and a machine that loses its power leave either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from models.durable import sync
from models.reading import sealed


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file, which replaces `path` when the block ends without an error and is removed otherwise."""
    # Named for this process, since another run may write the same file at the same time.
    temporary = path.with_name(f".{path.name[:100]}.{socket.gethostname()[:60]}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def plain(value: Any) -> Any:
    """The value as JSON has it: keys are strings, tuples lists, and numbers that are not finite null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value, indented; creates the folder if needed."""
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum of itself, for `models.reading.read_sealed`. It ends without a new line, so
    that the file lacks something whatever byte of it is cut."""
    _write(path, sealed(value, indent=2))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON record per line, consuming `records` lazily; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.writelines((json.dumps(record, ensure_ascii=False) + "\n").encode() for record in records)
