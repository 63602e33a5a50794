"""Where a checkpoint's files lie on disk, and what says that it is whole. Nothing here imports JAX.

    <stage>/checkpoints/
        120/                    one committed step
            manifest.json       the commit marker: step, name, kind, every array's dtype and shape, every file's CRC-32
            meta/meta.json      data cursor, clocks, resolved configuration and its hash, due actions
            state/              the arrays (Orbax, OCDBT, uncompressed)
        history/100/            the same layout with the parameters alone, in bfloat16, never deleted
        130.orbax-checkpoint-tmp*   being written, or left by a killed run: removed when a run next opens the folder
        125.set-aside/          damaged, or from a timeline that a run left by resuming at an earlier step; not listed
        120.replaced/           the earlier copy of a step being written anew; put back if the new copy never commits

A folder counts only with its manifest, which is written last, inside the temporary folder, before the rename.
Deletion goes the other way: the manifest is renamed first, so a half-deleted folder is never taken for a checkpoint.
"""

from __future__ import annotations

import errno
import json
import logging
import pathlib
import shutil
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models.errors import UserError

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
FORMAT = 1
HASH_BLOCK = 1 << 22

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds. `leaves`: name -> [dtype, shape]; `files`: path -> [bytes, CRC-32 or None]."""

    step: int
    kind: str
    name: str | None
    saved_at: float
    leaves: dict[str, list]
    files: dict[str, list]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **self.__dict__})


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay. A step stays if any rule keeps it; steps saved under a name stay for ever.

    Attributes:
      latest: how many of the newest stay (at least 1).
      keep_every: steps divisible by this stay.
      history: every this many steps also the parameters alone, in bfloat16, are written to `history/` and all stay.
    """

    latest: int = 2
    keep_every: int | None = None
    history: int | None = None

    def __post_init__(self) -> None:
        if self.latest < 1:
            raise UserError(f"retention: latest is {self.latest}; at least 1 checkpoint must stay")
        for field in ("keep_every", "history"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"retention: {field} is {value}; give a number of steps from 1, or leave it out")

    def doomed(self, names: dict[int, str | None]) -> list[int]:
        """The steps to delete, given every committed step with its name (None when it has none)."""
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
    """Whether a step folder is whole: its manifest is there, and on a bucket also Orbax's own marker."""
    return (folder / MANIFEST).exists() and (not is_remote(folder) or (folder / REMOTE_COMMIT).exists())


def committed_steps(folder: Any) -> list[int]:
    """The committed steps in a checkpoints folder, ascending; none for a folder that does not exist."""
    folder = as_path(folder)
    if not folder.exists():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and is_committed(p))


def checkpoints_folder(folder: Any) -> Any:
    """A stage's folder or its `checkpoints` folder: the latter."""
    folder = as_path(folder)
    return folder / "checkpoints" if (folder / "checkpoints").exists() else folder


def resolve(folder: Any) -> Any:
    """The step folder that a user means: a step folder itself, or the latest step of a stage's folder.

    Raises:
      UserError: when there is no committed checkpoint there.
    """
    folder = as_path(folder)
    if is_committed(folder):
        return folder
    if not folder.exists():
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
      UserError: when it is missing, cannot be read, or was written by a later version.
    """
    path = as_path(step_folder) / MANIFEST
    try:
        fields = json.loads(path.read_text())
        version = fields.pop("format")
        manifest = Manifest(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); use an earlier checkpoint") from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT}; use the version that wrote it")
    return manifest


def read_meta(step_folder: Any) -> dict[str, Any]:
    """The JSON saved beside the arrays."""
    path = as_path(step_folder) / META / META_FILE
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); use an earlier checkpoint") from error


def checksum(path: Any) -> int:
    """CRC-32 of a file, read in blocks."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            value = zlib.crc32(block, value)
    return value


def hash_files(root: Any, folder: Any) -> dict[str, list]:
    """[bytes, CRC-32] of every file under `folder`, by path relative to `root`.

    On a bucket the CRC is left out (None): the store keeps its own, and reading everything back would double the
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
    """Writes the commit marker into a temporary folder whose files are all there.

    Takes over the checksums that each process recorded for its own files (`checksums.<process>.json`), hashes the
    rest. Orbax rewrites its own metadata file while it commits, so that one is not listed.
    """
    tmp = as_path(tmp)
    files: dict[str, list] = {}
    for part in sorted(tmp.glob(CHECKSUMS + "*"), key=lambda p: p.name):
        files.update(json.loads(part.read_text()))
        part.unlink()
    for path in _walk(tmp):
        relative = path.relative_to(tmp).as_posix()
        if relative not in files and path.name not in (ORBAX_METADATA, REMOTE_COMMIT):
            files[relative] = [_size(path), None if is_remote(path) else checksum(path)]
    manifest = Manifest(step, kind, name, time.time(), leaves, files)
    (tmp / MANIFEST).write_text(manifest.to_json())


def _size(path: Any) -> int:
    stat = path.stat()
    return stat.length if is_remote(path) else stat.st_size


def damage(step_folder: Any, part: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with a committed step folder, one short phrase for each fault; empty when it is whole.

    Args:
      part: (i, n): look at every n-th file only, from the i-th, so that n processes share the reading.
    """
    step_folder = as_path(step_folder)
    try:
        manifest = read_manifest(step_folder)
        read_meta(step_folder)
    except UserError as error:
        return [str(error)]
    faults = []
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
    """Deletes a committed step so that a kill half-way leaves something that is recognised as deleted."""
    (step_folder / MANIFEST).rename(step_folder / DELETED)
    for child in step_folder.iterdir():
        if child.is_dir():
            remove_tree(child)
        elif child.name != DELETED:
            child.unlink()
    remove_tree(step_folder)


def set_aside(step_folder: Any) -> Any:
    """Takes a step out of the listing without deleting it; an older one set aside under that number goes."""
    target = step_folder.with_name(step_folder.name + SET_ASIDE)
    remove_tree(target)
    step_folder.rename(target)
    return target


def clean(folder: Any) -> list[str]:
    """Removes what killed runs left in a checkpoints folder, and returns the names. Never touches a committed step."""
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
        elif TEMPORARY in path.name or path.name.endswith(REPLACED) or _is_remains(path):
            remove_tree(path)
            removed.append(path.name)
    return removed


def _is_remains(path: Any) -> bool:
    """A step folder whose deletion, or on a bucket whose writing, was cut short. Foreign folders are left alone."""
    if not path.name.isdecimal() or is_committed(path):
        return False
    return (path / DELETED).exists() or (is_remote(path) and (path / ORBAX_METADATA).exists())


def write_failure(error: BaseException) -> str:
    """Why a save failed, in a short phrase: a full disk by name, else the first line of the error."""
    cause: BaseException | None = error
    while cause is not None:
        full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or any(text in str(cause) for text in ("No space left", "ENOSPC", "Disk quota exceeded")):
            return "no space left on the disk; free some, or keep fewer (retention: latest, keep_every, history)"
        cause = cause.__cause__ or cause.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
