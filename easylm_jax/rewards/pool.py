"""A pool of worker processes that call verifiers; a worker is killed and replaced when a call takes too long.

names, responses, records → workers → float64 [B, names]

A verifier may hang inside C code (a regular expression, a power of huge integers), where no thread and no signal
handler of the same process can stop it. So calls are made in worker processes with a limit per call; a call that hangs
loses its own verdict only. The limit is CPU time, so a verdict does not depend on how busy the machine is; a wider
limit of wall time ends calls that sleep. This process uses no signals, so any thread may request verdicts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pickle
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from easylm_jax.rewards.pool_worker import ENDED, HEAD, LENGTH, READY, RESOLVED, VALUE
from models.errors import UserError

_MOST_WORKERS = 16
_LARGEST_CHUNK = 64  # responses sent to a worker at once
_READ = 1 << 16
_START_WALL = 900.0  # seconds until a worker is ready, or has looked up verifiers: imports are slow on a busy machine
WALL_FACTOR, LEAST_WALL = 10.0, 60.0  # the limit of wall time: so many times that of CPU time, and at least so much
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from easylm_jax.rewards import pool_worker; "
    "pool_worker.serve(sys.argv[2])"
)
_BY_MODULE = "easylm_jax.runtime.functions:load_function"
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # the same verdicts from every worker, even if one depends on the order of a set
    "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "",  # the accelerator belongs to the trainer
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The results of verifier calls.

    Attributes:
        values: float64 [B, names]; 0 for calls that were stopped.
        timed_out: bool [B, names], calls that were stopped by a limit of time, the memory limit or a crash.
        busy_seconds: time of the calls, summed over the workers.
        reasons: the reasons that verifiers gave for their scores, by (row, column).
    """

    values: np.ndarray
    timed_out: np.ndarray
    busy_seconds: float
    reasons: dict[tuple[int, int], str] = dataclasses.field(default_factory=dict)


class Pool:
    """Worker processes for verifiers; a context manager.

    They start when they are first needed and import no JAX. They end with `close` and with this process, even if it is
    killed. In a forked process the pool starts workers of its own.

    Args:
        workers: number of processes; by default one less than the cores, 1 to 16.
        seconds: limit on the CPU time of one call. A verifier's attribute `warm_up`, a function without arguments, is
            called once in each worker beforehand, and its time does not count.
        wall_seconds: limit on the wall time of one call; by default 10 times `seconds`, and at least 60.
        lookup: the function, as `module:function`, that returns a verifier for its call; by default calls are
            `module:function` themselves.

    Raises:
        UserError: `workers` is below 1, or `seconds` or `wall_seconds` is not positive.
    """

    def __init__(
        self, workers: int | None = None, seconds: float = 10.0, lookup: str = _BY_MODULE,
        wall_seconds: float | None = None,
    ):  # fmt: skip
        if workers is not None and workers < 1:
            raise UserError(f"reward: workers is {workers}; use at least 1")
        wall_seconds = max(WALL_FACTOR * seconds, LEAST_WALL) if wall_seconds is None else wall_seconds
        for name, value in (("seconds", seconds), ("wall_seconds", wall_seconds)):
            if not 0 < value < math.inf:
                raise UserError(f"reward: {name} is {value}; give the limit of a verifier call as a number above 0")
        self.workers = workers or min(_MOST_WORKERS, max(1, cores() - 1))
        self.seconds, self.wall_seconds, self.lookup = float(seconds), float(wall_seconds), lookup
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._all = tuple(_Worker(self.lookup) for _ in range(self.workers))
        self._free = list(self._all)
        self._changed = threading.Condition()
        self._shut = weakref.finalize(self, _end, self._all, self._free, self._owner)

    def verdicts(
        self, names: Sequence[str], responses: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> Verdicts:
        """Calls each of the verifiers `names` (such as "gsm8k" or "random(0.5)") on each response.

        Raises:
            UserError: a verifier does not exist, or reports an error in a record.
            RuntimeError: the pool is closed.
        """
        if len(responses) != len(records):
            raise ValueError(f"{len(responses)} responses and {len(records)} records")
        batch = _Batch(tuple(names), self.seconds, self.wall_seconds, responses, records)
        if batch.left:
            with self._borrowed(len(responses)) as workers:
                _Loop(batch, workers, lambda: self._shut.alive).run()
        return Verdicts(batch.values, batch.timed_out, batch.busy_seconds, batch.reasons)

    @contextlib.contextmanager
    def _borrowed(self, most: int) -> Iterator[list[_Worker]]:
        """From 1 to `most` workers that no other thread uses; waits for the first."""
        if os.getpid() != self._owner:
            self._shut.detach()
            for worker in self._free:
                worker.forget()
            self._reset()
        with self._changed:
            self._changed.wait_for(lambda: self._free or not self._shut.alive)
            if not self._shut.alive:
                raise RuntimeError("the pool of verifiers is closed")
            taken, self._free[:most] = self._free[:most], []
        for worker in taken:
            if worker.process is not None and worker.path != _search_path():  # a recipe of another folder was loaded
                worker.kill()
        try:
            yield taken
        finally:
            for worker in taken:
                if worker.phase not in ("idle", "starting"):  # interrupted: its pending results belong to no batch
                    worker.kill()
            with self._changed:
                self._free += taken
                self._free.sort(key=lambda worker: worker.phase == "gone")  # stable; started workers are used first
                self._changed.notify_all()

    def close(self) -> None:
        """Stops all workers at once, including those that other threads are using; may be called again."""
        self._shut()
        with self._changed:
            self._changed.notify_all()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Batch:
    """The calls of a batch and their results. A task (row, column) is the calls of a row from that column on."""

    def __init__(
        self, names: tuple[str, ...], seconds: float, wall_seconds: float, responses: Sequence[str],
        records: Sequence[Mapping],
    ):  # fmt: skip
        self.names, self.seconds, self.wall_seconds = names, seconds, wall_seconds
        self.responses, self.records = responses, records
        self.values = np.zeros((len(responses), len(names)))
        self.timed_out = np.zeros((len(responses), len(names)), bool)
        self.busy_seconds = 0.0
        self.reasons: dict[tuple[int, int], str] = {}
        self.left = self.values.size
        self.tasks: deque[tuple[int, int]] = deque((row, 0) for row in range(len(responses)) if names)
        self.died: set[tuple[int, int]] = set()  # calls whose process died once; they are tried a second time
        self.failed_starts = 0

    def chunk(self, workers: int) -> list[tuple[int, int]]:
        """The next tasks of one worker; fewer towards the end, so that all workers finish together."""
        size = min(_LARGEST_CHUNK, max(1, len(self.tasks) // (4 * workers)))
        return [self.tasks.popleft() for _ in range(min(size, len(self.tasks)))]

    def request(self, tasks: Sequence[tuple[int, int]]) -> bytes:
        items = [(row, column, self.responses[row], dict(self.records[row])) for row, column in tasks]
        try:
            return pickle.dumps((self.names, self.seconds, items), protocol=5)
        except Exception as error:
            raise UserError(f"reward: a record cannot be sent to a verifier's process: {error}") from error

    def done(self, call: tuple[int, int], value: float, ended: bool = False, reason: str = "") -> None:
        self.values[call], self.timed_out[call] = value, ended
        if reason or ended:
            self.reasons[call] = reason or "the verifier was stopped: it took too long, or too much memory, or crashed"
        self.left -= 1


def _search_path() -> list[str]:
    """Where workers search for modules: where this process does, and the folder of this package."""
    return [*sys.path, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]


class _Worker:
    """One worker process.

    Attributes:
        phase: "gone", "starting", "idle", "sending" (and looking up verifiers) or "calling".
        calls: the pending calls, in order.
        path: where it searches for modules.
        deadline: when the worker is considered to hang, in seconds of wall time.
    """

    def __init__(self, lookup: str) -> None:
        self.lookup = lookup
        self.process: subprocess.Popen[bytes] | None = None
        self.path: list[str] = []
        self.phase, self.deadline = "gone", math.inf
        self.calls: deque[tuple[int, int]] = deque()
        self.outgoing, self.incoming = memoryview(b""), bytearray()

    def start(self) -> None:
        self.path = _search_path()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(self.path), self.lookup], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, bufsize=0,
            env={**os.environ, **_ENVIRONMENT}, start_new_session=True,  # Ctrl-C is for this process alone
        )  # fmt: skip
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self.phase, self.deadline = "starting", time.monotonic() + _START_WALL
        self.incoming.clear()

    @property
    def stdin(self) -> int:
        assert self.process is not None and self.process.stdin is not None
        return self.process.stdin.fileno()

    @property
    def stdout(self) -> int:
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout.fileno()

    def send(self, request: bytes, calls: Sequence[tuple[int, int]]) -> None:
        self.outgoing = memoryview(LENGTH.pack(len(request)) + request)
        self.calls.extend(calls)
        self.phase, self.deadline = "sending", time.monotonic() + _START_WALL

    def write(self) -> None:
        """Sends as much as the pipe accepts. A dead process is detected when reading."""
        with contextlib.suppress(BlockingIOError):
            try:
                self.outgoing = self.outgoing[os.write(self.stdin, self.outgoing) :]
            except BrokenPipeError:
                self.outgoing = memoryview(b"")

    def read(self) -> list[tuple[int, int, int, float, float, str]] | None:
        """The complete frames received so far; None if the process has ended and everything was read."""
        ended = False
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self.stdout, _READ)
                self.incoming += data
                if len(data) < _READ:
                    ended = not data
                    break
        frames, at = [], 0
        while at + HEAD.size <= len(self.incoming):
            *head, size = HEAD.unpack_from(self.incoming, at)
            end = at + HEAD.size + size
            if end > len(self.incoming):
                break
            frames.append((*head, self.incoming[at + HEAD.size : end].decode("utf-8", "replace")))
            at = end
        del self.incoming[:at]
        return None if ended and not frames else frames

    def kill(self) -> int | None:
        """Kills the process and its children; returns its exit status."""
        self.interrupt()
        process, self.process = self.process, None
        self.phase, self.deadline = "gone", math.inf
        self.calls.clear()
        self.outgoing = memoryview(b"")
        if process is None:
            return None
        status = process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
        return status

    def interrupt(self) -> None:
        """Kills the process; a thread that reads from it sees the end of its output."""
        process = self.process
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)  # the whole group, since a verifier may have started others
                else:
                    process.kill()

    def forget(self) -> None:
        """In a forked process: closes the copies of the pipes of a worker that belongs to the parent."""
        if self.process is not None:
            self.process.returncode = 0
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                stream.close()


class _Loop:
    """Sends tasks to workers, receives results, and replaces workers that hang or die, until a batch is done."""

    def __init__(self, batch: _Batch, workers: Sequence[_Worker], is_open: Any):
        self.batch, self.workers, self.is_open = batch, workers, is_open

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                if worker.process is not None:
                    selector.register(worker.stdout, selectors.EVENT_READ, worker)
            while self.batch.left:
                self._feed(selector)
                soonest = min(worker.deadline for worker in self.workers)
                ready = selector.select(max(0.0, min(soonest - time.monotonic(), _START_WALL)))
                if not self.is_open():
                    raise RuntimeError("the pool of verifiers was closed")
                for key, _ in ready:
                    if key.fd == key.data.stdout:
                        self._take(key.data, selector)
                    else:
                        key.data.write()
                        if not key.data.outgoing:
                            selector.unregister(key.fd)
                late = [worker for worker in self.workers if time.monotonic() > worker.deadline]
                answered = [key.data for key, _ in selector.select(0)] if late else []
                for worker in late:
                    if worker not in answered:  # a result that has already arrived counts
                        self._lost(worker, selector, timed_out=True)

    def _feed(self, selector: selectors.BaseSelector) -> None:
        wanted = len(self.batch.tasks)
        for worker in self.workers:
            if wanted <= 0:
                break
            if worker.phase == "gone":
                worker.start()
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
            elif worker.phase == "idle":
                tasks = self.batch.chunk(len(self.workers))
                calls = [(row, c) for row, first in tasks for c in range(first, len(self.batch.names))]
                worker.send(self.batch.request(tasks), calls)
                worker.write()
                if worker.outgoing:
                    selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
                wanted -= len(tasks)
            elif worker.phase == "starting":
                wanted -= 1

    def _take(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        frames = worker.read()
        if frames is None:
            self._lost(worker, selector, timed_out=False)
            return
        for kind, row, column, value, seconds, text in frames:
            if kind == READY:
                worker.phase, worker.deadline = "idle", math.inf
                continue
            if kind in (VALUE, ENDED):
                self.batch.done((row, column), value, kind == ENDED, text)
                self.batch.busy_seconds += seconds
                worker.calls.popleft()
            elif kind != RESOLVED:
                raise UserError(text)
            worker.phase = "calling" if worker.calls else "idle"
            worker.deadline = time.monotonic() + self.batch.wall_seconds if worker.calls else math.inf

    def _lost(self, worker: _Worker, selector: selectors.BaseSelector, timed_out: bool) -> None:
        """Handles a worker that hangs or died. Its current call is given up, or tried once more if the process died
        (the cause may be external); its other calls go to other workers."""
        for stream in (worker.stdin, worker.stdout):
            with contextlib.suppress(KeyError):
                selector.unregister(stream)
        phase, calls = worker.phase, list(worker.calls)
        status = worker.kill()
        timed_out = timed_out or status == -signal.SIGPROF  # the limit on CPU time
        if phase in ("starting", "sending"):
            self.batch.failed_starts += 1
            if self.batch.failed_starts > 2 * len(self.workers):
                raise UserError(
                    "reward: a verifier's process "
                    + ("was not ready in time" if timed_out else f"ended with status {status}")
                    + f" while it started or looked up {', '.join(self.batch.names)}; its standard error says why"
                )
        elif calls:
            if timed_out:
                self.batch.busy_seconds += self.batch.seconds
            if timed_out or calls[0] in self.batch.died:
                self.batch.done(calls.pop(0), 0.0, ended=True)
            else:
                self.batch.died.add(calls[0])
        first: dict[int, int] = {}
        for row, column in calls:
            first.setdefault(row, column)
        self.batch.tasks.extendleft(reversed(first.items()))


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end(workers: Sequence[_Worker], free: list[_Worker], owner: int) -> None:
    """Stops the workers of a pool. Workers that a thread is using are only killed; that thread cleans them up."""
    if os.getpid() == owner:
        for worker in workers:
            worker.interrupt()
        for worker in tuple(free):
            worker.kill()
