"""Stopping a run politely: a signal asks it to finish the step, save and stop; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType


class StopRequest:
    """While active, SIGTERM (a preempted machine) and SIGINT (Ctrl-C) set `requested` instead of ending the process.

        with StopRequest() as stop:
            for step in ...:
                ...
                if stop.agreed(step): save and leave

    The second signal ends the process with status 128 + its number, even while the main thread is inside a computation
    or a blocked save: Python runs handlers only between the main thread's bytecodes, so a thread of its own reads the
    signals from the interpreter's wake-up pipe. Outside the main thread, where Python cannot take signals, it does
    nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, on_request: Callable[[str], None] | None = None, *, check_every: int = 1):
        """`on_request` gets one line for the user at the first signal; by default it goes to stderr."""
        self._on_request = on_request or (lambda text: print(text, file=sys.stderr, flush=True))
        self._check_every = check_every
        self._requested = threading.Event()
        self._active = False

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested.is_set()

    def agreed(self, step: int) -> bool:
        """Whether to save and stop after this step; the same answer on every process of a run.

        A machine may be told to stop alone, and all must save the same step: with several processes this gathers their
        flags, a small collective, at every `check_every`-th step. All of them must call it with the same steps.
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
    """A Python handler has to be there for the wake-up pipe to be written; the thread that reads it acts."""
