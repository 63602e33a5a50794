"""Where a run's time went, over all its restarts: the share spent on steps that counted is its goodput.

Every second of a process is on exactly one clock. The clocks are saved with each checkpoint (`Ledger.state`) and read
back with it (`Ledger.resume`). What ran after the last checkpoint of a killed process is in no checkpoint: its steps
are run again, so that time goes to `lost`, measured from the checkpoint to the last sign of life in `metrics.jsonl`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PHASES = ("init", "compile", "data", "rollout", "reward", "step", "checkpoint", "evaluate")
PRODUCTIVE = ("rollout", "reward", "step")
BUCKETS = (*PHASES, "other", "lost")
"""`other` is time of the process in none of the phases."""


class Ledger:
    """Clocks of a run. `clock` gives seconds that only grow, `wall` seconds since 1970."""

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
        """Goes on from `state`, saved at `step`; the time of this process so far stays on its clocks.

        `last_step` and `last_seen` (seconds since 1970) are the last sign of life of the process before, such as the
        last line of `metrics.jsonl`; both None where there is none. The time between that and now is `seconds_down`,
        which is no part of the goodput: it depends on who restarts the run.
        """
        for name, seconds in state["seconds"].items():
            self._seconds[name] += seconds
        self.restarts = int(state["restarts"]) + 1
        seen = state["saved_at"] if last_seen is None else max(last_seen, state["saved_at"])
        self._seconds["lost"] += seen - state["saved_at"]
        self.steps_redone = int(state["steps_redone"]) + max(0, (last_step or step) - step)
        self.seconds_down = float(state["seconds_down"]) + max(0.0, self._wall() - seen)

    def state(self) -> dict[str, Any]:
        """Plain numbers to save with a checkpoint."""
        self._settle()
        return {
            "seconds": dict(self._seconds),
            "restarts": self.restarts,
            "steps_redone": self.steps_redone,
            "seconds_down": self.seconds_down,
            "saved_at": self._wall(),
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's time under `name`, one of `PHASES`; an inner phase stops the outer one's clock."""
        if name not in PHASES:
            raise ValueError(f"no phase {name!r}; the phases are {', '.join(PHASES)}")
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds in each of `BUCKETS`, over all restarts."""
        self._settle()
        return dict(self._seconds)

    def goodput(self) -> float:
        """The share (0 to 1) of steps and rollouts in all the time that processes of this run were running."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return sum(seconds[name] for name in PRODUCTIVE) / total if total > 0 else 0.0

    def _settle(self) -> None:
        now = self._clock()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now
