"""Whole runs of a tiny recipe through the command line, in processes of their own that tests can kill.

A `Launcher` imports JAX once and forks a process for each command, since starting an interpreter for every life of a
run would take most of the tests' time. Nothing has touched a device before the fork, so each process makes its own
backend with as many simulated devices as it is told. Run as a script, this file is that launcher.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import importlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "near", "seven", "small", "warm", "roofs")

RECIPE = """
from easylm_jax.config import *

TEXT = (Source("{folder}/texts.jsonl"),)
CHATS = (Source("{folder}/chats.jsonl"),)
MODEL = DecoderConfig("olmo2", layers=2, width=32, heads=4, ffn=64, vocab=320, context=64, qk_norm=True)
RATE = OptimizerConfig("1e-3 cosine to 10% warmup 2 steps")
SAVE = Checkpoints(every=1, latest=3)

recipe = Recipe("tiny", mesh="fsdp=-1", stages=(
    Tokenizer("tokenizer", sources=(*TEXT, *CHATS), vocab_size=300),
    Pretrain("pretrain", model=MODEL, data=DataSpec(TEXT, "stage:tokenizer", 64), batch=8, steps=8, optimizer=RATE,
             z_loss=1e-4, checkpoints=SAVE),
    SFT("sft", init="pretrain", data=DataSpec(CHATS, "stage:tokenizer", 64, kind="chat", template="tulu",
        packing="best_fit"), batch=16, accumulate=2, steps=4, optimizer=RATE, checkpoints=SAVE),
))
"""


def sentence(number: int, words: int) -> str:
    """Made-up text that differs with `number`."""
    return " ".join(WORDS[(number * 7 + i * (1 + number % 5)) % len(WORDS)] for i in range(words)) + f" {number}."


def conversations(count: int) -> list[dict[str, Any]]:
    """Records of one to three short exchanges."""
    made = []
    for i in range(count):
        turns = []
        for j in range(1 + i % 3):
            turns.append({"role": "user", "content": sentence(i + j, 2 + i % 4)})
            turns.append({"role": "assistant", "content": sentence(i - j + 100, 1 + i % 5)})
        made.append({"messages": turns})
    return made


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def project(folder: Path, recipe: str = RECIPE, texts: int = 120) -> Path:
    """Writes synthetic data and a recipe below `folder`; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "texts.jsonl", [{"text": sentence(i, 5 + (i * 13) % 60)} for i in range(texts)])
    write_jsonl(folder / "chats.jsonl", conversations(60))
    path = folder / "recipe.py"
    path.write_text(recipe.replace("{folder}", str(folder)))
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@dataclass(frozen=True)
class Result:
    """How a command ended: exit status (minus the signal's number when a signal ended it) and what it printed."""

    status: int
    out: str
    err: str


class Running:
    """A command that goes on in a process of its own."""

    def __init__(self, launcher: Launcher, pid: int, out: Path, err: Path):
        self.launcher, self.pid, self._out, self._err = launcher, pid, out, err
        self._result: Result | None = None

    @property
    def err_path(self) -> Path:
        return self._err

    @property
    def err(self) -> str:
        """What it has printed to stderr so far."""
        return self._err.read_text(errors="replace")

    def ended(self) -> bool:
        return self._result is not None or self.launcher.ask({"ended": self.pid})["ended"]

    def signal(self, number: int) -> None:
        """Sends a signal; the process may have ended already."""
        os.kill(self.pid, number)  # the launcher reaps it only in `wait`, so the number is not another's

    def wait(self, timeout: float = 240) -> Result:
        """Waits until it has ended; past the timeout it is killed and the test fails."""
        if self._result is None:
            status = self.launcher.ask({"wait": self.pid, "timeout": timeout})["status"]
            self._result = Result(status, self._out.read_text(errors="replace"), self.err)
        assert self._result.status is not None, f"not ended after {timeout} s: {self._result.err[-2000:]}"
        return self._result

    def until(self, condition: Callable[[], bool], timeout: float = 240) -> bool:
        """Waits until the condition holds (True) or the process has ended (False)."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if condition():
                return True
            if self.ended():
                return condition()
            time.sleep(0.005)
        raise AssertionError(f"nothing happened for {timeout} s: {self.err[-2000:]}")


class Launcher:
    """Starts `easylm` commands; every process that is left is killed when it closes."""

    def __init__(self, folder: Path):
        self.folder, self._count = folder, 0
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        *arguments: Any,
        devices: int = 1,
        environment: dict[str, str] | None = None,
        at: str | None = None,
        batches: Path | None = None,
        options: dict[str, Any] | None = None,
        woven: bool = False,
    ) -> Running:
        """Starts `easylm ARGUMENTS` on simulated devices.

        `at`: `"module:function:n:SIGNAL"`, the process sends itself that signal when it is about to call the function
        for the n-th time; the name of an errno, such as `ENOSPC`, is raised as an `OSError` from then on. `batches`: a
        file to which it appends every batch that it reads, as `rows_read` shows them. `options` are settings of JAX.
        `woven`: devices come in an order in which those of a process are not neighbours, as in the meshes of a pod.
        """
        self._count += 1
        out, err = self.folder / f"{self._count}.out", self.folder / f"{self._count}.err"
        flags = f"--xla_force_host_platform_device_count={devices}"
        if devices > 1 or environment:  # compared to 1e-6, not bit for bit: half the time to compile will do
            flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        question = {
            "start": [str(argument) for argument in arguments],
            "environment": {"XLA_FLAGS": flags, **(environment or {})},
            "at": at,
            "batches": None if batches is None else str(batches),
            "options": options or {},
            "woven": woven,
            "out": str(out),
            "err": str(err),
        }
        return Running(self, self.ask(question)["pid"], out, err)

    def run(self, *arguments: Any, **how: Any) -> Result:
        """Runs `easylm ARGUMENTS` to its end; `how` as in `start`."""
        return self.start(*arguments, **how).wait()

    def processes(self, count: int, *arguments: Any, at: dict[int, str] | None = None, **how: Any) -> list[Result]:
        """Runs `easylm ARGUMENTS` as `count` processes of one run; `at` by process, `how` as in `start`."""
        shared = {"EASYLM_COORDINATOR": f"localhost:{free_port()}", "EASYLM_PROCESSES": str(count)}
        running = [
            self.start(
                *arguments, environment={**shared, "EASYLM_PROCESS_ID": str(index)}, at=(at or {}).get(index), **how
            )
            for index in range(count)
        ]
        return [process.wait() for process in running]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def launcher() -> Launcher:
    """The launcher that all tests of a session share, and with it the programs that its processes compiled."""
    folder = tempfile.TemporaryDirectory(prefix="easylm-tests-")
    made = Launcher(Path(folder.name))
    atexit.register(lambda: (made.close(), folder.cleanup()))
    return made


@dataclass(frozen=True)
class Reference:
    """A run of the recipe that nothing disturbed: its recipe, its folder, and the batches that it read."""

    recipe: Path
    out: Path
    batches: dict[str, dict[int, dict[int, set[str]]]]

    @property
    def root(self) -> Path:
        return self.out / "tiny"


@functools.cache
def reference() -> Reference:
    """Made once a session; tests must not change it."""
    start = launcher()
    folder = start.folder / "reference"
    recipe = project(folder)
    result = start.run("run", recipe, "--out", folder / "runs", batches=folder / "batches.jsonl")
    assert result.status == 0, result.err
    return Reference(recipe, folder / "runs", rows_read(folder / "batches.jsonl"))


def with_vocabulary(out: Path) -> Path:
    """Gives a new runs folder the reference's vocabulary and packed caches, so that its run begins at `pretrain`."""
    made = reference()
    shutil.copytree(made.root / "tokenizer", out / "tiny" / "tokenizer")
    shutil.copytree(made.out / "cache", out / "cache", dirs_exist_ok=True)
    return out


def copy_of_reference(out: Path) -> Path:
    """A runs folder of its own with everything that the reference made."""
    shutil.copytree(reference().out, out)
    return out


def corrupt(step_folder: Path) -> None:
    """Flips one bit in the largest file of a checkpoint."""
    path = max((p for p in (step_folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rows_read(path: Path) -> dict[str, dict[int, dict[int, set[str]]]]:
    """By cache, step and place in the global batch: the digests of all rows that were ever read for that place."""
    read: dict[str, dict[int, dict[int, set[str]]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        places = read.setdefault(record["cache"], {}).setdefault(record["step"], {})
        for place, digest in zip(record["places"], record["rows"], strict=True):
            places.setdefault(place, set()).add(digest)
    return read


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    """A metric by step."""
    from easylm_jax.runtime.monitor.metrics import read_metrics

    return {line["step"]: line[name] for line in read_metrics(folder)}


def largest_difference(a: dict[int, float], b: dict[int, float]) -> float:
    """The largest relative difference of two curves over the same steps."""
    assert a.keys() == b.keys() and a
    return max(abs(a[step] - b[step]) / abs(b[step]) for step in a)


def only_line(result: Result) -> str:
    """The message of a mistake: exit status 2, one line that begins as all do, no traceback."""
    assert result.status == 2, (result.status, result.err)
    assert "Traceback" not in result.err, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("easylm: error: ")]
    assert len(lines) == 1 and result.err.splitlines()[-1] == lines[0], result.err
    return lines[0].removeprefix("easylm: error: ")


def _child(question: dict[str, Any]) -> int:
    os.environ.update(question["environment"])
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(question[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    import jax

    for name, value in question["options"].items():
        jax.config.update(name, value)
    if question["woven"]:
        _weave_devices()
    if question["batches"] is not None:
        _record_batches(question["batches"])
    if question["at"] is not None:
        _signal_at(*question["at"].split(":"))
    from easylm_jax.cli.main import main

    return main(question["start"])


def _weave_devices() -> None:
    """Meshes are made of the first device of each process, then the second of each, and so on."""
    import jax

    from easylm_jax.runtime import mesh

    class Woven:
        def __getattr__(self, name):
            return getattr(jax, name)

        @staticmethod
        def devices():
            by_process = itertools.groupby(jax.devices(), lambda device: device.process_index)
            return [device for one in zip(*(tuple(own) for _, own in by_process), strict=True) for device in one]

    mesh.jax = Woven()


def _record_batches(path: str) -> None:
    """Every `Loader.batch_at` also appends the digests of the rows that it returns."""
    import numpy as np

    from easylm_jax.data import Loader

    original = Loader.batch_at

    def batch_at(self, step, rows=None):
        batch = original(self, step, rows)
        places = np.arange(self.batch_rows)[rows if rows is not None else slice(None)].tolist()
        digests = [
            hashlib.sha256(b"".join(batch[name][row].tobytes() for name in sorted(batch))).hexdigest()[:16]
            for row in range(len(places))
        ]
        record = {"cache": self.cache.fingerprint, "step": step, "places": places, "rows": digests}
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")
        return batch

    Loader.batch_at = batch_at


def _signal_at(module: str, function: str, nth: str, number: str) -> None:
    """Replaces a function by one that does what `Launcher.start` says of `at`."""
    owner = importlib.import_module(module)
    *parents, name = function.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), itertools.count(1)

    def patched(*args, **kwargs):
        call = next(calls)
        if number.startswith("E") and call >= int(nth):
            code = getattr(errno, number)
            raise OSError(code, os.strerror(code))
        if call == int(nth):
            if number == "SIGSTOP":
                print(f"stopped at {time.time()}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.Signals[number])
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def _fork(question: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()  # a group of its own, as on a worker: with it ends what it has started
    import traceback

    status = 1
    try:
        status = _child(question)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # as at the end of a process that was not forked: JAX leaves its coordinator here
        os._exit(status)


def _wait(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _serve() -> None:
    for module in ("checkpoint.arrays", "checkpoint.tools", "data.assemble", "experiment"):
        importlib.import_module(f"easylm_jax.{module}")
    importlib.import_module("orbax.checkpoint")  # once for all, where it takes long
    answers = os.fdopen(os.dup(1), "w")
    living: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            pid = _fork(question)
            living.add(pid)
            answer = {"pid": pid}
        elif "ended" in question:
            info = os.waitid(os.P_PID, question["ended"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
            answer = {"ended": info is not None}
        else:
            answer = {"status": _wait(question["wait"], question["timeout"])}
            living.discard(question["wait"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for pid in living:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _serve()
