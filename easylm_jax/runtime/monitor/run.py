"""All monitoring of one stage behind one object: the trainer reports each phase and step once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from easylm_jax.runtime.monitor.goodput import Ledger
from easylm_jax.runtime.monitor.metrics import MetricsWriter, last_line
from easylm_jax.runtime.monitor.profile import ProfileOnRequest
from easylm_jax.runtime.monitor.progress import Progress
from easylm_jax.runtime.monitor.watchdog import Limits, Watchdog


class Monitor:
    """Metrics, progress, goodput clocks and watchdog of one stage, in its folder.

        with Monitor(folder, "sft", total_steps=1000) as monitor:
            monitor.resume(clocks, step)                   # if a checkpoint was restored
            with monitor.phase("data"): ...
            with monitor.phase("step", step): ...
            monitor.log(step, {"loss": ..., ...})
            with monitor.phase("checkpoint", step): save(..., clocks=monitor.clocks())
            monitor.checkpoint_saved()

    Phases are those of `goodput.PHASES`. With `watchdog=False` a hanging process is never ended.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        stage: str,
        total_steps: int,
        start_step: int = 0,
        *,
        tensorboard: bool = False,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
        watchdog: bool = True,
        limits: Limits | None = None,
        heartbeat: float = 10.0,
        stream: TextIO | None = None,
        process_index: int | None = None,
    ):
        if process_index is None:
            import jax

            process_index = jax.process_index()
        self._last_line = last_line(Path(folder) / "metrics.jsonl")
        self._saved_at: float | None = None
        self._resources = ExitStack()
        self.ledger = Ledger()
        self.metrics = MetricsWriter(folder, tensorboard, wandb, config=config, process_index=process_index)
        self._resources.callback(self.metrics.close)
        self.watchdog = Watchdog(folder, limits=limits, enabled=watchdog, process_index=process_index)
        self._resources.enter_context(self.watchdog)
        self._resources.enter_context(ProfileOnRequest())
        self.progress = Progress(
            stage, total_steps, start_step, stream, heartbeat=heartbeat, enabled=process_index == 0
        )
        self._resources.callback(self.progress.close)

    def resume(self, clocks: Mapping[str, Any], step: int) -> None:
        """Continues with the clocks that were saved at `step`; time between that save and the kill counts as `lost`."""
        last = self._last_line or {}
        self.ledger.resume(clocks, step=step, last_step=last.get("step"), last_seen=last.get("time"))
        self._saved_at = time.monotonic()

    @contextmanager
    def phase(self, name: str, step: int | None = None) -> Iterator[None]:
        """Times the block, shows its name as the current phase, and gives it a deadline."""
        with self.ledger.phase(name), self.watchdog.phase(name, step), self.progress.phase(name):
            yield

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one metrics line and updates the progress after `step` steps."""
        self.metrics.write(step, metrics)
        age = None if self._saved_at is None else time.monotonic() - self._saved_at
        self.progress.update(step, metrics, age)

    def checkpoint_saved(self) -> None:
        """Reports that a checkpoint was committed; its age is shown from now on."""
        self._saved_at = time.monotonic()

    def clocks(self) -> dict[str, Any]:
        """The clocks to save with a checkpoint. Also forces the metrics written so far to the disk."""
        self.metrics.sync()
        return self.ledger.state()

    def message(self, text: str) -> None:
        """Prints a line to the user."""
        self.progress.message(text)

    def close(self) -> None:
        """Stops the threads and closes the files."""
        self._resources.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_) -> None:
        self.close()
