"""The operations of `easylm checkpoints list|verify|average|prune|diff`. JAX is imported only to read arrays."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from easylm_jax.checkpoint import revision, store
from easylm_jax.checkpoint.store import Retention
from models import reading
from models.errors import UserError

BATCH_BYTES = 1 << 30  # of arrays in memory at once while checkpoints are compared or averaged


@dataclass(frozen=True)
class Entry:
    """One committed checkpoint. `kind`: "full", "params", "average", or "damaged" when its manifest cannot be read;
    `bytes` and `age` (seconds since its commit): None if it is damaged; `revision`: its name as OLMo's repositories
    name checkpoints (`revision.py`), where its batch is known."""

    step: int
    kind: str
    name: str | None
    bytes: int | None
    age: float | None
    folder: str
    revision: str | None = None


@dataclass(frozen=True)
class DiffResult:
    """`differ`: names of the arrays that differ, and `meta.data` if the data cursors do; `max_abs_diff` by array name,
    None if it is not defined (missing in one checkpoint, different shape or dtype, non-finite values)."""

    identical: bool
    differ: list[str]
    max_abs_diff: dict[str, float | None]


def list_checkpoints(stage_folder: Any) -> list[Entry]:
    """Every committed checkpoint of a stage, sorted by step, including the history; or the one in a step folder.

    An average, which `average` wrote to a folder of its own, is listed by that folder.

    Raises:
      UserError: the folder does not exist, or the manifest of a step folder cannot be read.
    """
    root = store.checkpoints_folder(stage_folder)
    if not root.exists():
        raise UserError(f"no such folder: {root}; give a stage's folder, runs/<recipe>/<stage>")
    if store.is_committed(root):
        return [_entry(root)]
    folders = [where / str(step) for where in (root, root / store.HISTORY) for step in store.committed_steps(where)]
    return sorted((_entry_of_stage(folder) for folder in folders), key=lambda e: (e.step, e.kind))


def _entry_of_stage(folder: Any) -> Entry:
    try:
        return _entry(folder)
    except reading.Damaged:
        return Entry(int(folder.name), "damaged", None, None, None, str(folder))


def _entry(folder: Any) -> Entry:
    manifest = store.read_manifest(folder)
    meta = store.read_meta(folder)
    parts = meta.get("average_of") if manifest.kind == "params" else None
    kind, name = ("average", f"of {len(parts)} checkpoints") if parts else (manifest.kind, manifest.name)
    age = max(0.0, time.time() - manifest.saved_at)
    return Entry(manifest.step, kind, name, store.total_bytes(folder), age, str(folder), _revision(meta, manifest.step))


def _revision(meta: dict[str, Any], step: int) -> str | None:
    """The revision of a step of a stage that trains on data of one length; None for other checkpoints."""
    config = meta.get("config") or {}
    name, batch, length = config.get("name"), config.get("batch"), (config.get("data") or {}).get("sequence_length")
    if not (isinstance(name, str) and isinstance(batch, int) and isinstance(length, int)):
        return None
    return str(revision.of_stage(name, step, batch * length))


def verify(folder: Any) -> dict[str, list[str]]:
    """Faults by step folder, of every checkpoint of a stage or of one step; an empty list means that it is intact.

    The size and CRC-32 of every file are compared with the manifest. Raises UserError if there is no checkpoint.
    """
    path = store.as_path(folder)
    if store.is_committed(path):
        return {str(path): store.damage(path)}
    store.resolve(path)
    root = store.checkpoints_folder(path)
    return {
        str(where / str(step)): store.damage(where / str(step))
        for where in (root, root / store.HISTORY)
        for step in store.committed_steps(where)
    }


class _Kept(TypedDict, total=False):
    latest: int
    keep_every: int | None
    history: int | None


class _StageFields(TypedDict, total=False):
    checkpoints: _Kept | None


class _StageFile(TypedDict, total=False):
    """What is read here of a stage's `config.json`."""

    stage: _StageFields | None


def stage_retention(folder: Any) -> Retention:
    """The retention in the settings of a stage, given its folder; the default where they are not known.

    They are read from the stage's `config.json`, which each start of the run writes, else from its newest checkpoint.
    """
    root = store.checkpoints_folder(folder)
    config = root.parent / "config.json"
    mend = "give --latest and --every"
    stage = reading.read_json(config, _StageFile, mend=mend).get("stage") if config.exists() else None
    if not stage:
        newest = store.resolve(root)
        stage = store.read_meta(newest).get("config") or {}
        found = reading.fault(_StageFields, stage)
        if found is not None:
            raise reading.Damaged(newest / store.META, found, mend)
    settings = stage.get("checkpoints") or {}
    return Retention(**{field.name: settings[field.name] for field in fields(Retention) if field.name in settings})


def prune(folder: Any, retention: Retention, dry_run: bool = False) -> list[str]:
    """Deletes steps that `retention` does not keep, and checkpoints set aside; keeps the history and named steps.

    The newest checkpoint must be intact, so that the last good one is never deleted. Damaged ones among those that
    would be kept as the newest are not counted, so that `latest` intact ones stay. A step whose manifest cannot be read
    is never deleted. A folder that is being written is not touched, but do not prune a run that is still training.

    Returns:
      The deleted folders (with `dry_run`: those that would be deleted).
    """
    root = store.checkpoints_folder(folder)
    newest = store.resolve(root)
    faults = store.damage(newest)
    if faults:
        raise UserError(f"the newest checkpoint {newest} is damaged ({faults[0]}): nothing pruned; move it away first")
    old_steps = [root / str(step) for step in retention.to_delete(_names_of_intact(root, retention.latest))]
    aside = [
        path
        for where in (root, root / store.HISTORY)
        if where.exists()
        for path in sorted(where.iterdir())
        if path.name.endswith(store.SET_ASIDE)
    ]
    if not dry_run:
        for path in old_steps:
            store.delete_step(path)
        for path in aside:
            store.remove_tree(path)
    return [str(path) for path in [*old_steps, *aside]]


def _names_of_intact(root: Any, latest: int) -> dict[int, str | None]:
    """The names of the committed steps, without damaged ones newer than the `latest`-th intact one, and without those
    whose manifest cannot be read."""
    names: dict[int, str | None] = {}
    intact = 0
    for step in reversed(store.committed_steps(root)):
        if intact < latest and store.damage(root / str(step)):
            continue
        intact += 1
        with contextlib.suppress(UserError):
            names[step] = store.read_manifest(root / str(step)).name
    return names


def _batches(leaves: dict[str, list]) -> Iterator[list[str]]:
    """Names in groups of at most `BATCH_BYTES` of arrays (counting 8 bytes per element)."""
    group: list[str] = []
    size = 0
    for name, (_, shape) in leaves.items():
        count = 8
        for n in shape:
            count *= n
        if group and size + count > BATCH_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += count
    if group:
        yield group


def diff(a: Any, b: Any) -> DiffResult:
    """Compares the arrays and data cursors of two checkpoints bit for bit; clocks and configurations are ignored.

    Args:
      a, b: step folders, or stages' folders (their latest step).
    """
    import numpy as np

    from easylm_jax.checkpoint import arrays

    left, right = store.resolve(a), store.resolve(b)
    stored, other = store.read_manifest(left).leaves, store.read_manifest(right).leaves
    differ: dict[str, float | None] = {
        name: None for name in stored.keys() | other.keys() if stored.get(name) != other.get(name)
    }
    for names in _batches({name: leaf for name, leaf in stored.items() if name not in differ}):
        mine, theirs = arrays.read_arrays(left, names), arrays.read_arrays(right, names)
        for name in names:
            x, y = np.ascontiguousarray(mine[name]), np.ascontiguousarray(theirs[name])
            if x.tobytes() != y.tobytes():
                with np.errstate(invalid="ignore"):  # inf - inf
                    gap = np.max(np.abs(x.astype(np.float64) - y.astype(np.float64)))
                differ[name] = float(gap) if np.isfinite(gap) else None
    changed = sorted(differ)
    if store.read_meta(left).get("data") != store.read_meta(right).get("data"):
        changed.append("meta.data")
    return DiffResult(not changed, changed, {name: differ[name] for name in sorted(differ)})


def average(folders: Sequence[Any], out: Any) -> str:
    """Averages the parameters of several checkpoints (a model soup) and writes them as a parameters-only checkpoint.

    Sums are in float64, so that the mean of equal values is that value, and are cast back to each array's stored dtype.
    Optimizer state is not averaged (OLMo 2, arXiv 2501.00656, Table 14: weights only). The model, the tokenizer and the
    chat template of the first checkpoint are kept.

    Args:
      folders: at least two step folders, or stages' folders (their latest step), of the same architecture.
      out: the folder to create; `restore_params(out)` reads it.
    """
    from easylm_jax.checkpoint import load

    if len(folders) < 2:
        raise UserError(f"average needs at least two checkpoints, {len(folders)} given; name another one")
    target = store.as_path(out)
    if target.exists():
        raise UserError(f"{target} exists already; give a new folder with --out")
    sources = [load.trained_step(folder) for folder in folders]
    mean = _mean(sources, _same_params(sources))
    step = max(store.read_manifest(source).step for source in sources)
    write_params(target, mean, {**described(sources[0]), "average_of": [str(s) for s in sources]}, step=step)
    return str(target)


def write_params(target: Any, params: dict[str, Any], meta: dict[str, Any], *, step: int) -> None:
    """Writes parameters by name ("params.…") as a step folder; `UserError` when that fails."""
    from easylm_jax.checkpoint import arrays

    target.parent.mkdir(parents=True, exist_ok=True)
    writer = arrays.CheckpointWriter(deadline_seconds=3600)
    try:
        writer.start(target, params, meta, step=step, kind="params", name=None)
        writer.wait()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{target} could not be written: {store.write_failure(error)}") from error
    finally:
        writer.close()


def described(source: Any) -> dict[str, Any]:
    """What the metadata of a checkpoint says about its model: architecture, tokenizer, template and compute dtype."""
    from easylm_jax.checkpoint import load

    _, meta = load.checked_meta(source)
    found: dict[str, Any] = {name: meta[name] for name in ("model", "tokenizer_hash", "source") if name in meta}
    config = {name: value for name, value in (meta.get("config") or {}).items() if name in ("data", "compute")}
    tokenizer = load.tokenizer_of(source, meta)  # a stage's is found beside the source, not beside the average
    return {**found, **({"tokenizer": tokenizer} if tokenizer else {}), **({"config": config} if config else {})}


def _same_params(sources: Sequence[Any]) -> dict[str, list]:
    """The manifest entries of the parameters, after checking that all step folders have the same ones undamaged."""
    trees = [
        {name: leaf for name, leaf in store.read_manifest(source).leaves.items() if name.startswith("params.")}
        for source in sources
    ]
    for source, tree in zip(sources, trees, strict=True):
        odd = sorted(name for name in trees[0].keys() | tree.keys() if trees[0].get(name) != tree.get(name))
        if odd or not tree:
            what = f"{odd[0]} differs in shape or dtype, or is missing in one" if odd else "there are no params"
            raise UserError(f"{source} cannot be averaged with {sources[0]}: {what}")
        faults = store.damage(source)
        if faults:
            raise UserError(f"checkpoint {source} is damaged: {faults[0]}; use an earlier one")
    return trees[0]


def _mean(sources: Sequence[Any], leaves: dict[str, list]) -> dict[str, Any]:
    """The mean of each array over all step folders, summed in float64 and cast back to its stored dtype."""
    import numpy as np

    from easylm_jax.checkpoint import arrays

    mean: dict[str, Any] = {}
    for names in _batches(leaves):
        total: dict[str, Any] = {
            name: array.astype(np.float64) for name, array in arrays.read_arrays(sources[0], names).items()
        }
        for source in sources[1:]:
            for name, array in arrays.read_arrays(source, names).items():
                total[name] += array.astype(np.float64)
        for name, array in total.items():
            mean[name] = (array / len(sources)).astype(store.stored_dtype(leaves[name][0]))
    return mean
