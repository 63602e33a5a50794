"""Graceful stop: a first signal lets the run finish its step, save and stop; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType


class StopRequest:
    """While active, SIGTERM (preemption) and SIGINT (Ctrl-C) set `requested` instead of ending the process.

        with StopRequest() as stop:
            for step in ...:
                ...
                if stop.agreed(step): save and leave

    A second signal ends the process with status 128 + its number, even while the main thread is inside a computation or
    a blocked save: Python runs signal handlers only between bytecodes of the main thread, so a separate thread reads
    the signals from the interpreter's wake-up pipe. If entered outside the main thread, where Python cannot handle
    signals, it does nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, on_request: Callable[[str], None] | None = None, *, check_every: int = 1):
        """`on_request` is called with one line for the user at the first signal; by default the line goes to stderr."""
        self._on_request = on_request or (lambda text: print(text, file=sys.stderr, flush=True))
        self._check_every = check_every
        self._requested = threading.Event()
        self._active = False

    @property
    def requested(self) -> bool:
        """Whether this process has received a signal to stop."""
        return self._requested.is_set()

    def agreed(self, step: int) -> bool:
        """Whether to save and stop after this step; the same result on every process of a run.

        A signal may reach only one host, but all must save the same step. With several processes their flags are
        all-gathered (a small collective) at every `check_every`-th step, so all must call this with the same steps.
        """
        import jax

        if jax.process_count() == 1:
            return self.requested
        if step % self._check_every:
            return False
        import numpy as np
        from jax.experimental import multihost_utils

        return bool(np.any(multihost_utils.process_allgather(np.array(self.requested))))

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, _no_action) for number in self.SIGNALS}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        self._active = True
        return self

    def __exit__(self, *_) -> None:
        if not self._active:
            return
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._write)  # ends the thread's read
        self._thread.join()
        os.close(self._read)
        self._active = False

    def _listen(self) -> None:
        while data := os.read(self._read, 64):
            for number in data:
                if number not in self.SIGNALS:
                    continue
                name = signal.Signals(number).name
                if self.requested:
                    print(f"easylm: second {name}: ending now", file=sys.stderr, flush=True)
                    os._exit(128 + number)
                self._requested.set()
                self._on_request(f"{name}: saving after this step, then stopping; a second signal ends the run at once")


def _no_action(number: int, frame: FrameType | None) -> None:
    """Python writes to the wake-up pipe only if a handler is installed; the thread that reads the pipe acts."""
