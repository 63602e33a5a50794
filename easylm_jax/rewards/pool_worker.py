"""The worker process of `pool`: receives verifier calls on standard input and sends results to standard output.

A request is a length (8 bytes) and a pickle of (calls, seconds, items), where an item is (row, first column, response,
record). A result is a frame with a fixed head and a text. One is sent after each call, so the pool always knows which
call is running. Output of verifiers goes to standard error.

A timer of CPU time ends the process when a call takes too much (SIGPROF, whose default action no code of Python has to
run for), so verdicts do not depend on how busy the machine is. The process also ends when its standard input is closed,
that is when the pool's process ends for any reason.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from easylm_jax.rewards.verdict import Verifier, call_verifier, reason_of
from easylm_jax.runtime.functions import load_function

HEAD = struct.Struct("<BIIddI")  # kind, row, column, value, seconds, bytes of text that follow
LENGTH = struct.Struct("<Q")
READY, RESOLVED, VALUE, WRONG, ENDED = range(5)

MEMORY = 4 << 30  # limit on the address space of a worker, in bytes
START_SECONDS = 120.0  # CPU time of looking up verifiers, whose imports may be large
_RECURSION = 2000

inside = False  # whether this process is a worker; verifiers may then rely on the pool's time limit


def serve(lookup: str) -> None:
    """Serves requests until standard input is closed.

    `lookup` names the function (`module:function`) that returns a verifier for its call.
    """
    global inside
    inside = True
    requests, results = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.setrecursionlimit(_RECURSION)
    _limit_memory()
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    verifiers: dict[str, Verifier] = {}
    _send(results, READY)
    while True:
        calls, seconds, items = pickle.loads(inbox.get())
        try:
            _limit_cpu(START_SECONDS)
            find = load_function(lookup)
            for call in calls:
                if call not in verifiers:
                    verifiers[call] = _load_verifier(find, call)
        except Exception as error:
            _limit_cpu(0)
            _send(results, WRONG, text=_message(error))
            continue
        _send(results, RESOLVED)
        for row, first, response, record in items:
            for column in range(first, len(calls)):
                _call(verifiers[calls[column]], response, record, seconds, row, column, results)


def _load_verifier(find: Callable[[str], Verifier], call: str) -> Verifier:
    """A verifier by its call, after its `warm_up`, which loads what it needs before the first call."""
    verifier = find(call)
    getattr(verifier, "warm_up", lambda: None)()
    return verifier


def _call(
    verifier: Verifier, response: str, record: Any, seconds: float, row: int, column: int, results: int
) -> None:  # fmt: skip
    """Calls a verifier with `seconds` of CPU time and sends its result."""
    began = time.perf_counter()
    kind, value, text = VALUE, 0.0, ""
    try:
        _limit_cpu(seconds)
        value = call_verifier(verifier, response, record)
        text = reason_of(value)
    except (MemoryError, SystemExit, KeyboardInterrupt):
        kind = ENDED
    except BaseException as error:
        kind, text = (ENDED, "") if isinstance(error.__cause__, MemoryError) else (WRONG, _message(error))
    _limit_cpu(0)
    _send(results, kind, row, column, value, time.perf_counter() - began, text)


def _message(error: BaseException) -> str:
    from models.errors import UserError

    return str(error) if isinstance(error, UserError) else f"reward: {type(error).__name__}: {error}"


def _send(
    results: int, kind: int, row: int = 0, column: int = 0, value: float = 0.0, seconds: float = 0.0, text: str = ""
) -> None:
    """Sends a frame to the pool."""
    encoded = text.encode("utf-8", "replace")
    remaining = memoryview(HEAD.pack(kind, row, column, value, seconds, len(encoded)) + encoded)
    try:
        while remaining:
            remaining = remaining[os.write(results, remaining) :]
    except OSError:  # the pool's process has ended
        _leave()


def _receive(requests: Any, inbox: queue.SimpleQueue[bytes]) -> None:
    """Queues requests; ends this process when its input is closed, even during a call."""
    while len(head := requests.read(LENGTH.size)) == LENGTH.size:
        (size,) = LENGTH.unpack(head)
        body = requests.read(size)
        if len(body) < size:
            break
        inbox.put(body)
    _leave()


def _leave() -> None:
    """Ends this process and its children: the process group, if it leads one."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _limit_memory() -> None:
    """Limits the address space and disables core files, if the platform supports it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY or soft > MEMORY:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))


def _limit_cpu(seconds: float) -> None:
    """Ends this process once it has used `seconds` of CPU time from now on; 0 takes the limit back."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
