"""The arrays of a checkpoint: flattens pytrees to named arrays and back. The only module that uses Orbax.

JAX and Orbax are imported inside the functions, because listing checkpoints and `--help` need neither.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.store import stored_dtype
from easylm_jax.runtime.processes import agree_any
from models.errors import UserError
from models.trees import unflatten

# Fields of the train state that were renamed: current name → name in older checkpoints.
FORMER_NAMES = {"prompt_batches_used": "drawn", "stale_policies": "behind"}


def shared_damage(step_folder: Any) -> list[str]:
    """`store.damage` with the files divided among the processes; all processes agree whether there is damage."""
    import jax

    faults = store.damage(step_folder, (jax.process_index(), jax.process_count()))
    if agree_any(bool(faults)):
        return faults or ["another process found a damaged file"]
    return []


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of any pytree by dotted name: `{"params.embed.table": array, "opt.0.count": array, ...}`.

    Raises:
      ValueError: two leaves have the same name.
      TypeError: a leaf is a typed PRNG key.
    """
    import jax

    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in leaves:
            raise ValueError(f"checkpoint: two leaves of the state have the name {name}")
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"checkpoint: {name} is a typed PRNG key; keep jax.random.key_data(key) in the state")
        leaves[name] = leaf
    return leaves


def params_in_bfloat16(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves under `params`, with floating-point ones cast to bfloat16."""
    import jax.numpy as jnp

    chosen = {name: leaf for name, leaf in leaves.items() if name.startswith("params.")}
    if not chosen:
        raise ValueError("checkpoint history: the state has no field `params`")
    return {
        name: jnp.asarray(leaf).astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        for name, leaf in chosen.items()
    }


def snapshot(leaves: dict[str, Any]) -> dict[str, Any]:
    """Copies of the leaves that stay valid when the originals are donated or overwritten.

    From a GPU or TPU, Orbax itself copies before its save returns. On a CPU backend it would keep a view of the buffer,
    and XLA would then copy at the next step instead of reusing donated memory, so the copy is made here.
    """
    import jax

    host = {
        name: np.array(leaf)
        for name, leaf in leaves.items()
        if not isinstance(leaf, jax.Array) or (jax.process_count() > 1 and leaf.is_fully_addressable)
    }
    device = {name: leaf for name, leaf in leaves.items() if name not in host}
    for name in [name for name, leaf in device.items() if not leaf.sharding.addressable_devices]:
        # The processes of its devices write it. Of a numpy array Orbax writes what the first process has, which has
        # parts of every leaf; the others only have to name it.
        host[name] = np.broadcast_to(np.zeros((), device[name].dtype), device.pop(name).shape)
    if jax.default_backend() == "cpu" and device:
        copies = jax.device_put(list(device.values()), [x.sharding for x in device.values()], may_alias=False)
        device = dict(zip(device, jax.block_until_ready(copies), strict=True))
    return {**host, **device}


class _DropOrbaxLogs(logging.Filter):
    """Drops log lines from Orbax; its errors are raised as exceptions with one-line messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


def orbax() -> Any:
    """The module `orbax.checkpoint`, without its log output."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    if not any(isinstance(f, _DropOrbaxLogs) for f in logger.filters):
        logger.addFilter(_DropOrbaxLogs())
    return ocp


def _handlers() -> dict[str, Any]:
    # Uncompressed OCDBT: weights and moments hardly compress, and writing with zstd takes three times as long (docs).
    ocp = orbax()
    return {
        store.STATE: ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, use_compression=False),
        store.META: ocp.JsonCheckpointHandler(store.META_FILE),
    }


@functools.cache
def _save_classes() -> tuple[type, type]:
    """(handler, arguments): an Orbax composite handler that also writes checksums and, on commit, the manifest."""
    import jax

    ocp = orbax()

    base_handler: Any = ocp.CompositeCheckpointHandler
    base_arguments: Any = ocp.args.Composite

    class Handler(base_handler):
        pending: dict[str, Any]

        async def async_save(self, directory: Any, args: Any) -> Any:
            futures = list(await super().async_save(directory, args) or [])
            return [*futures, _Checksums(directory, jax.process_index(), futures)]

        def finalize(self, directory: Any) -> None:
            super().finalize(directory)
            store.write_manifest(directory, **self.pending)

    @ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
    class Arguments(base_arguments):
        pass

    return Handler, Arguments


class CheckpointWriter:
    """Writes step folders with Orbax in the background, one at a time."""

    def __init__(self, deadline_seconds: float) -> None:
        ocp = orbax()
        handler, self._arguments = _save_classes()
        self._handler = handler(**_handlers())
        timeout = max(1, math.ceil(deadline_seconds))
        self._orbax = ocp.AsyncCheckpointer(self._handler, async_options=ocp.AsyncOptions(timeout_secs=timeout))
        self._deferred: Callable[[], None] | None = None

    def start(self, target: Any, leaves: dict[str, Any], meta: Any, *, step: int, kind: str, name: str | None) -> None:
        """Starts a save; returns once `leaves` may be changed. `wait` (in any one thread) waits for the commit."""
        import jax

        ocp = orbax()
        described = {key: [str(_dtype(x)), list(np.shape(x))] for key, x in leaves.items()}
        self._handler.pending = {"step": step, "kind": kind, "name": name, "leaves": described}
        nonempty = {key: x for key, x in leaves.items() if math.prod(np.shape(x))}  # Orbax rejects arrays of size 0
        arguments = self._arguments(
            **{store.STATE: ocp.args.PyTreeSave(snapshot(nonempty)), store.META: ocp.args.JsonSave(meta)}
        )
        save = functools.partial(self._orbax.save, target, args=arguments)
        if jax.default_backend() == "cpu" and jax.process_count() == 1:
            # The snapshot is a copy already, so Orbax's set-up (it starts a dozen threads) need not block training.
            # With several processes the save must start in the training thread, because it runs a collective.
            self._deferred = save
        else:
            save()

    def wait(self) -> None:
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            deferred()
        self._orbax.wait_until_finished()

    def close(self) -> None:
        self._orbax.close()


class _Checksums:
    """A commit future: once this process has written its arrays, hashes the files while they are in the page cache."""

    def __init__(self, directory: Any, process: int, futures: list[Any]) -> None:
        self._directory, self._process, self._futures = directory, process, futures

    def result(self, timeout: float | None = None) -> None:
        for future in self._futures:
            future.result(timeout)
        own = self._directory / store.STATE / f"ocdbt.process_{self._process}"
        if own.exists():
            path = self._directory / f"{store.CHECKSUMS}{self._process}.json"
            path.write_text(json.dumps(store.hash_files(self._directory, own)))


def _dtype(leaf: Any) -> np.dtype:
    return np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _is_floating(dtype: np.dtype) -> bool:
    import jax.numpy as jnp

    return bool(jnp.issubdtype(dtype, jnp.floating))


@dataclasses.dataclass(frozen=True)
class _RestoreSpec:
    """How to restore one array: as a `jax.Array` with this sharding, or as numpy if `sharding` is None."""

    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: Any


def read_tree(step_folder: Any, abstract: Any) -> Any:
    """Restores a whole state into the structure of `abstract`; names, shapes and dtypes must match those stored.

    Raises:
      UserError: they do not match, or the checkpoint cannot be read.
    """
    import jax

    stored = store.read_manifest(step_folder).leaves
    leaves = {_stored_name(name, stored): leaf for name, leaf in named_leaves(abstract).items()}
    _check_names(step_folder, leaves, stored)
    for name, leaf in leaves.items():
        if stored_dtype(stored[name][0]) != _dtype(leaf):
            raise UserError(
                f"checkpoint {step_folder}: {name} is stored as {stored[name][0]}, but the run needs "
                f"{_dtype(leaf)}; use the configuration that wrote the checkpoint"
            )
    values = _read(
        step_folder,
        {
            name: _RestoreSpec(np.shape(leaf), _dtype(leaf), getattr(leaf, "sharding", None))
            for name, leaf in leaves.items()
        },
    )
    return jax.tree.unflatten(jax.tree.structure(abstract), [values[name] for name in leaves])


def _stored_name(name: str, stored: Mapping[str, Any]) -> str:
    """The name of a leaf in this checkpoint: its current name, or the former one in checkpoints of older versions."""
    field, dot, rest = name.partition(".")
    former = FORMER_NAMES.get(field, field) + dot + rest
    return former if name not in stored and former in stored else name


def read_subtree(step_folder: Any, prefix: str, abstract: Any, dtype: Any) -> Any:
    """Restores one field of the state; see `checkpointer.restore_params`."""
    import jax

    stored = {
        name: leaf for name, leaf in store.read_manifest(step_folder).leaves.items() if name.startswith(prefix + ".")
    }
    if not stored:
        raise UserError(f"checkpoint {step_folder} holds no {prefix}; give the folder of a training stage")
    leaves = None if abstract is None else named_leaves({prefix: abstract})
    if leaves is not None:
        _check_names(step_folder, leaves, stored)
    wanted = {}
    for name in leaves or stored:
        kind, shape = stored[name]
        leaf = leaves[name] if leaves is not None else None
        target_dtype = stored_dtype(kind) if leaf is None else _dtype(leaf)
        if dtype is not None and _is_floating(target_dtype):
            target_dtype = np.dtype(dtype)
        wanted[name] = _RestoreSpec(tuple(shape), target_dtype, getattr(leaf, "sharding", None))
    values = _read(step_folder, wanted)
    if leaves is not None:
        return jax.tree.unflatten(jax.tree.structure(abstract), [values[name] for name in leaves])
    return unflatten({name.removeprefix(prefix + "."): value for name, value in values.items()})


def read_arrays(step_folder: Any, names: list[str]) -> dict[str, np.ndarray]:
    """Stored arrays by name, as numpy, in their stored dtypes."""
    stored = store.read_manifest(step_folder).leaves
    return _read(step_folder, {n: _RestoreSpec(tuple(stored[n][1]), stored_dtype(stored[n][0]), None) for n in names})


def _check_names(step_folder: Any, leaves: dict[str, Any], stored: dict[str, list]) -> None:
    missing, extra = sorted(leaves.keys() - stored.keys()), sorted(stored.keys() - leaves.keys())
    if missing or extra:
        parts = [
            f"{what} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''} ({len(names)})"
            for what, names in (("lacks", missing), ("has in addition", extra))
            if names
        ]
        raise UserError(f"checkpoint {step_folder} {' and '.join(parts)}; use the configuration that wrote it")
    for name, leaf in leaves.items():
        if tuple(stored[name][1]) != np.shape(leaf):
            raise UserError(
                f"checkpoint {step_folder}: {name} has shape {tuple(stored[name][1])}, but the run needs "
                f"{np.shape(leaf)}; use the configuration that wrote the checkpoint"
            )


def _read(step_folder: Any, wanted: dict[str, _RestoreSpec]) -> dict[str, Any]:
    """Reads arrays by name; any error while reading is reported as a checkpoint that cannot be read."""
    import jax

    ocp = orbax()
    elsewhere = {name: w for name, w in wanted.items() if w.sharding is not None and not w.sharding.addressable_devices}
    nonempty = {name: w for name, w in wanted.items() if math.prod(w.shape) and name not in elsewhere}
    if elsewhere and not nonempty:  # all processes meet in Orbax's restore, so this one reads something too
        name, least = min(elsewhere.items(), key=lambda one: math.prod(one[1].shape) or math.inf)
        nonempty = {name: dataclasses.replace(least, sharding=None)}
    item = {name: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding) for name, w in nonempty.items()}
    args = {
        name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=w.dtype)
        if w.sharding is None
        else ocp.ArrayRestoreArgs(sharding=w.sharding, global_shape=w.shape, dtype=w.dtype)
        for name, w in nonempty.items()
    }
    restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
    values: dict[str, Any] = {}
    if nonempty:
        reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers()))
        try:
            values = dict(reader.restore(step_folder, args=ocp.args.Composite(**{store.STATE: restore}))[store.STATE])
        except Exception as error:  # Orbax raises all kinds for files that are not what it wrote
            faults = store.damage(step_folder)
            if not faults and not isinstance(error, OSError | ValueError | KeyError | RuntimeError):
                raise
            reason = faults[0] if faults else (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise UserError(f"checkpoint {step_folder} cannot be read: {reason}; use an earlier one") from error
        finally:
            reader.close()
    for name, w in elsewhere.items():  # none of its devices belong to this process
        values[name] = jax.make_array_from_single_device_arrays(w.shape, w.sharding, [], dtype=w.dtype)
    for name in wanted.keys() - nonempty.keys() - elsewhere.keys():
        empty = np.zeros(wanted[name].shape, wanted[name].dtype)
        sharding = wanted[name].sharding
        values[name] = empty if sharding is None else jax.device_put(empty, sharding)
    return {name: np.asarray(values[name]) if w.sharding is None else values[name] for name, w in wanted.items()}
