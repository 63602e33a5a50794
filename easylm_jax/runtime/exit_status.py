"""The exit statuses of a run, and what a supervisor does about each. The one table: docs/launching.md prints it.

Standard library only: the supervisor reads this on a machine without JAX.
"""

from __future__ import annotations

import dataclasses

DONE = 0
FAILED = 1
USER_ERROR = 2
UNAVAILABLE = 69
"""EX_UNAVAILABLE of sysexits.h."""
TEMPORARY = 75
"""EX_TEMPFAIL of sysexits.h."""
INDIVISIBLE = 78
"""EX_CONFIG of sysexits.h."""
STOPPED = 130
LOST = -1


@dataclasses.dataclass(frozen=True)
class Meaning:
    """`restart`: whether the same command may succeed if it is started again."""

    text: str
    restart: bool


TABLE: dict[int, Meaning] = {
    DONE: Meaning("finished", False),
    FAILED: Meaning("an unexpected error, with a traceback in the log", True),
    USER_ERROR: Meaning("an error that the user has to fix, in one line", False),
    TEMPORARY: Meaning("a hang that the watchdog ended, or another process of the run has ended", True),
    INDIVISIBLE: Meaning("the rows do not divide over the devices that are left; an elastic run takes fewer", True),
    STOPPED: Meaning("a signal (preemption, Ctrl-C); the step is saved", True),
    LOST: Meaning("the process is gone without an exit status (the machine went down)", True),
}


def meaning(status: int) -> Meaning:
    """What an exit status says. Those of signals (128 + n from a shell, -n from Python) are restarted, others too."""
    if status in TABLE:
        return TABLE[status]
    number = -status if status < 0 else status - 128
    if 0 < number < 65:
        return Meaning(f"ended by signal {number}", True)
    return Meaning("an unknown exit status", True)
