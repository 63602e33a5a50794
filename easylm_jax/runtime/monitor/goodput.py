"""Goodput: the share of a run's time, over all its restarts, that was spent on steps that were kept.

Every second of a process is counted on exactly one clock. The clocks are saved with each checkpoint (`Ledger.state`)
and restored with it (`Ledger.resume`). Steps that a killed process ran after its last checkpoint are run again, so
their time counts as `lost`, measured from the checkpoint to the last line of `metrics.jsonl`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PHASES = ("init", "compile", "data", "rollout", "reward", "step", "checkpoint", "evaluate")
PRODUCTIVE = ("rollout", "reward", "step")
BUCKETS = (*PHASES, "other", "lost")
"""`other` is time of the process outside of all phases."""


class Ledger:
    """Clocks of a run. `clock` returns monotonic seconds, `wall` seconds since 1970."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time):
        self._clock, self._wall = clock, wall
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        self._stack: list[str] = ["other"]
        self._since = clock()
        self.restarts = 0
        self.steps_redone = 0
        self.seconds_down = 0.0

    def resume(
        self, state: Mapping[str, Any], *, step: int, last_step: int | None = None, last_seen: float | None = None
    ) -> None:
        """Continues from `state`, saved at `step`; time that this process has already counted is kept.

        `last_step` and `last_seen` (seconds since 1970) are the step and time of the last line that the previous
        process wrote to `metrics.jsonl`; None if there is none. The time between that and now is added to
        `seconds_down`, which does not enter the goodput, since it depends on who restarts the run.
        """
        for name, seconds in state["seconds"].items():
            self._seconds[name] += seconds
        self.restarts = int(state["restarts"]) + 1
        seen = state["saved_at"] if last_seen is None else max(last_seen, state["saved_at"])
        self._seconds["lost"] += seen - state["saved_at"]
        self.steps_redone = int(state["steps_redone"]) + max(0, (last_step or step) - step)
        self.seconds_down = float(state["seconds_down"]) + max(0.0, self._wall() - seen)

    def state(self) -> dict[str, Any]:
        """The clocks as JSON values, to save with a checkpoint."""
        self._update_clock()
        return {
            "seconds": dict(self._seconds),
            "restarts": self.restarts,
            "steps_redone": self.steps_redone,
            "seconds_down": self.seconds_down,
            "saved_at": self._wall(),
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time of the block under `name`, one of `PHASES`; a nested phase pauses the outer clock."""
        if name not in PHASES:
            raise ValueError(f"no phase {name!r}; the phases are {', '.join(PHASES)}")
        self._update_clock()
        self._stack.append(name)
        try:
            yield
        finally:
            self._update_clock()
            self._stack.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds in each of `BUCKETS`, over all restarts."""
        self._update_clock()
        return dict(self._seconds)

    def goodput(self) -> float:
        """The share (0 to 1) of the time of all processes of this run that was spent on steps, rollouts and rewards."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return sum(seconds[name] for name in PRODUCTIVE) / total if total > 0 else 0.0

    def _update_clock(self) -> None:
        now = self._clock()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now
