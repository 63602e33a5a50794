"""Files of a Hugging Face model folder: safetensors (read by slices, written in shards), JSON and tokenizers.

Where a folder has no safetensors, its PyTorch weights are read (`models/hf/torch_files.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models import reading
from models.durable import sync, sync_tree
from models.errors import UserError
from models.hf import torch_files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS, TORCH_INDEX = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # read where neither of the above exists
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
    "generation_config.json",
)  # fmt: skip


MEND = "restore it from a copy, or download it again"


class _IndexFile(TypedDict):
    """What is read of the index of weights in several files: the file of each tensor."""

    weight_map: dict[str, str]


class _AddedToken(TypedDict):
    id: int


class _TokenizerFile(TypedDict):
    """What is read here of `tokenizer.json`: the ids of its tokens."""

    model: dict[str, Any]
    added_tokens: NotRequired[list[_AddedToken] | None]


class Store:
    """The tensors in a folder's safetensors files or, where it has none, in its `pytorch_model*.bin`.

    A context manager that opens each file once and keeps nothing of it in memory.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = contextlib.ExitStack()
        self.slices: dict[str, Any] = {}

    def __enter__(self) -> Store:
        for name in self._file_names():
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{self.folder} lacks {name}, which its index lists; download it again")
            if path.suffix == ".bin":
                self.slices.update(torch_files.read_tensors(path))
                continue
            try:
                file = self.files.enter_context(safe_open(path, framework="np"))
                self.slices.update({key: file.get_slice(key) for key in file.keys()})  # noqa: SIM118 - not a mapping
            except (SafetensorError, OSError, ValueError, UnicodeError) as error:
                raise UserError(f"{path} is not a complete safetensors file ({error}); download it again") from error
        return self

    def __exit__(self, *exc: Any) -> None:
        self.slices.clear()
        self.files.close()

    def _file_names(self) -> list[str]:
        for weights, index in ((WEIGHTS, INDEX), (TORCH_WEIGHTS, TORCH_INDEX)):
            if (self.folder / index).is_file():
                listed = reading.read_json(self.folder / index, _IndexFile, mend=MEND)["weight_map"]
                for name in set(listed.values()):
                    reading.inside(self.folder, name, self.folder / index, mend=MEND)
                return sorted(set(listed.values()))
            if (self.folder / weights).is_file():
                return [weights]
        raise UserError(f"{self.folder} has neither {WEIGHTS} nor {INDEX}, nor {TORCH_WEIGHTS}")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.slices[name].get_shape())

    def dtype(self, name: str) -> str:
        """NumPy's name of the stored type; other types than floats keep the name used in the file."""
        stored = self.slices[name].get_dtype()
        return FLOATS.get(stored, stored)

    def read(self, name: str, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
        """The slice between (start, stop) along each axis; reads only this slice from the file."""
        if any(start >= stop for start, stop in bounds):
            return np.empty([max(stop - start, 0) for start, stop in bounds], self.dtype(name))
        return self.slices[name][tuple(slice(*bound) for bound in bounds) or ...]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object in the layout of the released files."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def tokenizer_size(folder: str | os.PathLike) -> int | None:
    """The highest token id in tokenizer.json plus one; None where there is no such file or no vocabulary in it."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = reading.read_json(path, _TokenizerFile, mend=MEND)
    vocabulary = tokenizer["model"].get("vocab") or {}
    found = reading.fault(dict[str, int] | list[Any], vocabulary)
    if found is not None:
        raise reading.Damaged(path, f"model.vocab {found}", MEND)
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    ids += [token["id"] for token in tokenizer.get("added_tokens") or []]
    return max(ids) + 1 if ids else None


def write_shards(tensors: Iterator[tuple[str, np.ndarray]], folder: Path, max_bytes: float) -> None:
    """Writes files of at most `max_bytes` (a larger tensor gets its own), and an index if there are several."""
    files: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        files.append(list(shard))
        try:
            save_file(shard, folder / f"part-{len(files)}", metadata={"format": "pt"})
        except SafetensorError as error:  # the library reports a full disk in this way
            raise OSError(str(error)) from error
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > max_bytes:
            flush()
        shard[name] = tensor
        total += tensor.nbytes
    flush()
    if len(files) == 1:
        (folder / "part-1").rename(folder / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder`; on success its files are moved into `folder`.

    Older weights are removed, and the files of an older tokenizer where the new folder has one.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield fresh
        _give_usual_modes(fresh)
        sync_tree(fresh)
        if not folder.exists():
            fresh.rename(folder)
            sync(folder.parent)
            return
        old = {*folder.glob("model*.safetensors"), *folder.glob(INDEX)}
        if _tokenizer_files(fresh):
            old |= set(_tokenizer_files(folder))
        for file in sorted(fresh.iterdir()):
            file.replace(folder / file.name)
            old.discard(folder / file.name)
        sync(folder)
        for file in old:
            file.unlink()
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _give_usual_modes(folder: Path) -> None:
    """The modes of a folder and its files as the user's umask says; temporary ones are the owner's alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()})


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files; `UserError` when `source` has none."""
    files = _tokenizer_files(source)
    if not any(file.name.startswith("tokenizer") or file.name == "vocab.json" for file in files):
        raise UserError(f"{source} holds no tokenizer files (tokenizer.json, tokenizer.model, …)")
    for file in files:
        shutil.copyfile(file, target / file.name)
