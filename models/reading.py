"""Reads files back: bounded in size and depth, of the expected types, with paths inside their folder, or one line.

    class Done(TypedDict):
        hash: str
        checkpoint: NotRequired[str]

    done = read_json(path, Done, mend="run the stage again")

Whatever a file holds, reading it gives a value of the expected type or raises `Damaged`, a `UserError`. Every room
reads files of the project and of Hugging Face through this module.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import stat
import tokenize
import types
import typing
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from models.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 1 << 30  # of one JSON file, and of one line of a file of lines
MAX_DEPTH = 64  # of lists and objects inside each other
MAX_DIGITS = 20  # of a whole number: 2^64 has 20
MEND = "restore it from a copy, or delete it to continue without it"

Object = dict[str, Any]
_SEAL = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\n?\Z')
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


class Damaged(UserError):
    """A file does not hold what it should; the message names it, says why and how to go on."""

    def __init__(self, path: Any, why: str, mend: str = MEND):
        super().__init__(f"{path} is damaged ({why}); {mend}")
        self.why = why


def read_json(path: Any, kind: Any = Object, *, mend: str = MEND, limit: int = MAX_BYTES) -> Any:
    """The JSON value in a file, checked to be a `kind`.

    Args:
        path: a local path, or one of a bucket (`etils.epath`).
        kind: int, float, str, bool, None, `Any`, `Literal`, `list[X]`, `dict[str, X]`, `tuple[X, Y]` (a list of this
            length), a union, or a `TypedDict`, which may have further keys.
        mend: what to do about a damaged file, for the message.
        limit: of bytes.

    Raises:
        Damaged: the file cannot be read, is too large, is no JSON, nests too deep, or is no `kind`.
    """
    return parse_json(read_bytes(path, mend=mend, limit=limit), kind, path, mend=mend)


def read_bytes(path: Any, *, mend: str = MEND, limit: int = MAX_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes; `Damaged` when it is larger or cannot be read."""
    try:
        if "://" in str(path):
            size = path.stat().length
        else:
            found = os.stat(path)
            size = found.st_size
            if not stat.S_ISREG(found.st_mode):  # a pipe would wait for ever
                raise Damaged(path, "it is not a file", mend)
        if size > limit:
            raise Damaged(path, f"it has {size:,} bytes, more than {limit:,}", mend)
        with path.open("rb") if hasattr(path, "open") else open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise Damaged(path, f"it cannot be read: {getattr(error, 'strerror', None) or error}", mend) from None


def parse_json(data: bytes | str, kind: Any, where: Any, *, mend: str = MEND, digits: int = MAX_DIGITS) -> Any:
    """`data` as JSON, checked to be a `kind`; `where` names its file in messages, and a whole number has at most
    `digits`. Raises `Damaged` as `read_json`."""

    def whole_number(text: str) -> int:
        if len(text) > digits + 1:  # a sign is one character
            raise ValueError(f"a whole number of {len(text)} digits")
        return int(text)

    try:
        value = json.loads(data.decode("utf-8") if isinstance(data, bytes) else data, parse_int=whole_number)
        _check_depth(value)
        _check_text(data, value)
    except RecursionError:
        raise Damaged(where, f"its lists nest deeper than {MAX_DEPTH}", mend) from None
    except ValueError as error:
        raise Damaged(where, _short(f"no valid JSON: {error}"), mend) from None
    found = fault(kind, value)
    if found is not None:
        raise Damaged(where, _short(found), mend)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for holder in level if isinstance(holder, (dict, list))
            for item in (holder.values() if isinstance(holder, dict) else holder) if isinstance(item, (dict, list))
        ]  # fmt: skip
        if not level:
            return
    raise RecursionError


def _check_text(data: bytes | str, value: Any) -> None:
    """Raises `ValueError` for half of a surrogate pair, which no file and no terminal can take."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if _HALF_PAIR.search(raw):
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError


def read_lines(path: Any, kind: Any = Object, *, mend: str = MEND, last_may_be_cut: bool = False) -> Iterator[Any]:
    """The JSON values of a file with one on each line, read lazily; empty lines are left out.

    Lines end at "\\n" only: texts may hold other characters that `splitlines` takes for line ends.

    Args:
        path, kind, mend: as for `read_json`.
        last_may_be_cut: a last line without its newline that is no JSON, as a killed process leaves it, is left out.

    Raises:
        Damaged: the file cannot be read, or a line is no JSON or no `kind`; the message names the line.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Damaged(path, "it is not a file", mend)
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_BYTES):
                number += 1
                if not line.strip():
                    continue
                if len(line) == MAX_BYTES:
                    raise Damaged(f"{path}, line {number},", f"it has more than {MAX_BYTES:,} bytes", mend)
                try:
                    value = parse_json(line, kind, f"{path}, line {number},", mend=mend)
                except Damaged:
                    if last_may_be_cut and not line.endswith(b"\n"):
                        return
                    raise
                yield value
    except OSError as error:
        raise Damaged(path, f"it cannot be read: {error.strerror or error}", mend) from None


def read_array(path: Any, *, mend: str = MEND) -> np.ndarray:
    """A NumPy array file, mapped into memory; `Damaged` when it is no array or shorter than its header says."""
    import numpy as np  # here, so that recipes and workers, which read no arrays, start without it

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a file")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, tokenize.TokenError,
            RecursionError, KeyError, AttributeError, IndexError) as error:  # fmt: skip
        raise Damaged(path, _short(f"no readable array: {error or type(error).__name__}"), mend) from None


def inside(folder: Any, relative: str, named_in: Any, *, mend: str = MEND) -> Any:
    """`folder / relative`; `Damaged` (naming the file `named_in`) when that may lie outside of `folder`."""
    if not is_inside(relative):
        raise Damaged(named_in, f"{_short(repr(relative), 100)} is no path inside its folder", mend)
    return folder / relative


def is_inside(relative: str) -> bool:
    """Whether a path, joined to a folder, is a path inside of that folder."""
    parts = PurePosixPath(relative).parts
    return (
        bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in relative
        and max(len(os.fsencode(part)) for part in parts) <= 255 and len(relative) < 4096
    )  # fmt: skip


def fault(kind: Any, value: Any, at: str = "") -> str | None:
    """Why `value` is no `kind` (see `read_json`), or None when it is one. `at` is the way to it, such as "files.a"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fault(inner[0], value, at)
    if origin in (Union, types.UnionType):
        return None if any(fault(option, value) is None for option in inner) else _wrong(kind, value, at)
    if typing.is_typeddict(kind):
        return _fault_of_object(kind, value, at)
    if origin is Literal:
        return None if any(value == one and type(value) is type(one) for one in inner) else _wrong(kind, value, at)
    if origin is dict and isinstance(value, dict):
        return _first(fault(inner[1], item, f"{at}.{key}".lstrip(".")) for key, item in value.items())
    if origin is list and isinstance(value, list):
        return _first(fault(inner[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is tuple and isinstance(value, (list, tuple)) and inner[-1] is Ellipsis:
        return _first(fault(inner[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(inner):
        return _first(fault(part, item, f"{at}[{i}]") for i, (part, item) in enumerate(zip(inner, value, strict=True)))
    if dataclasses.is_dataclass(kind):
        return None if isinstance(value, typing.cast(type, kind)) else _wrong(kind, value, at)
    if kind in (int, float) and not isinstance(value, bool) and isinstance(value, (int, kind)):
        return None
    plain = {None: type(None), str: str, bool: bool, type(None): type(None)}.get(kind)
    return None if kind is Any or (plain and isinstance(value, plain)) else _wrong(kind, value, at)


def fault_of_fields(value: Any) -> str | None:
    """The first field of a dataclass whose value is not of its annotated type, or None."""
    kind: Any = type(value)
    return _first(fault(hint, getattr(value, name), name) for name, hint in _keys_of(kind).items()
                  if typing.get_origin(hint) is not typing.ClassVar)  # fmt: skip


def _fault_of_object(kind: Any, value: Any, at: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong(kind, value, at)
    for name, hint in _keys_of(kind).items():
        marked = typing.get_origin(hint) is typing.NotRequired
        if name not in value:
            if not (marked or name in kind.__optional_keys__):
                return f"{f'{at} has' if at else 'there is'} no {name!r}"
            continue
        found = fault(typing.get_args(hint)[0] if marked else hint, value[name], f"{at}.{name}".lstrip("."))
        if found:
            return found
    return None


@functools.cache
def _keys_of(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _first(faults: Iterator[str | None]) -> str | None:
    return next((found for found in faults if found), None)


def _wrong(kind: Any, value: Any, at: str) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "null"}
    origin = typing.get_origin(kind) or kind
    choices = f"one of {', '.join(map(repr, typing.get_args(kind)))}" if origin is typing.Literal else None
    name = words.get(kind) or choices or ("an object" if origin is dict or typing.is_typeddict(kind) else
                               "a list" if origin in (list, tuple) else str(kind).replace("typing.", ""))  # fmt: skip
    return f"{at + ' ' if at else ''}should be {name}, not {_short(repr(value), 60)}"


def _short(text: str, length: int = 200) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def sealed(value: Object, indent: int | None = None) -> str:
    """A JSON object as text that ends with the CRC-32 of all before it; `read_sealed` detects any change to it."""
    body = json.dumps({"sealed": True, **value}, indent=indent).removesuffix("}").rstrip("\n")
    return f'{body}, "crc32": "{zlib.crc32(body.encode()):08x}"}}'


def read_sealed(path: Any, kind: Any = Object, *, mend: str = MEND) -> tuple[Any, bool]:
    """The object in a file that `sealed` wrote, and True; or that of an older file without a checksum, and False.

    Raises:
        Damaged: as `read_json`; or the checksum differs.
    """
    data = read_bytes(path, mend=mend)
    value = parse_json(data, Object, path, mend=mend)
    seal = _SEAL.search(data)
    is_sealed = "sealed" in value or "crc32" in value
    if is_sealed and (seal is None or int(seal[1], 16) != zlib.crc32(data[: seal.start()])):
        raise Damaged(path, "it has changed since it was written: its CRC-32 differs", mend)
    value.pop("sealed", None)
    value.pop("crc32", None)
    found = fault(kind, value)
    if found is not None:
        raise Damaged(path, _short(found), mend)
    return value, is_sealed
