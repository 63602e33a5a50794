"""Runs a program with its tests in a sandboxed process (`jail`) and reads the results; it leaves no process behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from models.errors import UserError

LAYERS = ("namespaces", "landlock")
MEMORY = 1 << 30  # limit on the address space of a test's process, in bytes
THREADS = 32
OUTPUT = 4 << 20  # limit on the output of a run, in bytes
_START = 20.0  # additional seconds for starting the jail on a busy machine
_JAIL = Path(__file__).with_name("jail.py")


@dataclasses.dataclass(frozen=True)
class Result:
    """`verdicts`, one for each test: bool for assertions, the output (None if it failed) for inputs. `layers` are the
    isolation layers that were used."""

    verdicts: list[Any]
    layers: tuple[str, ...]


def run(
    program: str, tests: Sequence[str], *, kind: Literal["assert", "input"], seconds: float,
    layers: Sequence[str] = LAYERS,
) -> Result:  # fmt: skip
    """Runs each test with `program` in separate processes.

    Args:
        program: Python source.
        tests: assertions as Python source, or standard inputs.
        kind: which of the two the tests are.
        seconds: limit on the CPU time of a test, rounded up to whole seconds. The limit on its wall time, which ends
            programs that sleep, is 10 times `seconds` plus 5 s; that of all tests together is 3 times `seconds` each
            plus 20 s.
        layers: the isolation layers to use if the kernel has them; system calls are always filtered.

    Raises:
        UserError: this machine cannot isolate a program.
    """
    if platform.system() != "Linux":
        raise UserError(f"reward: programs run on Linux only, which can isolate them, not on {platform.system()}")
    bodies = [test.encode("utf-8", "surrogatepass" if kind == "assert" else "replace") for test in tests]
    places, offset = [], 0
    for body in bodies:
        places.append([offset, len(body)])
        offset += len(body)
    total = 3 * seconds * len(tests) + 20
    order = {
        "program": program, "kind": kind, "tests": places, "layers": list(layers), "memory": MEMORY, "threads": THREADS,
        "seconds": math.ceil(seconds), "wall": 10 * seconds + 5, "total": total, "output": OUTPUT,
    }  # fmt: skip
    with _memory(json.dumps(order).encode()) as told, _memory(b"".join(bodies)) as given:
        lines = _lines(told, given, time.monotonic() + total + _START)
    first = lines[0] if lines else {"refused": "it did not start"}
    if "layers" not in first:
        raise UserError(
            f"reward: programs cannot be isolated on this machine, so none is run: {_short(first.get('refused'))}; "
            "seccomp and either user namespaces or Landlock (Linux 5.13) are required"
        )
    key = "passed" if kind == "assert" else "output"
    verdicts = [line.get(key) for line in lines[1:]][: len(tests)]
    missing = [False if kind == "assert" else None] * (len(tests) - len(verdicts))
    return Result(verdicts + missing, tuple(first["layers"]))


def _lines(told: int, given: int, deadline: float) -> list[dict[str, Any]]:
    """The output lines of the jail, until it ends or is killed at the deadline."""
    keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_JAIL), str(told), str(given)], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=keep, cwd="/", pass_fds=(told, given),
        start_new_session=True, bufsize=0,
    )  # fmt: skip
    assert process.stdout is not None
    said = bytearray()
    try:
        poll = select.poll()
        poll.register(process.stdout.fileno(), select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if not poll.poll(left * 1000 + 1):
                break
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                break
            said += part
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.stdout.close()
        process.wait()
    whole, end, _ = bytes(said).rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n")] if end else []


@contextlib.contextmanager
def _memory(content: bytes) -> Iterator[int]:
    """An in-memory file with this content, positioned at its start."""
    file = os.memfd_create("easylm")
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _short(why: object) -> str:
    lines = str(why).strip().splitlines()
    return lines[-1][:200] if lines else "no reason given"
