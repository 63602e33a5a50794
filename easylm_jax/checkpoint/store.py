"""The layout of checkpoints on disk, and how a complete one is recognised. Nothing here imports JAX.

    <stage>/checkpoints/
        120/                    one committed step
            manifest.json       the commit marker: step, name, kind, every array's dtype and shape, every file's CRC-32,
                            and its own
            meta/meta.json      data cursor, clocks, resolved configuration and its hash, due actions
            state/              the arrays (Orbax, OCDBT, uncompressed)
        history/100/            the same layout with only the parameters, in bfloat16; never deleted
        130.orbax-checkpoint-tmp*   being written, or left by a killed run: removed when a run next opens the folder
        125.set-aside/          damaged, or later than the step that the run was resumed from; not listed
        120.replaced/           the old copy of a step that is being replaced; restored if the new one is not committed

A folder is a checkpoint only if it has a manifest, which is written last, inside the temporary folder, before the
rename. Deletion renames the manifest first, so a partly deleted folder is never taken for a checkpoint.
"""

from __future__ import annotations

import errno
import logging
import math
import pathlib
import re
import shutil
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from easylm_jax.runtime.files import atomic_write
from models import reading
from models.durable import sync_tree
from models.errors import UserError
from models.reading import Damaged, Object

MANIFEST = "manifest.json"
DELETED = "deleted.json"
STATE = "state"
META = "meta"
META_FILE = "meta.json"
HISTORY = "history"
TEMPORARY = ".orbax-checkpoint-tmp"
SET_ASIDE = ".set-aside"
REPLACED = ".replaced"
REMOTE_COMMIT = "commit_success.txt"
ORBAX_METADATA = "_CHECKPOINT_METADATA"
CHECKSUMS = "checksums."
FORMAT = 2
UNSEALED_FORMAT = 1  # earlier manifests, which are the same without a checksum of their own
MEND = "use an earlier checkpoint"
HASH_BLOCK = 1 << 22

log = logging.getLogger(__name__)


class _ManifestFile(TypedDict):
    """The JSON of a manifest. `leaves`: name -> [dtype, shape]; `files`: path -> [bytes, CRC-32 or None]."""

    format: int
    step: int
    kind: Literal["full", "params"]
    name: str | None
    saved_at: float
    leaves: dict[str, tuple[str, list[int]]]
    files: dict[str, tuple[int, int | None]]


class _MetaFile(TypedDict, total=False):
    """The entries of `meta.json` that are read back; there may be others."""

    model: Object | str | None
    tokenizer: str | None
    tokenizer_hash: str | None
    source: str | None
    config: Object | None
    config_hash: str | None
    data: Object
    validation: dict[str, float] | None
    clocks: Object


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. `leaves`: name -> [dtype, shape]; `files`: path -> [bytes, CRC-32 or None]."""

    step: int
    kind: str
    name: str | None
    saved_at: float
    leaves: dict[str, list]
    files: dict[str, list]

    def to_json(self) -> str:
        return reading.sealed({"format": FORMAT, **self.__dict__})


@dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep. A step is kept if any rule keeps it; steps saved with a name are kept forever.

    Attributes:
      latest: number of newest steps to keep (at least 1).
      keep_every: steps divisible by this are kept.
      history: at steps divisible by this, the parameters in bfloat16 are also written to `history/`, and all are kept.
    """

    latest: int = 2
    keep_every: int | None = None
    history: int | None = None

    def __post_init__(self) -> None:
        if self.latest < 1:
            raise UserError(f"retention: latest is {self.latest}; at least 1 checkpoint must be kept")
        for field in ("keep_every", "history"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"retention: {field} is {value}; give a number of steps from 1, or leave it out")

    def to_delete(self, names: dict[int, str | None]) -> list[int]:
        """The steps to delete; `names` maps every committed step to its name or None."""
        newest = sorted(names)[-self.latest :]
        kept = {s for s, name in names.items() if name is not None or (self.keep_every and s % self.keep_every == 0)}
        return sorted(set(names) - set(newest) - kept)


def is_remote(folder: Any) -> bool:
    return "://" in str(folder)


def as_path(folder: Any) -> Any:
    """An absolute pathlib path, or an epath for a bucket (`gs://...`), which has the same methods."""
    if is_remote(folder):
        from etils import epath

        return epath.Path(folder)
    return pathlib.Path(str(folder)).absolute()


def is_committed(folder: Any) -> bool:
    """Whether a step folder is committed: it has a manifest and, in a bucket, also Orbax's commit marker."""
    return (folder / MANIFEST).exists() and (not is_remote(folder) or (folder / REMOTE_COMMIT).exists())


def committed_steps(folder: Any) -> list[int]:
    """The committed steps in a checkpoints folder, in ascending order; empty if there is no such folder."""
    folder = as_path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and is_committed(p))


def checkpoints_folder(folder: Any) -> Any:
    """The `checkpoints` folder, given that folder or its stage's folder."""
    folder = as_path(folder)
    return folder / "checkpoints" if (folder / "checkpoints").exists() else folder


def resolve(folder: Any) -> Any:
    """The step folder for `folder`: itself if it is one, otherwise the latest step of a stage's folder.

    Raises:
      UserError: there is no committed checkpoint.
    """
    folder = as_path(folder)
    if is_committed(folder):
        return folder
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}; give a stage's folder or one of its checkpoints/<step> folders")
    root = checkpoints_folder(folder)
    for where in (root, root / HISTORY):
        steps = committed_steps(where)
        if steps:
            return where / str(steps[-1])
    raise UserError(f"no committed checkpoint in {folder}; give a stage's folder or a checkpoints/<step> folder")


def read_manifest(step_folder: Any) -> Manifest:
    """The manifest of a step folder.

    Raises:
      Damaged: it is missing, cannot be read, has changed since it was written, or is no manifest.
      UserError: it was written by a later version.
    """
    path = as_path(step_folder) / MANIFEST
    fields, is_sealed = reading.read_sealed(path, mend=MEND)
    version = fields.get("format")
    if is_sealed and type(version) is int and version > FORMAT:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT}; use the version that wrote it")
    found = reading.fault(_ManifestFile, fields) or _fault_of_manifest(fields, is_sealed)
    if found:
        raise Damaged(path, found, MEND)
    del fields["format"]
    return Manifest(**fields)


def _fault_of_manifest(fields: Object, is_sealed: bool) -> str | None:
    """Why the values in a manifest cannot be right, or None."""
    unknown = sorted(fields.keys() - _ManifestFile.__annotations__.keys())
    if unknown or fields["format"] != (FORMAT if is_sealed else UNSEALED_FORMAT):
        return f"unknown entry {unknown[0]!r}" if unknown else "it has no checksum of its own"
    if fields["step"] < 0 or not math.isfinite(fields["saved_at"]):
        return f"step {fields['step']} saved at {fields['saved_at']}"
    for name, (dtype, shape) in fields["leaves"].items():
        if not name or not _is_dtype(dtype) or any(size < 0 for size in shape):
            return f"array {name!r} of dtype {dtype!r} and shape {shape}"
    for relative, (size, crc) in fields["files"].items():
        if not reading.is_inside(relative) or size < 0 or not (crc is None or 0 <= crc < 1 << 32):
            return f"file {relative!r} of {size} bytes with CRC-32 {crc}"
    return None


def _is_dtype(text: str) -> bool:
    try:
        dtype = stored_dtype(text) if re.fullmatch(r"[a-z0-9_]{1,32}", text) else None
        return dtype is not None and dtype.name == text and not dtype.hasobject
    except (TypeError, ValueError, AttributeError):
        return False


def stored_dtype(text: str) -> np.dtype:
    """The dtype of this name, such as "bfloat16"."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, text, text))


def read_meta(step_folder: Any) -> dict[str, Any]:
    """The JSON metadata saved with the arrays, compared with its checksum in the manifest.

    Raises:
      Damaged: it or the manifest cannot be read, or has changed since it was written.
    """
    path = as_path(step_folder) / META / META_FILE
    data = reading.read_bytes(path, mend=MEND)
    _, crc = read_manifest(step_folder).files.get(f"{META}/{META_FILE}", (0, None))
    if crc is not None and zlib.crc32(data) != crc:
        raise Damaged(path, "it has changed since it was written: its CRC-32 differs", MEND)
    return reading.parse_json(data, _MetaFile, path, mend=MEND)


def checksum(path: Any) -> int:
    """CRC-32 of a file, read in blocks."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            value = zlib.crc32(block, value)
    return value


def hash_files(root: Any, folder: Any) -> dict[str, list]:
    """[bytes, CRC-32] of every file under `folder`, by path relative to `root`.

    In a bucket the CRC is None: the object store keeps its own checksums, and reading all files back would double the
    traffic.
    """
    root = as_path(root)
    return {
        path.relative_to(root).as_posix(): [_size(path), None if is_remote(path) else checksum(path)]
        for path in _walk(as_path(folder))
    }


def _walk(folder: Any) -> Iterable[Any]:
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def write_manifest(tmp: Any, *, step: int, kind: str, name: str | None, leaves: dict[str, list]) -> None:
    """Writes the commit marker into a temporary folder once all of its files are written.

    Uses the checksums that each process recorded for its own files (`checksums.<process>.json`) and hashes the other
    files. Orbax rewrites its own metadata file during the commit, so that file is not listed.
    """
    tmp = as_path(tmp)
    files: dict[str, list] = {}
    for part in sorted(tmp.glob(CHECKSUMS + "*"), key=lambda p: p.name):
        files.update(reading.read_json(part, dict[str, tuple[int, int | None]]))
        part.unlink()
    for path in _walk(tmp):
        relative = path.relative_to(tmp).as_posix()
        if relative not in files and path.name not in (ORBAX_METADATA, REMOTE_COMMIT):
            files[relative] = [_size(path), None if is_remote(path) else checksum(path)]
    manifest = Manifest(step, kind, name, time.time(), leaves, files)
    if is_remote(tmp):
        (tmp / MANIFEST).write_text(manifest.to_json())
        return
    sync_tree(tmp)  # the manifest must not reach the disk before what it vouches for
    with atomic_write(tmp / MANIFEST) as file:
        file.write(manifest.to_json().encode())


def _size(path: Any) -> int:
    stat = path.stat()
    return stat.length if is_remote(path) else stat.st_size


def damage(step_folder: Any, part: tuple[int, int] = (0, 1)) -> list[str]:
    """The faults of a committed step folder, one short phrase each; empty if it is intact.

    Args:
      part: (i, n): check only every n-th file, starting at the i-th, so that n processes divide the files.
    """
    step_folder = as_path(step_folder)
    try:
        manifest = read_manifest(step_folder)
        read_meta(step_folder)
    except UserError as error:
        return [str(error)]
    faults = []
    if step_folder.name.isdecimal() and int(step_folder.name) != manifest.step:
        faults.append(f"its manifest is that of step {manifest.step}")
    for relative, (size, crc) in sorted(manifest.files.items())[part[0] :: part[1]]:
        path = step_folder / relative
        try:
            if not path.exists():
                faults.append(f"{relative} is missing")
            elif _size(path) != size:
                faults.append(f"{relative} has {_size(path)} bytes instead of {size}")
            elif crc is not None and checksum(path) != crc:
                faults.append(f"{relative} has changed since it was written (CRC-32 differs)")
        except OSError as error:
            faults.append(f"{relative} cannot be read ({error.strerror or error})")
    return faults


def total_bytes(step_folder: Any) -> int:
    return sum(size for size, _ in read_manifest(step_folder).files.values())


def remove_tree(folder: Any) -> None:
    if is_remote(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def delete_step(step_folder: Any) -> None:
    """Deletes a committed step; if the process is killed half-way, the rest is still recognised as deleted."""
    (step_folder / MANIFEST).rename(step_folder / DELETED)
    for child in step_folder.iterdir():
        if child.is_dir():
            remove_tree(child)
        elif child.name != DELETED:
            child.unlink()
    remove_tree(step_folder)


def set_aside(step_folder: Any) -> Any:
    """Renames a step so that it is no longer listed; replaces one that was set aside earlier for the same step."""
    target = step_folder.with_name(step_folder.name + SET_ASIDE)
    remove_tree(target)
    step_folder.rename(target)
    return target


def clean(folder: Any) -> list[str]:
    """Removes incomplete checkpoints of killed runs and returns their names. Never touches a committed step."""
    folder = as_path(folder)
    removed: list[str] = []
    if not folder.exists():
        return removed
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if not path.is_dir():
            continue
        if path.name.endswith(REPLACED) and not is_committed(path.with_name(path.name.removesuffix(REPLACED))):
            remove_tree(path.with_name(path.name.removesuffix(REPLACED)))
            path.rename(path.with_name(path.name.removesuffix(REPLACED)))
        elif TEMPORARY in path.name or path.name.endswith(REPLACED) or _is_incomplete(path):
            remove_tree(path)
            removed.append(path.name)
    return removed


def _is_incomplete(path: Any) -> bool:
    """A step folder whose deletion (or, in a bucket, writing) was interrupted. Other folders are not touched."""
    if not path.name.isdecimal() or is_committed(path):
        return False
    return (path / DELETED).exists() or (is_remote(path) and (path / ORBAX_METADATA).exists())


def write_failure(error: BaseException) -> str:
    """Why a save failed, in a short phrase: that the disk is full, otherwise the first line of the error."""
    cause: BaseException | None = error
    while cause is not None:
        full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or any(text in str(cause) for text in ("No space left", "ENOSPC", "Disk quota exceeded")):
            return "no space left on the disk; free some, or keep fewer (retention: latest, keep_every, history)"
        cause = cause.__cause__ or cause.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
