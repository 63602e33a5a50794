"""A process that shuts itself in and runs programs that nobody trusts. Started by `sandbox`, one for each response.

    jail (outside) ── first process of the new namespaces ─┬─ a test's checker ── channel ── the program, for that test
                                                           └─ (input and output tests: the program alone)

It is told what to do by a file in memory: JSON with the program and the limits; and reads tests from another one of
which only checkers see the contents. It answers in lines of JSON on its standard output. Run as a script, in Python's
isolated mode; it imports nothing of the project but its two neighbours.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
import types
from collections.abc import Sequence
from typing import Any, NoReturn

if __name__ == "__main__":  # run as a script: the package is this folder, without what its own start would import
    for _name in ("easylm_jax", "easylm_jax.rewards", "easylm_jax.rewards.code"):
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = [os.path.dirname(os.path.abspath(__file__))]

from easylm_jax.rewards.code import calls, kernel  # noqa: E402

_FILES = {"order": -1, "tests": -1, "null": -1, "answers": -1}  # descriptors, moved out of the way of small numbers
_FIRST = 3  # the first descriptor that a test's process is given


def main() -> None:
    kernel.die_with_parent()
    os.environ.clear()
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as in a Python that is not isolated
    given = (int(sys.argv[1]), int(sys.argv[2]), os.open(os.devnull, os.O_RDWR), 1)
    _FILES.update(zip(_FILES, _moved(given), strict=True))
    order = json.loads(_all(_FILES["order"]))
    readable = _readable()
    layers, why, nobody = set(order["layers"]), [], False
    if "namespaces" in layers:
        try:
            nobody = kernel.new_namespaces()
        except kernel.Unavailable as error:
            layers.discard("namespaces")
            why.append(str(error))
    inner = os.fork()
    if inner:
        os.waitpid(inner, 0)
        return
    try:
        _inside(order, readable, layers, why, nobody)
    except BaseException:
        _tell({"refused": traceback.format_exc(limit=-2)[-500:]})


def _inside(order: dict[str, Any], readable: list[str], layers: set[str], why: list[str], nobody: bool) -> None:
    """The first process of the namespaces: shuts the door and runs the tests one after the other."""
    kernel.die_with_parent()
    if "namespaces" in layers:
        kernel.new_root(readable)
    else:
        os.chdir("/")
    kernel.drop_privileges(nobody)
    kernel.die_with_parent()  # changing users takes it back
    if "landlock" in layers:
        try:
            kernel.landlock(readable)
        except kernel.Unavailable as error:
            layers.discard("landlock")
            why.append(str(error))
    if not layers & {"namespaces", "landlock"}:
        return _tell({"refused": "; ".join(why) or "no layer that keeps files out of reach"})
    if (refused := _try_filter()) is not None:
        return _tell({"refused": refused})
    _tell({"layers": sorted([*layers, "seccomp"])})
    run = _assertion if order["kind"] == "assert" else _input
    end = time.monotonic() + order["total"]
    for test in order["tests"]:
        left = min(order["wall"], end - time.monotonic())
        _tell(run(order, test, time.monotonic() + left, "namespaces" in layers) if left > 0 else {})
    return None


def _try_filter() -> str | None:
    """Why the filter of system calls cannot be had, or None where it works."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kernel.seccomp()
            said = b""
            with contextlib.suppress(PermissionError):
                said = b"a new process was not denied" if os.fork() else b""
        except BaseException as error:
            said = str(error).encode()[:200] or b"unknown"
        os.write(write, b"." + said)
        os._exit(0)
    os.close(write)
    said = os.read(read, 300)
    os.waitpid(child, 0)
    return None if said == b"." else said[1:].decode() or "the filter of system calls ended its process"


def _assertion(order: dict[str, Any], test: list[int], deadline: float, counted: bool) -> dict[str, Any]:
    """One test, `[offset, size]` in the file of tests: a checker and a program that only share a channel."""
    verdict, told = os.pipe()
    program_end, checker_end = _channel()

    def checker() -> None:
        source = os.pread(_FILES["tests"], test[1], test[0]).decode("utf-8", "surrogatepass")
        _shut_in(order, counted, [checker_end, told])
        if calls.check(_FIRST, source, order["program"]):
            os.write(_FIRST + 1, b"1")

    def program() -> None:
        _shut_in(order, counted, [program_end])
        _forget()
        calls.serve(_FIRST, order["program"])

    children = [_child(checker), _child(program)]
    for file in (told, program_end, checker_end):
        os.close(file)
    said = _gather(verdict, deadline, 1)[0]
    _end(children)
    return {"passed": said == b"1"}


def _input(order: dict[str, Any], test: list[int], deadline: float, counted: bool) -> dict[str, Any]:
    """One run with `[offset, size]` of the file of inputs as standard input; what it writes, and whether it ended."""
    given = os.memfd_create("input")
    os.sendfile(given, _FILES["tests"], test[0], test[1])
    os.lseek(given, 0, os.SEEK_SET)
    output, written = os.pipe()

    def program() -> None:
        _shut_in(order, counted, [], given, written)
        _forget()
        _main(order["program"])

    child = _child(program)
    os.close(written)
    os.close(given)
    said, whole = _gather(output, deadline, order["output"])
    status = _end([child], deadline if whole else 0)[0]
    return {"output": said.decode("utf-8", "replace") if status == 0 and whole else None}


def _main(source: str) -> None:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv[:] = ["program.py"]
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
    sys.stdout.flush()


def _channel() -> tuple[int, int]:
    import socket

    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _child(run: Any) -> int:
    """Starts `run` in a process of its own, which ends with it: 0 where it returned."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        kernel.die_with_parent()
        run()
        status = 0
    finally:
        os._exit(status)


def _shut_in(
    order: dict[str, Any], counted: bool, files: list[int], given: int | None = None, written: int | None = None
) -> None:
    """The last steps of a test's process: no descriptors but `files` (from 3 on) and standard input and output, if
    they are given; limits; the filter of system calls."""
    null = _FILES["null"]
    wanted = _moved([null if given is None else given, null if written is None else written, null, *files])
    for number, file in enumerate(wanted):
        os.dup2(file, number)
    os.closerange(len(wanted), 4096)
    kernel.limit(order["memory"], order["seconds"], order["threads"] if counted else None)
    kernel.seccomp()


def _moved(files: Sequence[int]) -> list[int]:
    """Copies of descriptors with large numbers."""
    return [fcntl.fcntl(file, fcntl.F_DUPFD, 100) for file in files]


def _forget() -> None:
    """Takes from the program's process what it has no use for."""
    for name in [name for name in sys.modules if name.startswith("easylm_jax")]:
        del sys.modules[name]
    gc.collect()


def _gather(file: int, deadline: float, most: int) -> tuple[bytes, bool]:
    """What is written to a pipe until it is closed, and whether that came to its end before the deadline, within
    `most` bytes."""
    said = bytearray()
    poll = select.poll()
    poll.register(file, select.POLLIN)
    try:
        while len(said) <= most:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000 + 1):
                return bytes(said[:most]), False
            part = os.read(file, 1 << 16)
            if not part:
                return bytes(said), True
            said += part
        return bytes(said[:most]), False
    finally:
        os.close(file)


def _end(children: list[int], deadline: float = 0) -> list[int]:
    """Ends test processes; those that end by themselves before the deadline keep their status."""
    statuses = []
    for child in children:
        while time.monotonic() < deadline and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        statuses.append(os.waitpid(child, 0)[1])
    return statuses


def _readable() -> list[str]:
    """Files and folders that a Python program needs: the standard library, and where its shared libraries lie."""
    wanted = {path for path in sys.path if os.path.exists(path)}
    with open("/proc/self/maps") as maps:
        files = {line.rstrip("\n").partition("/")[2] for line in maps if ".so" in line}
    wanted |= {os.path.dirname(f"/{file}") for file in files}
    real = sorted({os.path.realpath(path) for path in wanted} - {"/"})
    return [path for path in real if not any(path.startswith(f"{other}/") for other in real)]


def _all(file: int) -> bytes:
    size = os.fstat(file).st_size
    return b"".join(iter(lambda: os.read(file, size or 1), b""))


def _tell(what: dict[str, Any]) -> None:
    left = memoryview(json.dumps(what).encode() + b"\n")
    while left:
        left = left[os.write(_FILES["answers"], left) :]


def _run() -> NoReturn:
    try:
        main()
    finally:
        os._exit(0)


if __name__ == "__main__":
    _run()
