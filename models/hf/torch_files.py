"""Reads PyTorch weights (`pytorch_model.bin`) without PyTorch and without executing any code in them.

A file is a ZIP archive of `<root>/data.pkl`, a pickle that describes every tensor and the storage it belongs to, and
`<root>/data/<key>`, the raw numbers of a storage. The unpickler allows only tensors, storages and ordered dictionaries;
any other global is an error, so that nothing in the pickle is ever called. Storages are memory-mapped: a tensor is a
view of its file, and reading a slice reads only that part.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from models.errors import UserError

CONVERT = (
    'convert it where torch is installed: python -c "import transformers; '
    "m = transformers.AutoModelForCausalLM.from_pretrained('FOLDER', torch_dtype='auto'); "
    "m.save_pretrained('FOLDER', safe_serialization=True)\""
)
_STORAGES = {  # class in torch: name of the type in safetensors, and in NumPy
    "FloatStorage": ("F32", "float32"), "HalfStorage": ("F16", "float16"), "BFloat16Storage": ("BF16", "bfloat16"),
    "DoubleStorage": ("F64", "float64"), "LongStorage": ("I64", "int64"), "IntStorage": ("I32", "int32"),
    "ShortStorage": ("I16", "int16"), "CharStorage": ("I8", "int8"), "ByteStorage": ("U8", "uint8"),
    "BoolStorage": ("BOOL", "bool"),
}  # fmt: skip
_LARGEST_PICKLE = 64 * 2**20  # bytes; a pickle of 1,000 tensors has about 200,000
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a member of a ZIP archive, before its name and extra field


class Tensor:
    """A tensor of a file, with the interface of a slice of `safetensors`. Data are read only when it is indexed."""

    __slots__ = ("_array", "_kind")
    _array: np.ndarray
    _kind: str

    def __init__(self, array: np.ndarray, kind: str):
        object.__setattr__(self, "_array", array)
        object.__setattr__(self, "_kind", kind)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"a tensor of a file cannot be changed ({name})"
        )  # so that a pickle cannot change it either

    def get_shape(self) -> list[int]:
        return list(self._array.shape)

    def get_dtype(self) -> str:
        """The type's name in safetensors: "F32", "BF16", …"""
        return self._kind

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.array(self._array[index])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name.

    Raises:
        UserError: the file is no such archive, is truncated or compressed, or its pickle holds anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(pickles) != 1 or members[pickles[0]].file_size > _LARGEST_PICKLE:
                raise UserError(f"{path} has no data.pkl of a model's weights; download it again, or {CONVERT}")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in members and archive.read(f"{root}byteorder").strip() != b"little":
                raise UserError(f"{path} was saved on a big-endian machine; {CONVERT}")
            text = archive.read(pickles[0])
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{path} is not in torch's ZIP format ({error}); download it again, or, if torch before 1.6 saved it, "
            f"{CONVERT}"
        ) from None
    found = _Reader(path, text, _Storages(path, root, members)).load()
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors or len(tensors) != len(found):
        raise UserError(f"{path} does not hold named tensors alone, so it is not a model's weights")
    return tensors


class _Refused(Exception):
    """A pickle asks for something that is not allowed."""


class _Kind(NamedTuple):
    """A class of storages, as named in a pickle."""

    name: str


class _Storage(NamedTuple):
    kind: str
    numbers: np.ndarray


class _Names(dict):
    """Replaces OrderedDict; a state dict also sets the attribute `_metadata`."""


class _Function:
    """A function that a pickle may call. It has no attributes, so that a pickle cannot change it."""

    __slots__ = ()


class _Tensors(_Function):
    """torch._utils._rebuild_tensor_v2"""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        whole = [offset, *size, *stride]
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise _Refused("a tensor without a storage of its own")
        if not all(type(number) is int and number >= 0 for number in whole):
            raise _Refused("a tensor of impossible shape")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) > 0 and last >= len(storage.numbers):
            raise _Refused("a tensor that reaches beyond its storage")
        start = storage.numbers[offset:] if math.prod(size) else storage.numbers[:0]
        steps = [step * storage.numbers.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(start, tuple(size), steps, writeable=False)
        return Tensor(view, storage.kind)


class _Parameters(_Function):
    """torch._utils._rebuild_parameter"""

    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


class _Dictionaries(_Function):
    """collections.OrderedDict"""

    __slots__ = ()

    def __call__(self, items: Any = ()) -> _Names:
        return _Names(items)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Tensors(),
    ("torch._utils", "_rebuild_parameter"): _Parameters(),
    ("collections", "OrderedDict"): _Dictionaries(),
    **{("torch", name): _Kind(name) for name in _STORAGES},
}


class _Storages:
    """The storages of a file, as views of one memory map."""

    def __init__(self, path: Path, root: str, members: dict[str, zipfile.ZipInfo]):
        self.path, self.root, self.members = path, root, members
        self.bytes = np.memmap(path, np.uint8, mode="r")

    def find(self, kind: _Kind, key: str, count: int) -> _Storage:
        member = self.members.get(f"{self.root}data/{key}")
        name, numpy_name = _STORAGES[kind.name]
        dtype = jnp.dtype(numpy_name)
        if member is None or member.file_size != count * dtype.itemsize:
            raise _Refused(f"a storage {key} of {count} numbers that the file does not have")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _Refused("storages that are compressed or encrypted")
        header = bytes(self.bytes[member.header_offset : member.header_offset + _LOCAL_HEADER.size])
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise _Refused(f"a storage {key} that is not where the file says")
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        raw = self.bytes[start : start + member.file_size]
        if len(raw) != member.file_size:
            raise _Refused(f"a storage {key} that reaches beyond the end of the file")
        return _Storage(name, raw.view(dtype))


class _Reader(pickle.Unpickler):
    """An unpickler of tensors that allows only the globals of `_ALLOWED`."""

    def __init__(self, path: Path, text: bytes, storages: _Storages):
        super().__init__(io.BytesIO(text))
        self.path, self.storages = path, storages

    def load(self) -> dict[Any, Any]:
        try:
            found = super().load()
        except _Refused as refused:
            raise UserError(
                f"{self.path} asks for {refused}, which no model's weights need; nothing of it was run. Do not trust "
                "the file"
            ) from None
        except Exception as error:  # a broken or hostile pickle fails in many ways
            raise UserError(
                f"{self.path}: its data.pkl is broken ({type(error).__name__}: {error}); download it again"
            ) from None
        if not isinstance(found, dict):
            raise UserError(f"{self.path} holds no dictionary of tensors, so it is not a model's weights")
        return found

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise _Refused(f"{str(pid)[:80]!r} in the place of a storage")
        _, kind, key, _, count = pid
        if not (isinstance(kind, _Kind) and isinstance(key, str) and type(count) is int and count >= 0):
            raise _Refused(f"{str(pid)[:80]!r} in the place of a storage")
        return self.storages.find(kind, key, count)
