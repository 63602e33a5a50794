"""Progress of a stage: a live progress bar on a terminal, plain lines in a log.

Both show the step, loss (in RL also score, KL, length and the share of responses that ended), tokens/s, MFU, remaining
time, time since the last checkpoint and the current phase (compiling, reading data, training, saving). A background
thread prints them, so that the phase and its age stay visible even if a step hangs.

`counting` shows the progress of work that has no steps: an evaluation, a cache, reference log-probabilities.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

PHASE_WORDS = {
    "init": "starting",
    "compile": "compiling",
    "data": "reading data",
    "step": "training",
    "checkpoint": "saving",
    "evaluate": "evaluating",
}
HEARTBEAT = 10.0  # seconds between two lines of work that is counted
_STALLED_SECONDS = 10.0  # a phase older than this shows its age
# Metrics of a step besides its loss, where it has them: name, word, factor, format.
_SHOWN = (
    ("score", "score", 1.0, "{:.3f}"), ("kl", "KL", 1.0, "{:.3f}"), ("length", "length", 1.0, "{:.0f}"),
    ("ended", "ended", 100.0, "{:.0f}%"),
)  # fmt: skip


class Progress:
    """Prints the progress of a stage: of `total_steps` steps, or of other things that `unit` names.

    With `total_steps` None, the total is not known; with `unit` None, nothing is counted and only the phase is shown.
    Where no steps are counted, nothing is printed unless the work takes longer than a heartbeat.

    `stream` may be a terminal or not; `plain=True` forces plain lines on a terminal too. A line is printed every
    `heartbeat` seconds (and at the first and last step), even if no step finishes. `enabled=False` (every process but
    0) prints nothing. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        stage: str,
        total_steps: int | None,
        start_step: int = 0,
        stream: TextIO | None = None,
        *,
        unit: str | None = "step",
        heartbeat: float = 10.0,
        enabled: bool = True,
        plain: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._unit, self._began = unit, clock()
        self._stage, self._total, self._start_step = stage, total_steps, start_step
        self._stream = sys.stderr if stream is None else stream
        self._enabled, self._heartbeat, self._clock = enabled, heartbeat, clock
        self._lock = threading.RLock()
        self._step = start_step
        self._metrics: Mapping[str, Any] = {}
        self._phases: list[tuple[str, float]] = []
        self._saved_at: float | None = None
        self._first_at = self._latest_at = clock()
        self._first_step: int | None = None
        self._last_line_at: float | None = None
        self._stop = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        if not enabled:
            return
        if plain is None:
            plain = not self._stream.isatty() or os.environ.get("TERM") == "dumb"
        if plain:
            self._thread = threading.Thread(target=self._print_periodically, name="progress", daemon=True)
            self._thread.start()
        else:
            self._live = _live_bar(self, self._stream)
            self._live.start()

    def update(self, step: int, metrics: Mapping[str, Any], checkpoint_age: float | None = None) -> None:
        """Reports that `step` steps are done. Shows `loss`, `tokens_per_second` and `mfu` if they are in `metrics`.

        `checkpoint_age` is the number of seconds since the last checkpoint was committed; None if there is none yet.
        """
        with self._lock:
            now = self._clock()
            if self._first_step is None:  # remaining time is estimated from here, after start-up
                self._first_step, self._first_at = step, now
            self._step, self._latest_at, self._metrics = step, now, metrics
            if checkpoint_age is not None:
                self._saved_at = now - checkpoint_age
            if self._thread is not None and self._unit == "step" and (self._last_line_at is None or self._ended):
                self._print_line()

    @property
    def _ended(self) -> bool:
        return self._total is not None and self._step >= self._total

    def part(self) -> Callable[[int, int], None]:
        """A function that is called with what is done of the next part of the work, and with its tokens so far."""
        done_before, began = self._step, self._clock()

        def report(done: int, tokens: int) -> None:
            self.update(done_before + done, {"tokens_per_second": tokens / max(self._clock() - began, 1e-6)})

        return report

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows `name` (or its entry in `PHASE_WORDS`) as the current phase while the block runs."""
        with self._lock:
            self._phases.append((name, self._clock()))
        try:
            yield
        finally:
            with self._lock:
                self._phases.pop()
                if self._phases:
                    self._phases[-1] = (self._phases[-1][0], self._clock())

    def message(self, text: str) -> None:
        """Prints a line that stays visible: above the bar, or among the plain lines."""
        if not self._enabled:
            return
        with self._lock:
            if self._live is not None:
                self._live.console.print(f"[{self._stage}] {text}", markup=False, highlight=False, soft_wrap=True)
            else:
                self._write(f"[{self._stage}] {text}")

    def close(self) -> None:
        """Stops printing; the last state of the bar stays on the screen, unless it was no steps and hardly any time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._unit != "step" and self._last_line_at is not None:
                self._write(f"{self._head()} | took {short_time(self._clock() - self._began)}")
        if self._live is not None:
            self._live.transient = self._unit != "step" and self._clock() - self._began < self._heartbeat
            self._live.stop()
            self._live = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def line(self) -> str:
        """The current state as one plain line."""
        facts = " | ".join(self.facts())
        return f"{self._head()} {facts}" if self._unit is None else f"{self._head()} | {facts}"

    def _head(self) -> str:
        return f"[{self._stage}] {self.count()}".rstrip()

    def count(self) -> str:
        """How much is done: `step 12/400`, `1,234/5,000 responses`, `1,234 records`."""
        if self._unit == "step":
            return f"step {self._step}/{self._total}"
        whole = "" if self._total is None else f"/{self._total:,}"
        return f"{self._step:,}{whole} {self._unit}" if self._unit is not None else ""

    def facts(self) -> list[str]:
        """The parts of the line after the step, in the order they are shown."""
        with self._lock:
            now = self._clock()
            metrics, facts = self._metrics, []
            if metrics.get("loss") is not None:
                facts.append(f"loss {float(metrics['loss']):.4f}")
            facts += [f"{word} {form.format(factor * float(metrics[name]))}" for name, word, factor, form in _SHOWN
                      if metrics.get(name) is not None]  # fmt: skip
            if metrics.get("tokens_per_second") is not None:
                facts.append(f"{short_number(float(metrics['tokens_per_second']))} tokens/s")
            if metrics.get("mfu") is not None:
                facts.append(f"MFU {100 * float(metrics['mfu']):.1f}%")
            left = self._seconds_left()
            if left is not None:
                facts.append(f"{short_time(left)} left")
            if self._total is None and self._first_step is not None and self._latest_at > self._first_at:
                rate = (self._step - self._first_step) / (self._latest_at - self._first_at)
                facts.append(f"{short_number(rate)} {self._unit}/s")
            if self._saved_at is not None:
                facts.append(f"checkpoint {short_time(now - self._saved_at)} ago")
            facts.append(self._phase_text(now))
            return facts

    def _phase_text(self, now: float) -> str:
        if not self._phases:
            return "done" if self._ended else "between phases"
        name, since = self._phases[-1]
        age = now - since
        word = PHASE_WORDS.get(name, name)
        return f"{word} for {short_time(age)}" if age >= _STALLED_SECONDS else word

    def _seconds_left(self) -> float | None:
        """Estimated from the mean step time since the first report; None before the second report and at the end."""
        if self._first_step is None or self._total is None or not self._first_step < self._step < self._total:
            return None
        seconds_per_step = (self._latest_at - self._first_at) / (self._step - self._first_step)
        return (self._total - self._step) * seconds_per_step

    def _print_periodically(self) -> None:
        while not self._stop.wait(self._heartbeat):
            with self._lock:
                self._print_line()

    def _print_line(self) -> None:
        self._last_line_at = self._clock()
        self._write(self.line())

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe or log file must not end the run
            self._enabled = False

    @property
    def fraction(self) -> tuple[int, int | None]:
        """(steps done, total steps)"""
        return self._step, self._total

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self._stage


def counting(
    name: str, total: int | None, unit: str | None, done: int = 0, enabled: bool | None = None
) -> Progress:  # fmt: skip
    """The progress of `total` things (records, responses, …) of which `done` were done before; a context manager.

    A terminal shows a bar. Other outputs get a line about every ten seconds, and none if the work takes less. Only the
    first process prints, unless `enabled` says otherwise.
    """
    if enabled is None:
        from easylm_jax.runtime import processes  # here, since reports read metrics without JAX

        enabled = processes.is_first_process()
    return Progress(name, total, done, unit=unit, heartbeat=HEARTBEAT, enabled=enabled)


def _live_bar(progress: Progress, stream: TextIO) -> Live:
    """A `rich` live display that shows the state of `progress`, refreshed four times per second."""
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def render() -> Table:
        step, total = progress.fraction
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(width=24)
        grid.add_column(ratio=1)  # wraps on a narrow terminal, so that the phase at its end stays visible
        grid.add_row(
            Text(progress.stage, style="bold"),
            ProgressBar(total=None if total is None else max(1, total), completed=step, width=24),
            Text(" · ".join(filter(None, [progress.count().removeprefix("step "), *progress.facts()]))),
        )
        return grid

    console = Console(file=stream, force_terminal=True)
    return Live(get_renderable=render, console=console, refresh_per_second=4, redirect_stdout=False)


def short_time(seconds: float) -> str:
    """`9s`, `3m20s`, `4h05m`, `2d03h`."""
    whole = int(round(seconds))
    for unit, below, unit_name, below_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= unit:
            return f"{whole // unit}{unit_name}{whole % unit // below:02d}{below_name}"
    return f"{whole}s"


def short_number(value: float) -> str:
    """Three significant digits: `872`, `12.3k`, `4.56M`."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}" if abs(value) < 999.5 * unit else f"{value / unit:.0f}{name}"
    return f"{value:.3g}" if abs(value) < 99.5 else f"{value:.0f}"
