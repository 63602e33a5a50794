"""Barriers of the processes of a run that time out and name who is late, and hangs that every process hears of.

Built on the key-value store of JAX's coordination service, which needs no devices: a process whose devices hang can
still be told. Three kinds of keys:

    easylm/barrier/<name>/<n>/<process>   this process has arrived at the n-th barrier of that name
    easylm/progress/<process>             stage, step and phase, as of its last heartbeat
    easylm/exchange/<name>/<n>/<process>  a text of this process for all others
    easylm/hang                           a process has found a hang; all dump their stacks and end with status 75
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from easylm_jax.runtime import exit_status

VARIABLE = "EASYLM_BARRIER_SECONDS"
SECONDS = 1800.0
_POLL = 5.0  # seconds between two looks for a hang of another process
_ARRIVED, _PROGRESS, _HANG, _TEXT = "easylm/barrier", "easylm/progress", "easylm/hang", "easylm/exchange"


class Store(Protocol):
    """What is used of the client of JAX's coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def key_value_delete(self, key: str) -> None: ...
    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


class Late(Exception):
    """Processes that have not arrived at a barrier in time; the message names them."""


class Meeting:
    """The processes of a run as one of them sees them: `index` of `count`, `host` its name for the others.

    `end(message)` is called when another process has found a hang; it dumps stacks and ends this process.
    """

    def __init__(self, store: Store, index: int, count: int, host: str, end: Callable[[str], Any] | None = None):
        self._store, self._index, self._count, self._host = store, index, count, host
        self._end = end or dump_and_exit
        self._times: collections.Counter[str] = collections.Counter()
        self.publish({"host": host})

    def wait(self, name: str, seconds: float) -> None:
        """Waits until all processes have come to this barrier, which all reach in the same order.

        Raises:
            Late: some have not after `seconds`.
        """
        self._times[name] += 1
        key = f"{_ARRIVED}/{name}/{self._times[name]}"
        self._store.key_value_set(f"{key}/{self._index}", self._host)
        try:
            self._store.wait_at_barrier(key, int(seconds * 1000))
        except Exception as error:  # the client raises JAX's runtime error for whatever happened
            if not any(text in str(error) for text in ("DEADLINE_EXCEEDED", "timed out", "timeout")):
                raise
            here = {int(path.rpartition("/")[2]) for path, _ in self._store.key_value_dir_get(key)}
            late = [process for process in range(self._count) if process not in here]
            raise Late(
                f"barrier {name!r}: {self._named(late)} not there after {seconds:.0f} s, while "
                f"{_count(len(here), 'process waits', 'processes wait')}"
            ) from None
        self._store.key_value_delete(f"{key}/{self._index}")  # all have come, and a run has many barriers

    def exchange(self, name: str, text: str, seconds: float) -> list[str]:
        """Every process's text, by its number. Raises `Late` as `wait` does."""
        key = f"{_TEXT}/{name}/{self._times[f'exchange {name}']}"
        self._store.key_value_set(f"{key}/{self._index}", text)
        self.wait(f"exchange {name}", seconds)
        found = {int(path.rpartition("/")[2]): value for path, value in self._store.key_value_dir_get(key)}
        return [found[process] for process in range(self._count)]

    def publish(self, progress: dict[str, Any]) -> None:
        """Tells the others where this process is: `stage`, `step`, `phase`."""
        value = json.dumps({**progress, "host": self._host, "time": time.time()})
        self._store.key_value_set(f"{_PROGRESS}/{self._index}", value, allow_overwrite=True)

    def behind(self) -> str:
        """Which processes are behind the others, by their last heartbeats; "" if all are at one step."""
        found = self._progress()
        steps = {process: int(value["step"]) for process, value in found.items() if value.get("step") is not None}
        if len(set(steps.values())) < 2:
            return ""
        furthest = max(steps.values())
        return f"{self._named([process for process, step in steps.items() if step < furthest])} behind the others"

    def _progress(self) -> dict[int, dict[str, Any]]:
        return {
            int(path.rpartition("/")[2]): json.loads(value) for path, value in self._store.key_value_dir_get(_PROGRESS)
        }

    def _named(self, processes: Sequence[int]) -> str:
        """`process 2 (host b, step 11 in phase data) is`, `processes 2 (…) and 3 (…) are`."""
        found, texts = self._progress(), []
        for process in processes:
            value = found.get(process, {})
            facts = [f"host {value['host']}"] if "host" in value else []
            if value.get("step") is not None:
                phase = "" if value.get("phase") is None else f" in phase {value['phase']}"
                facts.append(f"at step {value['step']}{phase}")
            texts.append(f"{process} ({', '.join(facts)})" if facts else str(process))
        return f"process{'es' * (len(texts) > 1)} {' and '.join(texts)} {'are' if len(texts) > 1 else 'is'}"

    def announce_hang(self, message: str) -> None:
        """Asks all processes to dump their stacks and end; the first message stays."""
        with contextlib.suppress(Exception):  # another process may have done it, or the service is gone
            self._store.key_value_set(_HANG, f"{self._index}\n{message}")

    def heard_of_hang(self) -> str | None:
        """The message of another process that has found a hang; None if none has."""
        for _, value in self._store.key_value_dir_get(_HANG):
            process, _, message = value.partition("\n")
            if int(process) != self._index:
                return f"process {process} found a hang: {message}"
        return None

    def listen(self) -> None:
        """Looks for hangs of other processes in a background thread, which works while this process's devices hang."""
        threading.Thread(target=self._listen, name="hangs", daemon=True).start()

    def _listen(self) -> None:
        while True:
            time.sleep(_POLL)
            try:
                message = self.heard_of_hang()
            except Exception:  # the service is gone, and with it the run
                return
            if message is not None:
                self._end(message)
                return


_meeting: Meeting | None = None


def join(listen: bool = True) -> None:
    """Joins the processes of a run, once JAX has connected them."""
    global _meeting
    import jax
    from jax._src import distributed  # the client has no public name; Orbax uses this one too

    client = distributed.global_state.client
    if _meeting is None and client is not None and jax.process_count() > 1:
        _meeting = Meeting(client, jax.process_index(), jax.process_count(), socket.gethostname())
        if listen:
            _meeting.listen()


def wait(name: str, seconds: float | None = None) -> bool:
    """Waits at a barrier with a deadline; past it, this process names who is late and all end with status 75.

    `seconds` is `EASYLM_BARRIER_SECONDS`, by default 1800, unless given. False if the processes have not joined.
    """
    if _meeting is None:
        return False
    try:
        _meeting.wait(name, float(os.environ.get(VARIABLE) or seconds or SECONDS))
    except Late as late:
        _meeting.announce_hang(str(late))
        dump_and_exit(str(late))
    return True


def exchange(name: str, text: str) -> list[str]:
    """Every process's text, by its number; past the deadline of `wait`, all processes end as there."""
    assert _meeting is not None, "the processes have not joined"
    try:
        return _meeting.exchange(name, text, float(os.environ.get(VARIABLE) or SECONDS))
    except Late as late:
        _meeting.announce_hang(str(late))
        dump_and_exit(str(late))


def own_address() -> str:
    """The address of this host in the network in which the coordinator is."""
    from jax._src import distributed

    coordinator = (distributed.global_state.coordinator_address or "localhost:1").rpartition(":")[0]
    with contextlib.suppress(OSError):
        family, _, _, _, address = socket.getaddrinfo(coordinator, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing, but chooses the interface
            return probe.getsockname()[0]
    return socket.gethostname()


def publish(progress: dict[str, Any]) -> None:
    """Tells the other processes where this one is; never fails."""
    if _meeting is not None:
        with contextlib.suppress(Exception):
            _meeting.publish(progress)


def hang_found(message: str) -> str:
    """Tells the other processes of a hang that this one has found; returns the message with who is behind."""
    if _meeting is None:
        return message
    with contextlib.suppress(Exception):
        behind = _meeting.behind()
        message = f"{message}; {behind}" if behind else message
    _meeting.announce_hang(message)
    return message


def dump_and_exit(message: str) -> NoReturn:
    """Prints the message and the stacks of all threads, and ends this process with status 75."""
    print(f"easylm: hang: {message}; exit status {exit_status.TEMPORARY}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(exit_status.TEMPORARY)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
