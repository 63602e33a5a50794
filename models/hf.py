"""Models from and to folders of Hugging Face: `config.json` and safetensors, one tensor at a time.

Reading fills each stacked leaf layer by layer straight from the files, so the host holds the model once and one tensor
more; with shardings, each host reads only the slices that its own devices keep. The families' name tables
(`models/hf_names.py`) say what is called what, so a new family needs a table and no code here.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models import hf_names
from models.config import Compute, DecoderConfig
from models.errors import UserError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
# Buffers that old exports carry and every reader recomputes.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$")
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
    "generation_config.json",
)  # fmt: skip


def load_hf(
    folder: str | os.PathLike,
    dtype: str | None = "float32",
    compute: Compute | None = None,
    *,
    shardings: Any = None,
    vocab: int | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The model in a Hugging Face folder and its parameters.

    Args:
        folder: holds `config.json` and `model.safetensors`, or shards with `model.safetensors.index.json`.
        dtype: of the parameters; None keeps what is on disk (the widest, where a leaf's layers differ).
        compute: how the model will be computed.
        shardings: a tree of `jax.sharding.Sharding` like the parameters, or one for all; each leaf is placed as it is
            read. Left out, everything goes to the default device.
        vocab: rows of the embedding and the head. More than the files hold are filled with zeros (so that a mesh can
            divide them); `config.vocab_used` keeps the number of real ones. Left out, `config.json` decides.

    Raises:
        UserError: no such folder, no or an unusable `config.json`, no safetensors; or, in one message, every tensor
            that is missing, unknown, of another shape or type than the model's.
    """
    import models  # the package imports this module

    folder = Path(folder)
    config = read_config(folder)
    stored_vocab = config.vocab
    if vocab is not None:
        if vocab < config.vocab_used:
            raise UserError(f"vocab {vocab} is fewer than the {config.vocab_used} entries that {folder} uses")
        config = config.replace(vocab=vocab)
    model = models.build(config, compute)
    with _Store(folder) as store:
        params = _read(store, family_of(config).hf_table(config), model, dtype, shardings, stored_vocab)
    return model, params


def save_hf(
    model: Any,
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    tokenizer_folder: str | os.PathLike | None = None,
    vocab: int | None = None,
) -> None:
    """Writes the model as a folder that `transformers` loads unchanged.

    `dtype` converts the weights (None keeps theirs); a shard of at most `max_shard_bytes` is in memory at a time.
    `tokenizer_folder` is where the tokenizer's files are copied from. `vocab` keeps only the first rows of the embedding
    and the head, to drop padding that `load_hf` added. An existing export is replaced only once the new one is whole.
    With several processes all must call this, and the first writes. Raises `UserError` when the family cannot express
    the model, the parameters are not the model's, or the folder cannot be written.
    """
    folder, config = Path(folder), model.config
    leaves = hf_names.flatten(params)
    _check_leaves(leaves, hf_names.flatten(model.abstract_params()))
    if vocab is not None:
        config = config.replace(vocab=vocab, vocab_used=min(vocab, config.vocab_used))
    family = family_of(config)
    stored_as = dtype or _common_dtype(leaves)
    config_json = family.to_hf(config, stored_as)
    tensors = iter_hf_tensors(family.hf_table(config), leaves, dtype=dtype, vocab=vocab)
    if jax.process_index() != 0:
        for _ in tensors:  # takes part in gathering
            pass
        return
    try:
        with _replacing(folder) as fresh:
            _write_shards(tensors, fresh, max_shard_bytes)
            (fresh / "config.json").write_text(json.dumps(config_json, indent=2) + "\n")
            if tokenizer_folder is not None:
                _copy_tokenizer(Path(tokenizer_folder), fresh)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(f"cannot write {folder}: {reason}") from error


def read_config(folder: str | os.PathLike) -> DecoderConfig:
    """The configuration in `folder`/config.json; `vocab_used` comes from tokenizer.json where there is one."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}; give a folder with config.json and safetensors")
    if not path.is_file():
        raise UserError(f"{folder} has no config.json, so it is not a Hugging Face model folder")
    config_json = _read_json(path)
    kind = config_json.get("model_type")
    for family in _families():
        if kind in family.MODEL_TYPES:
            try:
                config = family.from_hf(config_json)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            return config.replace(vocab_used=min(config.vocab, _tokenizer_size(folder) or config.vocab))
    known = ", ".join(kind for family in _families() for kind in family.MODEL_TYPES)
    raise UserError(f"{path} has model_type {kind!r}; supported are {known}")


def family_of(config: DecoderConfig) -> Any:
    """The module of `models.FAMILIES` that owns this configuration."""
    for family in _families():
        if config.family in family.MODEL_TYPES:
            return family
    raise UserError(f"no family {config.family!r} has a Hugging Face form; use one of models.FAMILIES")


def iter_hf_tensors(
    table: Sequence[hf_names.Row],
    params: Mapping[str, Any],
    *,
    dtype: str | None = None,
    vocab: int | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Each stored name with its tensor on the host, in the order of the released files, one at a time.

    `params` is the tree or its `flatten`; leaves may be numpy or (sharded, global) jax arrays.
    """
    leaves = hf_names.flatten(params)
    for name, place in hf_names.places(table, leaves):
        tensor = leaves[place.row.path]
        for i in place.index:  # not tensor[i]: a constant index would compile once for each layer
            tensor = tensor[i] if isinstance(tensor, np.ndarray) else jax.lax.dynamic_index_in_dim(tensor, i, 0, False)
        tensor = _to_host(tensor)
        tensor = tensor.T if place.row.transpose else tensor
        tensor = tensor[:vocab] if place.row.vocab else tensor
        # Contiguous, because the writer copies raw memory without looking at strides.
        yield name, np.ascontiguousarray(tensor, dtype=np.dtype(dtype) if dtype else tensor.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class _Store:
    """The tensors in a folder's safetensors files; opens each file once and reads slices."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = contextlib.ExitStack()
        self.slices: dict[str, Any] = {}

    def __enter__(self) -> _Store:
        for name in self._file_names():
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{self.folder} lacks {name}, which {_INDEX} names; download it again")
            try:
                file = self.files.enter_context(safe_open(path, framework="np"))
            except SafetensorError as error:
                raise UserError(f"{path} is not a whole safetensors file ({error}); download it again") from error
            self.slices.update({key: file.get_slice(key) for key in file.keys()})  # noqa: SIM118 - not a mapping
        return self

    def __exit__(self, *exc: Any) -> None:
        self.slices.clear()
        self.files.close()

    def _file_names(self) -> list[str]:
        if (self.folder / _INDEX).is_file():
            index = _read_json(self.folder / _INDEX).get("weight_map")
            if not isinstance(index, dict):
                raise UserError(f"{self.folder / _INDEX} has no weight_map; download it again")
            return sorted(set(index.values()))
        if (self.folder / _WEIGHTS).is_file():
            return [_WEIGHTS]
        if list(self.folder.glob("pytorch_model*.bin")):
            raise UserError(
                f"{self.folder} holds only pytorch_model.bin; convert it where torch is installed: transformers."
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
            )
        raise UserError(f"{self.folder} has neither {_WEIGHTS} nor {_INDEX}")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.slices[name].get_shape())

    def dtype(self, name: str) -> str:
        """numpy's name of the stored type; what is no float keeps the file's own name."""
        stored = self.slices[name].get_dtype()
        return _FLOATS.get(stored, stored)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        return self.slices[name][index or ...]


def _read(store: _Store, table, model, dtype, shardings, stored_vocab: int) -> dict[str, Any]:
    """The parameter tree, after a check of every name, shape and type in the files."""
    shapes = hf_names.flatten(model.abstract_params())
    expected = dict(hf_names.places(table, shapes))
    _check_stored(store, expected, shapes, stored_vocab, tied=model.config.tie_embeddings)
    by_leaf: dict[str, list[tuple[str, tuple[int, ...]]]] = {path: [] for path in shapes}
    for name, place in expected.items():
        by_leaf[place.row.path].append((name, place.index))
    rows = hf_names.rows_for(table, shapes)
    if isinstance(shardings, Mapping):
        placement = hf_names.flatten(shardings)
    else:
        placement = dict.fromkeys(shapes, shardings)
    leaves = {}
    for path, shape in shapes.items():
        stored = [np.dtype(store.dtype(name)) for name, _ in by_leaf[path]]
        kind = np.dtype(dtype) if dtype else np.result_type(*set(stored)) if len(set(stored)) > 1 else stored[0]
        leaves[path] = _read_leaf(store, rows[path], dict((i, n) for n, i in by_leaf[path]), shape.shape, kind, placement[path])
    return hf_names.unflatten(leaves)


def _read_leaf(store, row: hf_names.Row, names: Mapping[tuple[int, ...], str], shape, dtype: np.dtype, sharding):
    """One leaf on its devices. Devices that keep the same slice share one reading of it."""
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    done: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        if bounds not in done:
            done[bounds] = _read_region(store, row, names, bounds, dtype)
        return done[bounds]

    return jax.make_array_from_callback(tuple(shape), sharding, read)


def _read_region(store, row: hf_names.Row, names, bounds: tuple[tuple[int, int], ...], dtype: np.dtype) -> np.ndarray:
    """The part of a leaf between `bounds` (start, stop along each axis), filled tensor by tensor."""
    out = _aligned_empty([stop - start for start, stop in bounds], dtype)
    stacked, tail = bounds[: len(row.stacked)], bounds[len(row.stacked) :]
    index = tuple(slice(*bound) for bound in (tail[::-1] if row.transpose else tail))
    for position in itertools.product(*(range(*bound) for bound in stacked)):
        here = out[tuple(i - start for i, (start, _) in zip(position, stacked, strict=True))]
        here = here.T if row.transpose else here
        found = store.read(names[position], index)
        here[: len(found)] = found  # casts; fewer rows only in a padded vocabulary
        here[len(found) :] = 0
    return out


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory at a multiple of 64 bytes, which JAX adopts on a CPU instead of copying it."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _check_stored(store: _Store, expected, shapes, stored_vocab: int, tied: bool) -> None:
    """Raises one `UserError` that names everything wrong with the files."""
    found = {name for name in store.slices if not _IGNORED.search(name)}
    unknown = found - set(expected)
    problems = []
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    if tied and head in unknown:
        unknown.remove(head)
        if table in found and not _equal(store, head, table):
            problems.append(f"{head} differs from {table}, although config.json ties them")
    missing = [name for name in expected if name not in found]
    if missing:
        problems.append(f"missing: {', '.join(missing)}")
    if unknown:
        problems.append(f"unknown: {', '.join(sorted(unknown))}")
    for name in (name for name in expected if name in found):
        row = expected[name].row
        want = row.stored_shape(shapes[row.path].shape)
        want = (stored_vocab, *want[1:]) if row.vocab else want
        if store.shape(name) != want:
            problems.append(f"misshapen: {name} is {list(store.shape(name))}, the model's is {list(want)}")
        if store.dtype(name) not in _FLOATS.values():
            problems.append(f"unreadable: {name} is stored as {store.dtype(name)}, not as a float")
    if problems:
        raise UserError(f"weights in {store.folder} are not those of its config.json: {'; '.join(problems)}")


def _equal(store: _Store, first: str, second: str, rows: int = 4096) -> bool:
    """Whether two stored tensors are the same, compared some rows at a time."""
    if store.shape(first) != store.shape(second):
        return False
    parts = (slice(at, at + rows) for at in range(0, store.shape(first)[0], rows))
    return all(np.array_equal(store.read(first, (part,)), store.read(second, (part,))) for part in parts)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def _tokenizer_size(folder: str | os.PathLike) -> int | None:
    """One more than the highest token id in tokenizer.json, or None without a vocabulary there."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = _read_json(path)
    vocabulary = tokenizer.get("model", {}).get("vocab") or {}
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    ids += [token["id"] for token in tokenizer.get("added_tokens") or []]
    return max(ids) + 1 if ids else None


def _families() -> Sequence[Any]:
    import models  # the package imports this module

    return models.FAMILIES


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _to_host(tensor: Any) -> np.ndarray:
    """A whole tensor as numpy, gathered from the other processes where they hold parts of it."""
    if isinstance(tensor, np.ndarray) or tensor.is_fully_addressable or tensor.is_fully_replicated:
        return np.asarray(tensor)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(tensor, tiled=True))


def _check_leaves(leaves: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises `UserError` unless the parameters have the model's names and shapes."""
    problems = [f"missing {path}" for path in expected if path not in leaves]
    problems += [f"unknown {path}" for path in leaves if path not in expected]
    problems += [
        f"{path} is {list(leaf.shape)}, the model's is {list(expected[path].shape)}"
        for path, leaf in leaves.items()
        if path in expected and tuple(leaf.shape) != tuple(expected[path].shape)
    ]
    if problems:
        raise UserError(f"these parameters are not the model's: {'; '.join(problems)}")


def _common_dtype(leaves: Mapping[str, Any]) -> str:
    """The type that config.json announces: that of the most parameters."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        name = np.dtype(leaf.dtype).name
        sizes[name] = sizes.get(name, 0) + leaf.size
    return max(sizes, key=sizes.__getitem__)


def _write_shards(tensors: Iterator[tuple[str, np.ndarray]], folder: Path, max_bytes: float) -> None:
    """Files of at most `max_bytes` (a larger tensor gets its own), and an index when there are several."""
    files: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        files.append(list(shard))
        save_file(shard, folder / f"part-{len(files)}", metadata={"format": "pt"})
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > max_bytes:
            flush()
        shard[name] = tensor
        total += tensor.nbytes
    flush()
    if len(files) == 1:
        (folder / "part-1").rename(folder / _WEIGHTS)
        return
    weight_map = {}
    for number, names in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` whose files move there when the block ends well, in place of older weights."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        if not folder.exists():
            fresh.rename(folder)
            return
        old = {*folder.glob("model*.safetensors"), *folder.glob(_INDEX)}
        for file in sorted(fresh.iterdir()):
            file.replace(folder / file.name)
            old.discard(folder / file.name)
        for file in old:
            file.unlink()
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _copy_tokenizer(source: Path, target: Path) -> None:
    files = sorted({file for pattern in _TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()})
    if not any(file.name.startswith("tokenizer") or file.name == "vocab.json" for file in files):
        raise UserError(f"{source} holds no tokenizer files (tokenizer.json, tokenizer.model, …)")
    for file in files:
        shutil.copyfile(file, target / file.name)
