"""Files as `torch.save` writes them, put together by hand: a ZIP archive of a pickle and raw numbers, without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int8": "CharStorage"}


def called(module: str, name: str, *arguments: bytes) -> bytes:
    """A pickle's call of a function."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def numbers(values: Any) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


EMPTY = called("collections", "OrderedDict")


def storage(kind: str, key: str, count: int) -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(stored: bytes, offset: int, size: Any, stride: Any) -> bytes:
    parts = (stored, number(offset), numbers(size), numbers(stride), b"\x89", EMPTY)
    return called("torch._utils", "_rebuild_tensor_v2", *parts)


def pickled(items: dict[str, bytes]) -> bytes:
    """The pickle of an ordered dictionary of values, with the attribute `_metadata` that a state dict has."""
    body = b"".join(text(name) + value for name, value in items.items())
    return b"\x80\x02" + EMPTY + b"(" + body + b"u" + b"}" + text("_metadata") + EMPTY + b"sb."


def archive(path: Path, pickle: bytes, storages: dict[str, bytes], *, root: str = "model", compress: bool = False,
            byteorder: str = "little") -> None:  # fmt: skip
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr(f"{root}/data.pkl", pickle)
        file.writestr(f"{root}/byteorder", byteorder)
        for key, raw in storages.items():
            file.writestr(f"{root}/data/{key}", raw)


def write(path: Path, tensors: dict[str, np.ndarray], **how: Any) -> None:
    """Tensors by name, each in a storage of its own; every second one transposed there, as a view of it."""
    items, storages = {}, {}
    for at, (name, array) in enumerate(tensors.items()):
        laid = array.T if at % 2 else array
        kind = STORAGES[array.dtype.name]
        strides = [step // array.itemsize for step in np.ascontiguousarray(laid).strides]
        strides = strides[::-1] if at % 2 else strides
        storages[str(at)] = np.ascontiguousarray(laid).tobytes()
        items[name] = tensor(storage(kind, str(at), array.size), 0, array.shape, strides)
    archive(path, pickled(items), storages, **how)
