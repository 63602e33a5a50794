"""Import and export of Hugging Face model folders: `config.json` and safetensors, one tensor at a time.

Import fills each stacked parameter layer by layer directly from the files, so host memory holds the model and one more
tensor. With shardings, each host reads only the slices of its own devices. The name tables of the families
(`models/families/`) map tensor names to parameters, so that a new family needs a table and no code here.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from models import reading, registry, trees
from models.config import Compute, DecoderConfig
from models.errors import UserError
from models.hf import files
from models.hf import names as hf_names
from models.model import Model, Params

if TYPE_CHECKING:
    from models.decoder import Decoder

# Buffers in old exports, which models recompute.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$")


def load_hf(
    folder: str | os.PathLike,
    dtype: Any = "float32",
    compute: Compute | None = None,
    *,
    shardings: Any = None,
    vocab: int | None = None,
) -> tuple[Decoder, Params]:
    """Loads the model in a Hugging Face folder: the model and its parameters.

    Args:
        folder: holds `config.json` and `model.safetensors`, or shards with `model.safetensors.index.json`; without
            them, `pytorch_model.bin` or its shards, read without executing code (`models/hf/torch_files.py`).
        dtype: type of the parameters, whatever `jnp.dtype` takes; None keeps the type on disk (the widest, where
            layers differ).
        compute: how the model will be computed.
        shardings: a tree of `jax.sharding.Sharding` like the parameters, or one for all of them. By default all
            parameters go to the first local device.
        vocab: rows of the embedding and the head. Rows beyond those in the files are zero (padding, so that a mesh
            divides the vocabulary); `config.vocab_used` stays the number of real ones. By default as in `config.json`.

    Raises:
        UserError: the folder does not exist, has no weights or no usable `config.json`; or tensors are missing,
            unknown, or of another shape or type than the model's (one message lists them all).
    """
    folder = Path(folder)
    dtype = _float_name(dtype)
    config = read_config(folder)
    stored_vocab = config.vocab
    if vocab is not None:
        if vocab < config.vocab_used:
            raise UserError(f"vocab {vocab} is fewer than the {config.vocab_used} entries that {folder} uses")
        config = config.replace(vocab=vocab)
    model = registry.build(config, compute)
    with files.Store(folder) as store:
        params = _read(store, family_of(config).hf_table(config), model, dtype, shardings, stored_vocab)
    return model, params


def save_hf(
    model: Model,
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    max_shard_bytes: float = 5e9,
    tokenizer_folder: str | os.PathLike | None = None,
    vocab: int | None = None,
) -> None:
    """Writes a folder that `transformers` loads unchanged. All processes must call this; the first one writes.

    An existing export is replaced only once the new one is complete.

    Args:
        dtype: converts the weights to this type, whatever `jnp.dtype` takes; None keeps their type.
        max_shard_bytes: size of a file of weights; one such shard is in memory at a time.
        tokenizer_folder: where to copy the tokenizer's files from.
        vocab: keeps only the first rows of the embedding and the head, to remove padding that `load_hf` added.

    Raises:
        UserError: the family cannot express the model, the parameters are not the model's, or the folder cannot be
            written.
    """
    folder, config = Path(folder), model.config
    leaves = trees.flatten(params)
    _check_leaves(leaves, trees.flatten(model.abstract_params()))
    dtype = _float_name(dtype)
    if vocab is not None:
        if vocab > config.vocab:
            raise UserError(f"cannot export vocab {vocab}: the model has only {config.vocab} rows")
        config = config.replace(vocab=vocab, vocab_used=min(vocab, config.vocab_used))
    family = family_of(config)
    stored_as = dtype or _common_dtype(leaves)
    config_json = family.to_hf(config, stored_as)
    tensors = iter_hf_tensors(family.hf_table(config), leaves, dtype=dtype, vocab=vocab)
    if jax.process_index() != 0:
        for _ in tensors:  # every process takes part in gathering
            pass
        return
    try:
        with files.replacing(folder) as fresh:
            files.write_shards(tensors, fresh, max_shard_bytes)
            files.write_json(fresh / "config.json", config_json)
            if tokenizer_folder is not None:
                files.copy_tokenizer(Path(tokenizer_folder), fresh)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(f"cannot write {folder}: {reason}") from error


def read_config(folder: str | os.PathLike) -> DecoderConfig:
    """The configuration in `folder`/config.json, with `vocab_used` from tokenizer.json where there is one.

    Raises:
        UserError: there is no such folder or file, or no family supports its `model_type`.
    """
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}; give a folder with config.json and safetensors")
    if not path.is_file():
        raise UserError(f"{folder} has no config.json, so it is no Hugging Face model folder")
    config_json = reading.read_json(path, hf_names.ConfigFile, mend=files.MEND)
    kind = config_json.get("model_type")
    for family in registry.family_modules():
        if kind in family.MODEL_TYPES:
            try:
                config = family.from_hf(config_json)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:  # in nested values
                raise reading.Damaged(path, f"a value that no model has: {error}", files.MEND) from None
            return config.replace(vocab_used=min(config.vocab, files.tokenizer_size(folder) or config.vocab))
    known = ", ".join(kind for family in registry.family_modules() for kind in family.MODEL_TYPES)
    raise UserError(f"{path} has model_type {kind!r}; supported are {known}")


def family_of(config: DecoderConfig) -> registry.Family:
    """The family of a configuration; `UserError` when there is none."""
    for family in registry.family_modules():
        if config.family in family.MODEL_TYPES:
            return family
    raise UserError(
        f"no family {config.family!r} in models/families/, so the model cannot be converted to Hugging Face's format"
    )


def iter_hf_tensors(
    table: Sequence[hf_names.Row],
    params: Mapping[str, Any],
    *,
    dtype: str | None = None,
    vocab: int | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each stored name with its tensor in host memory, in the order of the released files.

    `params` is the tree or its `flatten`; its arrays are NumPy's or JAX's, which may be sharded over processes.
    """
    leaves = trees.flatten(params)
    for name, sharing in itertools.groupby(hf_names.places(table, leaves), key=lambda pair: pair[0]):
        parts = [_stored(leaves[place.row.path], place, vocab) for _, place in sharing]
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:]) if parts[0].ndim else ()
        # Contiguous, because safetensors copies raw memory and ignores strides.
        out = np.empty(shape, np.dtype(dtype) if dtype else parts[0].dtype)
        start = 0
        for part in parts:
            _copy(part, out[start : start + len(part)] if part.ndim else out)
            start += len(part) if part.ndim else 0
        yield name, out


def _stored(tensor: Any, place: hf_names.Place, vocab: int | None) -> np.ndarray:
    """What is stored of a parameter at a place, in host memory."""
    for i in place.index:  # not tensor[i], which would compile once for each constant index
        tensor = jax.lax.dynamic_index_in_dim(tensor, i, 0, False) if isinstance(tensor, jax.Array) else tensor[i]
    tensor = _to_host(tensor)
    tensor = tensor.T if place.row.transpose else tensor
    return tensor[:vocab] if place.row.vocab else tensor


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _read(
    store: files.Store,
    table: Sequence[hf_names.Row],
    model: Model,
    dtype: str | None,
    shardings: Any,
    stored_vocab: int,
) -> Params:
    """The parameter tree, after checking every name, shape and type in the files."""
    shapes = trees.flatten(model.abstract_params())
    expected: dict[str, list[hf_names.Place]] = {}
    names: dict[str, dict[tuple[int, ...], str]] = {path: {} for path in shapes}
    for name, place in hf_names.places(table, shapes):
        expected.setdefault(name, []).append(place)
        names[place.row.path][place.index] = name
    _check_stored(store, expected, shapes, stored_vocab, tied=model.config.tie_embeddings)
    many = isinstance(shardings, Mapping)
    placement = trees.flatten(shardings) if many else dict.fromkeys(shapes, shardings)
    leaves = {}
    for path, row in hf_names.rows_for(table, shapes).items():
        stored = [np.dtype(store.dtype(name)) for name in names[path].values()]
        kind = np.dtype(dtype) if dtype else functools.reduce(np.promote_types, stored)
        leaves[path] = _read_leaf(store, row, names[path], shapes[path].shape, kind, placement[path])
    return trees.unflatten(leaves)


def _read_leaf(
    store: files.Store,
    row: hf_names.Row,
    names: Mapping[tuple[int, ...], str],
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """One parameter on its devices. A slice that several devices hold is read once."""
    done: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "JAX passes None only for arrays without axes"
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        if bounds not in done:
            done[bounds] = _read_region(store, row, names, bounds, dtype)
        return done[bounds]

    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(shape, sharding, read, dtype=dtype)


def _read_region(
    store: files.Store,
    row: hf_names.Row,
    names: Mapping[tuple[int, ...], str],
    bounds: tuple[tuple[int, int], ...],
    dtype: np.dtype,
) -> np.ndarray:
    """The slice of a parameter between `bounds` (start, stop along each axis), read tensor by tensor."""
    out = _aligned_empty([stop - start for start, stop in bounds], dtype)
    stacked, tail = bounds[: len(row.stacked)], bounds[len(row.stacked) :]
    tail = tail[::-1] if row.transpose else tail
    if row.start is not None:
        tail = ((tail[0][0] + row.start, tail[0][1] + row.start), *tail[1:])
    for position in itertools.product(*(range(*bound) for bound in stacked)):
        name = names[position]
        stored = [
            (min(start, size), min(stop, size)) for (start, stop), size in zip(tail, store.shape(name), strict=True)
        ]
        at: tuple[Any, ...] = (*(i - start for i, (start, _) in zip(position, stacked, strict=True)), ...)
        here = out[at].T if row.transpose else out[at]
        if stored != list(tail):
            here[...] = 0  # padding rows of the vocabulary, which are not stored
        inside: tuple[Any, ...] = (*(slice(stop - start) for start, stop in stored), ...)
        _copy(store.read(name, stored), here[inside])
    return out


def _copy(source: np.ndarray, target: np.ndarray, rows: int = 64) -> None:
    """target[...] = source with a cast, in blocks that fit the CPU cache: twice as fast where one is transposed."""
    source, target = np.atleast_1d(source, target)  # views, for parameters with one number per layer
    for at in range(0, len(source), rows):
        target[at : at + rows] = source[at : at + rows].astype(target.dtype)


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory aligned to 64 bytes, which JAX uses on a CPU without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _check_stored(
    store: files.Store,
    expected: Mapping[str, Sequence[hf_names.Place]],
    shapes: Mapping[str, Any],
    stored_vocab: int,
    tied: bool,
) -> None:
    """Raises one `UserError` that lists every problem of the files."""
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
        rows = [place.row for place in expected[name]]
        parts = [row.stored_shape(shapes[row.path].shape) for row in rows]
        want = (sum(part[0] for part in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]
        want = (stored_vocab, *want[1:]) if rows[0].vocab else want
        if store.shape(name) != want:
            problems.append(f"misshapen: {name} is {list(store.shape(name))}, the model's is {list(want)}")
        if store.dtype(name) not in files.FLOATS.values():
            problems.append(f"unreadable: {name} is stored as {store.dtype(name)}, not as a float")
    if problems:
        raise UserError(f"weights in {store.folder} are not those of its config.json: {'; '.join(problems)}")


def _equal(store: files.Store, first: str, second: str, rows: int = 4096) -> bool:
    """Whether two stored tensors [V, d] are equal; compares `rows` rows at a time."""
    shape = store.shape(first)
    if shape != store.shape(second):
        return False
    parts = [[(at, min(at + rows, shape[0])), (0, shape[1])] for at in range(0, shape[0], rows)]
    return all(np.array_equal(store.read(first, part), store.read(second, part)) for part in parts)


def _float_name(dtype: Any) -> str | None:
    """The name of a floating-point type in any form that `jnp.dtype` takes; None stays None."""
    known = files.FLOATS.values()
    try:
        name = None if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name is not None and name not in known:
        raise UserError(f"dtype {name} is not one of {', '.join(known)}")
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _to_host(tensor: Any) -> np.ndarray:
    """A whole tensor as a NumPy array, gathered from other processes where it is sharded over them."""
    if not isinstance(tensor, jax.Array) or tensor.is_fully_addressable or tensor.is_fully_replicated:
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
    """The type of most parameters, for `config.json`."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        name = np.dtype(leaf.dtype).name
        sizes[name] = sizes.get(name, 0) + leaf.size
    return max(sizes, key=sizes.__getitem__)
