"""A watchdog that ends a hanging process and dumps its stacks; a multi-host run would otherwise wait for it forever.

Each phase (a step, a save, …) has a deadline: the larger of 90 s and six times the median of its previous durations.
The first time, a phase may take half an hour, since it may compile or read a large checkpoint. When a deadline passes,
the stacks of all threads are written to `<folder>/stacks-<process>.txt` and stderr, and the process exits with status
75 (EX_TEMPFAIL), so that a supervisor restarts it from the last checkpoint. With several processes, the line names
those that are behind the others, and all of them dump their stacks and end (`runtime.barriers`). A Python thread cannot
detect a hang that holds the interpreter lock; another process can: `<folder>/heartbeat-<process>.json` is then no
longer updated. The supervisor reads a copy of that file on the worker's own disk, which `EASYLM_HEARTBEAT_FILE` names.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from easylm_jax.runtime import barriers, exit_status
from easylm_jax.runtime.launch.worker import HEARTBEAT_VARIABLE


@dataclass(frozen=True)
class Limits:
    """Deadlines in seconds: `first` for the first time of a phase, afterwards `minimum` and `factor` apply."""

    minimum: float = 90.0
    factor: float = 6.0
    first: float = 1800.0

    def deadline(self, lengths: deque[float]) -> float:
        """Seconds that a phase with these previous durations may take."""
        return max(self.minimum, self.factor * statistics.median(lengths)) if lengths else self.first


class Watchdog:
    """Checks the deadlines of a process's phases, from `start` on; `enabled=False` only writes the heartbeat file.

    `on_expire(message)` is called when a deadline has passed, instead of dumping stacks and exiting; `clock` returns
    monotonic seconds; `interval` is the number of seconds between heartbeats and checks.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        limits: Limits | None = None,
        enabled: bool = True,
        process_index: int = 0,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        on_expire: Callable[[str], None] | None = None,
    ):
        self._limits = limits or Limits()
        self._enabled = enabled
        self._interval = interval
        self._clock = clock
        self._on_expire = on_expire or self._dump_and_exit
        self._stage = Path(folder).name
        self.heartbeat_path = Path(folder) / f"heartbeat-{process_index}.json"
        self.stacks_path = Path(folder) / f"stacks-{process_index}.txt"
        self._lengths: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=101))
        self._lock = threading.Lock()
        self._phases: list[tuple[str, float]] = []  # outermost first; only the deadline of the innermost counts
        self._step: int | None = None
        self._progress_at = time.time()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Watchdog:
        """Starts the background thread."""
        self.heartbeat_path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stops the background thread; the last heartbeat file stays."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._write_heartbeat()

    def __enter__(self) -> Watchdog:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    @contextmanager
    def phase(self, name: str, step: int | None = None) -> Iterator[None]:
        """Gives the block the deadline of this phase. While a nested phase runs, only its deadline counts."""
        start = self._clock()
        with self._lock:
            self._phases.append((name, start))
            self._step = self._step if step is None else step
            self._progress_at = time.time()
        try:
            yield
        finally:
            with self._lock:
                self._phases.pop()
                now = self._clock()
                self._lengths[name].append(now - start)
                if self._phases:  # restart the deadline of the outer phase
                    self._phases[-1] = (self._phases[-1][0], now)
                self._progress_at = time.time()

    def check(self) -> None:
        """Checks once whether the current phase is past its deadline; the thread does this every `interval` seconds."""
        with self._lock:
            if not self._phases or not self._enabled:
                return
            name, since = self._phases[-1]
            age, deadline, step = self._clock() - since, self._limits.deadline(self._lengths[name]), self._step
        if age > deadline:
            where = f" at step {step}" if step is not None else ""
            self._on_expire(f"phase {name!r}{where} has taken {age:.0f} s, its deadline is {deadline:.0f} s")

    def heartbeat(self) -> dict:
        """The content of the heartbeat file: `progress_time` is when a phase last began or ended, `time` is now.

        `watching` is false in the last one of a stage, after which the file is not rewritten until the next stage.
        """
        with self._lock:
            name, since = self._phases[-1] if self._phases else (None, self._clock())
            return {
                "stage": self._stage,
                "watching": self._thread is not None,
                "step": self._step,
                "phase": name,
                "phase_seconds": round(self._clock() - since, 3),
                "progress_time": round(self._progress_at, 3),
                "time": round(time.time(), 3),
                "pid": os.getpid(),
            }

    def _run(self) -> None:
        self._write_heartbeat()  # at once, so that a process that stops in its first seconds is missed too
        while not self._stop.wait(self._interval):
            self._write_heartbeat()
            self.check()

    def _write_heartbeat(self) -> None:
        beat = self.heartbeat()
        barriers.publish({name: beat[name] for name in ("stage", "step", "phase")})
        text = json.dumps(beat) + "\n"
        local = os.environ.get(HEARTBEAT_VARIABLE)
        for path in (self.heartbeat_path, *([Path(local)] if local else [])):
            temporary = path.with_suffix(".tmp")
            # A full disk must not end the watchdog; the run itself reports it.
            with contextlib.suppress(OSError):
                temporary.write_text(text)
                os.replace(temporary, path)

    def _dump_and_exit(self, message: str) -> None:
        message = barriers.hang_found(message)
        stacks = f"stacks of all threads are in {self.stacks_path}"
        text = f"easylm: hang: {message}; {stacks}; exit status {exit_status.TEMPORARY}"
        print(text, file=sys.stderr, flush=True)
        try:
            with open(self.stacks_path, "w") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                os.fsync(file.fileno())
        except OSError as error:
            print(f"easylm: could not write {self.stacks_path}: {error}", file=sys.stderr)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(exit_status.TEMPORARY)
