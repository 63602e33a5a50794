"""A curation job: one decision for each row, made block by block in worker processes and kept until the job ends.

    DIR/.work/key.json          what the decisions were made of: command, settings, input files
    DIR/.work/000000.npz        the decisions of a block; a stopped job resumes with those that are missing
    DIR/<file>.jsonl            the rows that are kept, written when all decisions are there
    DIR/removed.jsonl.gz        the other rows, each with the reason
    DIR/.curation.json          the finished job: its key, and the files with their rows

Decisions depend on the rows alone, and rows are written in reading order, so the files are the same bytes whatever the
number of workers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import gzip
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from easylm_jax.data.curation.rows import Block, blocks, lines_of
from easylm_jax.runtime import files as writing
from easylm_jax.runtime.functions import resolve
from easylm_jax.runtime.locks import Locked, locked
from easylm_jax.runtime.monitor import Progress, counting
from models import reading
from models.errors import UserError

REMOVED = "removed.jsonl.gz"  # beside the kept rows: the rows that went, each with its place and the reason
VERSION = 1  # of the decisions; a higher one makes older work unusable
Decide = Callable[[Block], dict[str, np.ndarray]]
DecideBlocks = Callable[["Job", str, Mapping[str, Any]], int]  # as `Job.decide`, by other means (`scale.on`)
_MEND = "delete the folder, or choose another --out"


class _Key(TypedDict):
    command: str
    version: int
    settings: dict[str, Any]
    inputs: list[list[Any]]


class _Finished(TypedDict):
    key: _Key
    files: dict[str, int]
    summary: dict[str, Any]


class Job:
    """One run of a curation command.

    Args:
        command: its name.
        files: the files whose rows are decided on.
        out: folder of the kept rows.
        settings: everything else that the decisions depend on.
        others: further input files.
        workers: worker processes; 1 decides in this process.
    """

    def __init__(
        self, command: str, files: Sequence[Path], out: Path, settings: Mapping[str, Any], *,
        others: Sequence[Path] = (), workers: int = 1,
    ):  # fmt: skip
        self.command, self.files, self.out, self.workers = command, list(files), out, workers
        self.work = out / ".work"
        inputs = [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in [*files, *others]]
        self.key = _Key(command=command, version=VERSION, settings=dict(settings), inputs=inputs)
        self.names = output_names(self.files)

    @contextlib.contextmanager
    def opened(self) -> Iterator[dict[str, Any] | None]:
        """Holds the folder for this job; yields the summary of the same job if it has been finished, else None.

        Raises:
            UserError: the folder holds work or results of other settings, another process works in it, or it cannot be
                written.
        """
        with written_below(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            try:
                with locked(self.out / ".lock"):
                    yield self._begin()
            except Locked as other:
                raise UserError(f"{self.command}: {self.out} is in use by {other.owner}; wait for it, or choose "
                                "another --out") from None  # fmt: skip

    def _begin(self) -> dict[str, Any] | None:
        finished = self.out / ".curation.json"
        if finished.is_file():
            found = reading.read_json(finished, _Finished, mend=_MEND)
            self._compare(found["key"], finished)
            if all((self.out / name).is_file() for name in found["files"]):
                return found["summary"]
        key = self.work / "key.json"
        if key.is_file():
            self._compare(reading.read_json(key, _Key, mend=_MEND), key)
        else:
            shutil.rmtree(self.work, ignore_errors=True)
            writing.write_json(key, self.key)
        return None

    def _compare(self, found: _Key, path: Path) -> None:
        mine = json.loads(json.dumps(self.key))
        if found == mine:
            return
        names = [name for name in mine if found.get(name) != mine[name]]
        if "settings" in names:
            old, new = found["settings"], mine["settings"]
            names = [f"{name} {old.get(name)!r} → {new.get(name)!r}" for name in new if old.get(name) != new[name]]
        raise UserError(f"{self.command}: {path} is of another job ({', '.join(names)}); {_MEND}")

    def part(self, number: int) -> Path:
        """The file with the decisions of a block."""
        return self.work / f"{number:06d}.npz"

    def decide(self, make: str, arguments: Mapping[str, Any]) -> int:
        """Makes the decisions of every block that has none; returns the number of blocks.

        Args:
            make: `"module:function"`, called with `arguments` once in each process; it returns a function from a block
                to named arrays, of which `keep`, bool [rows], if there is one, says which rows are kept.
            arguments: anything that can be sent to a process.
        """
        count, rows = 0, 0

        def pending(progress: Progress) -> Iterator[Block]:
            nonlocal count, rows
            for block in blocks(self.files):
                count, rows = count + 1, rows + len(block.lines)
                if not self.part(block.number).is_file():
                    yield block
                progress.update(rows, {})

        with counting(self.command, None, "rows", enabled=True) as progress, progress.phase("reading rows"):
            waiting = pending(progress)
            first = [block for _, block in zip(range(2), waiting, strict=False)]
            if self.workers == 1 or len(first) < 2:
                decide: Decide = resolve(make)(**arguments)
                for block in _chain(first, waiting):
                    save_part(self.part(block.number), block, decide(block))
            else:
                self._in_processes(make, arguments, _chain(first, waiting))
        return count

    def _in_processes(self, make: str, arguments: Mapping[str, Any], waiting: Iterator[Block]) -> None:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            self.workers, context, initializer=_start_worker, initargs=(os.getpid(), make, dict(arguments))
        ) as pool:
            running: set[concurrent.futures.Future[None]] = set()
            try:
                for block in waiting:
                    if len(running) >= 2 * self.workers:  # bounds the blocks that are in memory
                        done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                        for future in done:
                            future.result()
                    running.add(pool.submit(_decide_in_worker, block, self.part(block.number)))
                for future in concurrent.futures.as_completed(running):
                    future.result()
            except concurrent.futures.process.BrokenProcessPool:
                raise UserError(f"{self.command}: a worker process was killed, perhaps for memory; run the command "
                                "again, which goes on where it was, with fewer --workers") from None  # fmt: skip
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def parts(self, count: int, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """The decisions of every block, in order: all arrays, or those with these names."""
        return self.parts_of(range(count), *names)

    def parts_of(self, numbers: Iterable[int], *names: str) -> Iterator[dict[str, np.ndarray]]:
        """The decisions of the blocks with these numbers."""
        return (load_part(self.part(number), *names) for number in numbers)

    def write_kept(
        self, parts: Iterator[dict[str, np.ndarray]], removed: Callable[[dict[str, np.ndarray], int], dict[str, Any]]
    ) -> dict[str, int]:
        """Writes the rows that the parts keep, and the others with the reason to `removed.jsonl.gz`.

        Args:
            parts: of all rows, in order, each with `keep`, bool [rows].
            removed: (part, row in it) → what is said of a row that goes.

        Returns:
            The rows of each file.
        """
        decisions = ((part, i) for part in parts for i in range(len(part["keep"])))
        kept = dict.fromkeys(self.names, 0)
        with gzip_written(self.out / REMOVED) as gone:
            for file, name in zip(self.files, self.names, strict=True):
                with writing.atomic_write(self.out / name) as out:
                    for line, place in lines_of(file):
                        part, i = next(decisions)
                        if part["keep"][i]:
                            out.write(line + b"\n")
                            kept[name] += 1
                        else:
                            said = {"place": place, **removed(part, i), "row": json.loads(line)}
                            gone.write((json.dumps(said, ensure_ascii=False) + "\n").encode())
        return kept

    def finish(self, files: Mapping[str, int], summary: Mapping[str, Any]) -> dict[str, Any]:
        """Marks the job as finished and removes its work; returns the summary."""
        writing.write_json(self.out / ".curation.json", {"key": self.key, "files": files, "summary": summary})
        shutil.rmtree(self.work, ignore_errors=True)
        return dict(summary)


def output_names(files: Sequence[Path]) -> list[str]:
    """A name for the kept rows of each file, `<name>.jsonl`; a name that is taken gets a number."""
    names: list[str] = []
    for file in files:
        stem = file.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[0] or file.name
        numbered = (f"{stem}-{i}.jsonl" for i in range(2, len(files) + 2))
        names.append(next(name for name in [f"{stem}.jsonl", *numbered] if name not in names))
    return names


def save_part(path: Path, block: Block, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the decisions of a block in one piece, with its `place`: the file, and its first row in that."""
    with writing.atomic_write(path) as file:
        np.savez(file, place=np.array([block.file, block.first]), **arrays)  # type: ignore[arg-type]


@contextlib.contextmanager
def gzip_written(path: Path) -> Iterator[gzip.GzipFile]:
    """Opens a compressed file that replaces `path` when the block ends; the same content is the same bytes."""
    with writing.atomic_write(path) as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        yield file


def load_part(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays of a block, all or those with these names; `Damaged` if the file is no such thing."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged bytes
        raise reading.Damaged(
            path, f"no decisions of a block: {error}", "delete it and run the command again"
        ) from None


@contextlib.contextmanager
def written_below(folder: Path) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise UserError(f"cannot write {error.filename or f'below {folder}'}: {error.strerror}; make room, or choose "
                        "another --out") from None  # fmt: skip


def default_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_worker: dict[str, Decide] = {}


def _start_worker(parent: int, make: str, arguments: dict[str, Any]) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker["decide"] = resolve(make)(**arguments)


def _end_with(parent: int) -> None:
    """Ends this process once its parent is gone; a killed parent cannot end it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _decide_in_worker(block: Block, path: Path) -> None:
    save_part(path, block, _worker["decide"](block))


def _chain(first: list[Block], rest: Iterator[Block]) -> Iterator[Block]:
    yield from first
    yield from rest
