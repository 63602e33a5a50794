"""Shared by the benchmarks: alternating workers, load of the machine, medians, and the JSON line at the end.

Each side of a comparison is a process that sets up once and then runs bursts on request. In between it blocks on its
standard input, so that the idle side uses no CPU. During every burst the CPU time of all other processes is read from
/proc; repeats with such load are marked, and left out if enough quiet ones remain.

Only the standard library is imported, because workers also run in the environments of other codebases.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # scripts run from a checkout, installed or not
    sys.path.insert(0, str(ROOT))

# Shapes of OLMo 2 that are compared: those of the peers' published CPU measurements, and "tiny" for testing a script.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "width": 32, "ffn": 64, "heads": 2, "vocab": 512},
    "5m": {"layers": 4, "width": 256, "ffn": 1024, "heads": 4, "vocab": 2048},
    "35m": {"layers": 8, "width": 512, "ffn": 1536, "heads": 8, "vocab": 8192},
}

# The most cores that other processes may use during a quiet burst.
QUIET_CORES = 0.1


class BenchmarkError(Exception):
    """A mistake of the user; the message is one line that says what is wrong and how to fix it."""


def run_main(main: Callable[[], None]) -> None:
    """Calls `main`; a `BenchmarkError` becomes one line on standard error and exit status 2."""
    try:
        main()
    except BenchmarkError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def tpu_compiler() -> None:
    """Sets up the TPU compiler for compiling without a TPU."""
    if importlib.util.find_spec("libtpu") is None:
        raise BenchmarkError("this needs the TPU compiler: pip install 'jax[tpu]' (no TPU is needed)")
    from easylm_jax.plan import topology

    topology.configure_compiler_env()


# Workers


class Worker:
    """A process that replies to each line, a JSON object, with one line of JSON.

    `about` is what it reports once it is ready. `environment` adds variables to those of this process.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self.name = name
        self._log = tempfile.NamedTemporaryFile("w+", suffix=f".{name}.log")  # noqa: SIM115 - open for its life
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.about = self._reply()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the reply."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        return json.loads(line)

    def _died(self) -> BenchmarkError:
        status = self._process.wait()
        self._log.seek(0)
        said = [line for line in self._log.read().splitlines() if line.strip()]
        if os.environ.get("BENCHMARK_DEBUG"):
            print("\n".join(said), file=sys.stderr)
        self._close_streams()
        return BenchmarkError(
            f"the worker {self.name} ended with status {status}: {said[-1] if said else 'it printed nothing'} "
            "(BENCHMARK_DEBUG=1 prints its whole log)"
        )

    def close(self) -> None:
        """Closes the standard input, at which the process exits."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_streams()

    def _close_streams(self) -> None:
        """Closes pipes and log of the process, which has exited."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # a request that was never read
                stream.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def serve(about: Mapping[str, Any], handlers: Mapping[str, Callable[..., Mapping[str, Any]]], channel: Any) -> None:
    """The main loop of a worker: reports that it is ready, then handles requests until standard input ends."""
    print(json.dumps(about), file=channel, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(handlers[request.pop("do")](**request)), file=channel, flush=True)


def take_stdout() -> Any:
    """Standard output, reserved for replies; redirects whatever libraries print to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def random_rows(vocab: int, rows: int, length: int) -> list[list[int]]:
    """Random tokens [rows, length], always the same."""
    draw = random.Random(0)
    return [[draw.randrange(vocab) for _ in range(length)] for _ in range(rows)]


def document_batch(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Rows of `length + 1` tokens as a batch of NumPy arrays [rows, length] with one document in each row."""
    import numpy as np  # here, because workers of peers import this module too

    tokens = np.asarray(rows, np.int32)
    shape = (tokens.shape[0], tokens.shape[1] - 1)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
        "loss_weights": np.ones(shape, np.float32),
    }


def burst(step: Callable[[], float], steps: int) -> dict[str, Any]:
    """Runs `step` repeatedly; returns wall and CPU seconds of this process, and the last result."""
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(steps):
        last = step()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu, "loss": last}


def timed(run: Callable[[], Any], times: int) -> float:
    """Median wall seconds of `run`, after one warm-up call."""
    run()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


# Load


@dataclasses.dataclass(frozen=True)
class CpuClocks:
    """CPU seconds since boot: `busy` of all processes, `stolen` by other guests of the host, `own` of our processes."""

    wall: float
    busy: float
    stolen: float
    own: float


def parse_stat(text: str, ticks: int = 100) -> tuple[float, float]:
    """(busy, stolen) seconds of all cores from the text of /proc/stat. User time already includes guests."""
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(x) for x in text.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq) / ticks, steal / ticks


def parse_process_stat(text: str, ticks: int = 100) -> float:
    """CPU seconds of all threads of a process, from the text of /proc/PID/stat."""
    after_name = text.rpartition(")")[2].split()  # a name may contain spaces and brackets
    return (int(after_name[11]) + int(after_name[12])) / ticks


def cpu_clocks(own: Sequence[int]) -> CpuClocks | None:
    """The current CPU seconds; `own` are the processes that should be running. None without /proc."""
    ticks = os.sysconf("SC_CLK_TCK")
    try:
        busy, stolen = parse_stat(Path("/proc/stat").read_text(), ticks)
        used = sum(parse_process_stat(Path(f"/proc/{pid}/stat").read_text(), ticks) for pid in own)
    except OSError:
        return None
    return CpuClocks(time.monotonic(), busy, stolen, used)


def load_between(before: CpuClocks | None, after: CpuClocks | None) -> float | None:
    """Cores that others used on average between two readings, including stolen time."""
    if before is None or after is None or after.wall <= before.wall:
        return None
    others = (after.busy - before.busy) - (after.own - before.own) + (after.stolen - before.stolen)
    return max(0.0, others / (after.wall - before.wall))


# Repeats


@dataclasses.dataclass(frozen=True)
class Repeat:
    """One burst of one side. `load`: cores that other processes used meanwhile; None where unknown."""

    seconds: float
    cpu_seconds: float
    load: float | None
    answer: Mapping[str, Any]

    @property
    def quiet(self) -> bool:
        return self.load is not None and self.load <= QUIET_CORES


def measure(worker: Worker, what: str, **request: Any) -> Repeat:
    """One request to a worker, with the load meanwhile; time of the other workers, which should idle, is load."""
    own = (os.getpid(), worker.pid)
    before = cpu_clocks(own)
    answer = worker.ask(what, **request)
    return Repeat(answer["seconds"], answer["cpu_seconds"], load_between(before, cpu_clocks(own)), answer)


def take_turns(workers: Sequence[Worker], repeats: int, what: str = "burst", **request: Any) -> dict[str, list[Repeat]]:
    """One burst of each worker per round; the order is reversed in every round."""
    taken: dict[str, list[Repeat]] = {worker.name: [] for worker in workers}
    for number in range(repeats):
        for worker in workers if number % 2 == 0 else list(reversed(workers)):
            taken[worker.name].append(measure(worker, what, **request))
    return taken


def kept(taken: Mapping[str, Sequence[Repeat]]) -> tuple[dict[str, list[Repeat]], bool]:
    """The repeats to report, and whether they are quiet: if a side has less than three quiet ones, all are reported."""
    quiet = {name: [r for r in repeats if r.quiet] for name, repeats in taken.items()}
    if all(len(repeats) >= min(3, len(taken[name])) for name, repeats in quiet.items()):
        return quiet, True
    return {name: list(repeats) for name, repeats in taken.items()}, False


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


def median_load(repeats: Sequence[Repeat]) -> float | None:
    """Median of cores that others used; None where unknown."""
    known = [r.load for r in repeats if r.load is not None]
    return statistics.median(known) if known else None


# Output


def json_line(
    ours: float,
    peer: float | None,
    unit: str,
    load: float | None,
    config: Mapping[str, Any],
    ratio: float | None = None,
) -> str:
    """The last line of every benchmark as JSON; `ratio` is ours over peer unless given."""
    if ratio is None and peer is not None:
        ratio = ours / peer
    line = {"ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "load": load, "config": dict(config)}
    return json.dumps({name: _rounded(value) for name, value in line.items()})


def _rounded(value: Any) -> Any:
    """Rounds to four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def machine() -> dict[str, Any]:
    """A description of the machine."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}
