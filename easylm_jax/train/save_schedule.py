"""Which steps of a run are saved: every n-th, or as many as training does not have to wait for."""

from __future__ import annotations

import math
import time

from easylm_jax.runtime import processes

# The interval grows once training has waited for saves for both this long and this share of its time. A few slow saves,
# such as the first one, do not count.
PATIENCE_SECONDS = 5.0
PATIENCE_SHARE = 0.1
MOST = 1024  # steps between saves


class SaveSchedule:
    """The interval between saved steps.

    With `every`, it is fixed. With None it begins at 1 and grows, by powers of two, to the number of steps that take as
    long as writing a checkpoint. The clock decides only which steps are on the disk; it changes no result.
    """

    def __init__(self, every: int | None):
        self.every = 1 if every is None else every
        self.step_seconds = 0.0  # of the steps that were measured last
        self._adapts = every is None
        self._start: tuple[int, float] | None = None
        self._waited, self._saves = 0.0, 0

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def adapt(self, step: int, waited: float) -> bool:
        """Takes the seconds that training waited for the save of `step`; returns whether the interval has grown.

        All processes of a run must call this with the same steps; they agree on the longest interval.
        """
        if not self._adapts:
            return False
        now = time.monotonic()
        if self._start is None:  # the first save sets up threads and is not counted
            self._start = step, now
            return False
        self._waited, self._saves = self._waited + waited, self._saves + 1
        first, began = self._start
        elapsed = now - began
        self.step_seconds = max(elapsed - self._waited, 1e-9) / max(step - first, 1)
        wanted = self.every
        if self._waited > PATIENCE_SECONDS and self._waited > PATIENCE_SHARE * elapsed:
            # Writing takes as long as the steps that it runs beside and the wait after them.
            beside = self.step_seconds * self.every
            wanted *= 2 ** max(1, math.ceil(math.log2(1 + self._waited / self._saves / beside)))
        wanted = processes.agree_largest(min(wanted, MOST))
        if wanted <= self.every:
            return False
        self.every, self._start = wanted, None
        self._waited, self._saves = 0.0, 0
        return True
