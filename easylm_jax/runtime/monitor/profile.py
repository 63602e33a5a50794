"""Profiles of a running process on request: `tpu_scripts/profile.sh` leaves a file, and the process traces itself."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from easylm_jax.runtime.launch.worker import PROFILE_VARIABLE


class ProfileOnRequest:
    """While active, traces this process into a folder whenever the file that `EASYLM_PROFILE_FILE` names appears.

    The file is `{"folder": ..., "seconds": ...}`; it is removed when the trace is written, in XProf's format. Does
    nothing if the variable is not set.
    """

    def __init__(self, interval: float = 1.0):
        path = os.environ.get(PROFILE_VARIABLE)
        self._path = Path(path) if path else None
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ProfileOnRequest:
        if self._path is not None:
            self._thread = threading.Thread(target=self._run, name="profile", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._path is not None
        while not self._stop.wait(self._interval):
            if not self._path.exists():
                continue
            try:
                self._trace(json.loads(self._path.read_text()))
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                # Training goes on: the disk may be full, or another trace may run.
                print(f"easylm: no profile: {error}", file=sys.stderr, flush=True)
            self._path.unlink(missing_ok=True)

    def _trace(self, request: dict) -> None:
        import jax

        with jax.profiler.trace(request["folder"]):
            self._stop.wait(float(request["seconds"]))
