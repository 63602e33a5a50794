"""The newest state on the hosts' own disks, beside the checkpoints in the shared folder: saved fast, restored first.

Every process writes what it holds of the state (`parts`) to a folder of its host's own disk, and sends it to the next
process, which keeps it on the disk of its host. A host that is lost leaves its part with its neighbour, so any one host
may be lost. Restoring takes parts from wherever they are, also on another number of processes.

    <folder>/<run>/<step>/<process>-of-<processes>.part

A replica is a convenience: what goes wrong with it is said, and the checkpoints of the shared folder remain.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easylm_jax.checkpoint import parts
from easylm_jax.checkpoint.neighbour import Neighbours
from models.reading import Damaged
from models.trees import leaf_names

KEPT = 2  # steps; the one before stays until the newest is whole everywhere
log = logging.getLogger(__name__)


class Replica:
    """The parts of a run's newest states on this host's disk.

    All processes make the same calls in the same order. `run` tells runs apart that use one folder.
    """

    def __init__(self, folder: str, run: str, neighbours: Neighbours):
        name = hashlib.sha256(run.encode()).hexdigest()[:16]
        self.folder = Path(folder).expanduser() / name
        self._neighbours = neighbours
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._said = False
        self.bytes_written = 0
        neighbours.serve(self.folder)
        threading.Thread(target=self._run_thread, name="replica", daemon=True).start()

    # Saving

    def save(self, step: int, leaves: dict[str, Any], meta: dict[str, Any]) -> None:
        """Saves a state. Returns once its arrays are copied to the host, after the save before is done."""
        self.wait()
        self._idle.clear()
        blocks = parts.blocks_of(leaves, self._neighbours.index)
        self._queue.put((step, blocks, json.loads(json.dumps(meta))))

    def wait(self) -> None:
        """Waits until the save that is under way has ended, well or not."""
        self._idle.wait()

    def _run_thread(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            try:
                self._write(*item)
            except Exception as error:  # training goes on, and the checkpoints are there
                if not self._said:
                    log.warning("the replica of step %d could not be written: %s", item[0], error)
                self._said = True
            finally:
                self._idle.set()

    def _write(self, step: int, blocks: list[parts.Block], meta: dict[str, Any]) -> None:
        index, count = self._neighbours.index, self._neighbours.count
        path = self.folder / str(step) / _file_name(index, count)
        self.bytes_written = parts.write_part(path, step, index, count, blocks, meta)
        if count > 1:
            self._neighbours.send(path, f"{step}/{path.name}", (index + 1) % count)
        for old in sorted(self._local(), reverse=True)[KEPT:]:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def close(self) -> None:
        """Waits for the save that is under way, and stops the threads."""
        self.wait()
        self._queue.put(None)
        self._neighbours.close()

    # Restoring

    def _local(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return [int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir()]

    def holders(self) -> dict[int, dict[int, list[int]]]:
        """By step and by process of the run that wrote it: the processes whose disks hold that part whole. Only steps
        of which all parts are somewhere. The same on every process."""
        here = sorted(
            f"{step}/{path.name}"
            for step in self._local() for path in sorted((self.folder / str(step)).glob("*.part"))
            if parts.is_whole(path)
        )  # fmt: skip
        found: dict[int, dict[str, dict[int, list[int]]]] = {}
        for process, text in enumerate(self._neighbours.exchange("replicas", json.dumps(here))):
            for name in json.loads(text):
                step, _, file = name.partition("/")
                index, _, count = file.removesuffix(".part").partition("-of-")
                found.setdefault(int(step), {}).setdefault(count, {}).setdefault(int(index), []).append(process)
        whole = {}
        for step, by_count in found.items():
            for count, by_index in by_count.items():
                if len(by_index) == int(count):
                    whole[step] = by_index
        return dict(sorted(whole.items()))

    def restore(self, abstract: Any, step: int, holders: dict[int, list[int]]) -> tuple[Any, dict[str, Any], str]:
        """The state of a step and its metadata, and where it came from in words.

        Raises:
            Damaged: a part is not as it was written, or is that of another state.
        """
        import jax

        found: list[tuple[parts.Part, parts.Block]] = []
        remote, meta = 0, {}
        for path, is_remote in self._fetch(step, holders):
            part = parts.read_part(path)
            found += [(part, block) for block in part.blocks]
            remote += is_remote
            meta = part.meta
        by_name: dict[str, list[tuple[parts.Part, parts.Block]]] = {}
        for part, block in found:
            by_name.setdefault(block.name, []).append((part, block))
        leaves, structure = jax.tree.flatten(abstract)
        names = leaf_names(abstract)
        restored = [_restored(name, leaf, by_name.get(name, [])) for name, leaf in zip(names, leaves, strict=True)]
        words = f"replica on the hosts' own disks, {remote} of {len(holders)} parts from other hosts"
        return jax.tree.unflatten(structure, restored), meta, words

    def _fetch(self, step: int, holders: dict[int, list[int]]) -> Iterator[tuple[Path, bool]]:
        """The files of all parts of a step on this disk, and whether each had to be fetched."""
        count = len(holders)
        for index, processes in sorted(holders.items()):
            path = self.folder / str(step) / _file_name(index, count)
            if self._neighbours.index in processes:
                yield path, False
                continue
            try:
                self._neighbours.fetch(f"{step}/{path.name}", path, processes[0])
            except OSError as error:
                raise Damaged(path, f"it could not be fetched ({error})", "another step is used") from error
            yield path, True


def _file_name(index: int, count: int) -> str:
    return f"{index}-of-{count}.part"


def _restored(name: str, leaf: Any, found: list[tuple[parts.Part, parts.Block]]) -> Any:
    import jax

    sharding = getattr(leaf, "sharding", None)
    if found and found[0][1].dtype != str(leaf.dtype):
        raise Damaged(Path(name), f"it holds {found[0][1].dtype}, the state {leaf.dtype}", "an earlier step is used")
    if sharding is None:
        return parts.assemble(name, leaf.shape, (slice(None),) * len(leaf.shape), found)
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: parts.assemble(name, leaf.shape, index or (), found), dtype=leaf.dtype
    )
