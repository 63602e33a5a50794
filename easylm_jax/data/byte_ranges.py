"""Reads parts of files where they lie: a path, or an address (`gs://`, `s3://`, `http://`, `https://`).

All reads go through tensorstore's key-value stores, which ask for byte ranges and read many at once. Credentials are
those of the machine (Google's application default, AWS's environment or profile). `AWS_ENDPOINT_URL` names another
server that speaks S3, whose buckets are the first part of its paths.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.errors import UserError

SCHEMES = ("gs://", "s3://", "http://", "https://")
_FIRST_PROBE = 1 << 24  # bytes
_LARGEST = 1 << 46
_stores: dict[str, Any] = {}


class Part(NamedTuple):
    """Bytes `first` to `last` (exclusive) of a file."""

    file: str
    first: int
    last: int


def is_remote(path: str) -> bool:
    """Whether a path is an address of a store rather than a file of this machine."""
    return path.startswith(SCHEMES)


def read(parts: Sequence[Part]) -> list[bytes]:
    """The bytes of all parts, which are read at the same time.

    Raises:
        UserError: a file is missing, shorter than a part, or cannot be read.
    """
    asked = [_request(part) for part in parts]
    return [_answer(part, request) for part, request in zip(parts, asked, strict=True)]


def find(pattern: str) -> list[str]:
    """Files that a path, glob or folder names, sorted: those below a folder that end in .npy. Empty where there are
    none; of an address without `*`, the address itself, unseen."""
    if not is_remote(pattern):
        path = Path(pattern).expanduser()
        if path.is_dir():
            return sorted(str(file) for file in path.rglob("*.npy"))
        return sorted(str(Path(name)) for name in glob.glob(str(path), recursive=True))
    if not any(mark in pattern for mark in "*?["):
        return [pattern]
    import tensorstore

    root, key = _split(pattern)
    prefix = key[: min(key.find(mark) for mark in "*?[" if mark in key)]
    following = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
    try:
        found = _store(root).list(tensorstore.KvStore.KeyRange(prefix, following)).result()
    except Exception as error:
        raise UserError(f"data: cannot list {pattern}: {_reason(error)}; name the files in a list") from None
    names = (name.decode() for name in found)
    return sorted(root + name for name in names if fnmatch.fnmatchcase(name, key))


def sizes(files: Sequence[str]) -> list[int]:
    """The size of each file in bytes. That of a remote one is searched with about 30 requests of one byte.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    found: dict[str, int] = {}
    for file in files:
        if not is_remote(file) and file not in found:
            try:
                found[file] = os.stat(file).st_size
            except OSError as error:
                raise UserError(f"data: cannot read {file}: {error.strerror}") from None
    found |= _probed(sorted({file for file in files if is_remote(file)}))
    return [found[file] for file in files]


def _probed(files: list[str]) -> dict[str, int]:
    """Sizes by bisection: byte n exists, or asking for it is out of range."""
    low = {file: 0 for file in files}  # bytes that exist
    high: dict[str, int | None] = {file: None for file in files}  # a byte that does not
    while True:
        asked: list[tuple[str, int, Any]] = []
        for file in files:
            limit = high[file]
            if limit is not None and limit <= low[file]:
                continue
            at = max(_FIRST_PROBE, 2 * low[file]) if limit is None else (low[file] + limit) // 2
            if at > _LARGEST:
                raise UserError(f"data: {file} does not answer requests for single bytes")
            asked.append((file, at, _request(Part(file, at, at + 1))))
        if not asked:
            return low
        for file, at, request in asked:
            if _exists(file, at, request):
                low[file] = at + 1
            else:
                high[file] = at


def _exists(file: str, at: int, request: Any) -> bool:
    try:
        answer = request.result()
    except Exception as error:
        if "OUT_OF_RANGE" in str(error):
            return False
        raise UserError(f"data: cannot read {file}: {_reason(error)}") from None
    if answer.state == "missing":
        raise UserError(f"data: there is no file {file}")
    return True


def _request(part: Part) -> Any:
    root, key = _split(part.file)
    return _store(root).read(key, byte_range=slice(part.first, part.last))


def _answer(part: Part, request: Any) -> bytes:
    try:
        answer = request.result()
    except Exception as error:
        raise UserError(f"data: cannot read {part.file}: {_reason(error)}") from None
    if answer.state == "missing":
        raise UserError(f"data: there is no file {part.file}")
    return answer.value


def _split(file: str) -> tuple[str, str]:
    """The store of a file and its key there."""
    if not is_remote(file):
        return "file:///", str(Path(file).expanduser().absolute()).lstrip("/")
    scheme, _, rest = file.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}/", key


def _store(root: str) -> Any:
    if root not in _stores:
        import tensorstore

        try:
            _stores[root] = tensorstore.KvStore.open(_spec(root)).result()
        except Exception as error:
            raise UserError(f"data: cannot open {root}: {_reason(error)}") from None
    return _stores[root]


def _spec(root: str) -> str | dict[str, Any]:
    """How tensorstore is to open a root. It does not read AWS's variables for other servers by itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not (root.startswith("s3://") and endpoint):
        return root
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return {"driver": "s3", "bucket": root.split("/")[2], "endpoint": endpoint.rstrip("/"), "aws_region": region}


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
