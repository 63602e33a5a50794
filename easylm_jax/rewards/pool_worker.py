"""The other side of `pool`: a process that answers verifier calls over its standard input and output.

A request is a length (8 bytes) and a pickle of (calls, seconds, items), an item being (row, first column, response,
record). Answers are frames of a fixed head and a text, one for each call as soon as it is made, so that the pool
always knows which call is under way. What verifiers print goes to the standard error.

The process ends when its standard input does, that is with the pool's process, whatever became of that one. A call
that hangs without letting other threads run is then ended by the limit on processor time.
"""

from __future__ import annotations

import contextlib
import math
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

from easylm_jax.rewards.verdict import Verifier, verdict
from easylm_jax.runtime.functions import load_function

HEAD = struct.Struct("<BIIddI")  # kind, row, column, value, seconds, bytes of text that follow
LENGTH = struct.Struct("<Q")
READY, RESOLVED, VALUE, WRONG, ENDED = range(5)

MEMORY = 4 << 30  # bytes of address space that a worker may have
START_SECONDS = 120.0  # for its start and for finding verifiers: imports on a busy machine
_RECURSION = 2000

inside = False  # whether this process is such a worker; verifiers may then rely on the pool's time cap


def serve(lookup: str) -> None:
    """Answers requests until the standard input ends.

    `lookup` names the function (`module:function`) that gives a verifier by its call.
    """
    global inside
    inside = True
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.setrecursionlimit(_RECURSION)
    _limit_memory()
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    judges: dict[str, Verifier] = {}
    _answer(answers, READY)
    while True:
        calls, seconds, items = pickle.loads(inbox.get())
        try:
            _limit_cpu(START_SECONDS)
            verifier = load_function(lookup)
            for call in calls:
                if call not in judges:
                    judges[call] = _find(verifier, call)
        except Exception as error:
            _answer(answers, WRONG, text=_told(error))
            continue
        _answer(answers, RESOLVED)
        for row, first, response, record in items:
            for column in range(first, len(calls)):
                _limit_cpu(seconds)
                _judge(judges[calls[column]], response, record, row, column, answers)


def _find(lookup: Callable[[str], Verifier], call: str) -> Verifier:
    """A verifier by its call. What it wants to load before its first call (`warm_up`) is loaded now."""
    found = lookup(call)
    getattr(found, "warm_up", lambda: None)()
    return found


def _judge(verifier: Verifier, response: str, record: Any, row: int, column: int, answers: int) -> None:
    began = time.perf_counter()
    kind, value, text = VALUE, 0.0, ""
    try:
        value = verdict(verifier, response, record)
    except (MemoryError, SystemExit, KeyboardInterrupt):
        kind = ENDED
    except BaseException as error:
        kind, text = (ENDED, "") if isinstance(error.__cause__, MemoryError) else (WRONG, _told(error))
    _answer(answers, kind, row, column, value, time.perf_counter() - began, text)


def _told(error: BaseException) -> str:
    from models.errors import UserError

    return str(error) if isinstance(error, UserError) else f"reward: {type(error).__name__}: {error}"


def _answer(
    answers: int, kind: int, row: int = 0, column: int = 0, value: float = 0.0, seconds: float = 0.0, text: str = ""
) -> None:
    said = text.encode("utf-8", "replace")
    left = memoryview(HEAD.pack(kind, row, column, value, seconds, len(said)) + said)
    try:
        while left:
            left = left[os.write(answers, left) :]
    except OSError:  # nobody reads any more
        _leave()


def _receive(requests: Any, inbox: queue.SimpleQueue[bytes]) -> None:
    """Hands requests on; at the end of the input this process ends, whatever it is doing."""
    while len(head := requests.read(LENGTH.size)) == LENGTH.size:
        (size,) = LENGTH.unpack(head)
        body = requests.read(size)
        if len(body) < size:
            break
        inbox.put(body)
    _leave()


def _leave() -> None:
    """Ends this process and those that verifiers started: its group, where it has one of its own."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _limit_memory() -> None:
    """Bounds the address space, and writes no core files; where the platform has such limits."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY or soft > MEMORY:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))


def _limit_cpu(seconds: float) -> None:
    """Bounds the processor time from now on, well above the pool's cap: it matters where no pool is left to see it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        limit = math.ceil(time.process_time() + 2 * seconds + 2)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
