"""Keeps a run on a pod going: starts it, and restarts it after a preemption, a crash or a hang.

    python -m easylm_jax.runtime.launch.supervisor NAME [options] -- RECIPE [FIELD=VALUE ...]

The run resumes from its last checkpoint by itself, so a restart is the same command again. Pauses between restarts
double while no new step is reached, and after a number of such failures the supervisor gives up. A preempted pod is
created again with the same settings. An elastic run goes on without workers that do not answer, on those that are left,
and takes them back once they do. What is judged, and how, is in `judge`; the exit statuses are those of
`exit_status`: 0 the run finished, 2 an error that the user has to fix, 75 given up, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from easylm_jax.runtime import exit_status
from easylm_jax.runtime.launch.status import Report, describe
from models.errors import UserError

ENDED_BY_ANOTHER = (exit_status.TEMPORARY, -6, 134)  # what a process ends with because another one has ended
GONE = ("ABSENT", "PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING", "SUSPENDED", "SUSPENDING", "FAILED")


@dataclasses.dataclass(frozen=True)
class Limits:
    """All times in seconds.

    Attributes:
        deadline: without progress (a phase begins or ends; between stages, a line in a log) a run hangs. Longer than
            the watchdog's own deadlines, which come first and dump the stacks.
        frozen: a heartbeat file of this age belongs to a process that is stopped or blocked.
        unreachable: workers that do not answer for this time are taken for gone.
        failures: restarts in a row without a new step, after which the supervisor gives up.
        restarts: all restarts, after which it gives up.
        pause: before the first restart; doubles with every failure up to `longest_pause`.
        leave: for the other processes to end after one has.
        poll: between two looks.
        shrink: in an elastic run, workers that do not answer for this time are left out.
        grow: workers that were left out and answer for this time join again.
    """

    deadline: float = 2400.0
    frozen: float = 120.0
    unreachable: float = 900.0
    failures: int = 5
    restarts: int = 100
    pause: float = 10.0
    longest_pause: float = 600.0
    leave: float = 30.0
    poll: float = 15.0
    shrink: float = 60.0
    grow: float = 120.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`reason` is a line for the user."""

    kind: Literal["running", "unknown", "done", "stopped", "restart", "recreate", "fix", "shrink", "grow"]
    reason: str = ""


def judge(report: Report, limits: Limits, chosen: Sequence[int] | None = None) -> Verdict:
    """What to do about a run in this state; `chosen` are the workers that it is on, by default all."""
    if report.pod in GONE:
        return Verdict("recreate", f"the pod is {report.pod}")
    reported = [(i, worker) for i, worker in enumerate(report.workers) if chosen is None or i in chosen]
    silent = [str(i) for i, worker in reported if worker is None]
    if report.pod == "UNKNOWN" or not reported or silent:
        return Verdict("unknown", f"worker {', '.join(silent)} does not answer" if silent else "no worker answers")
    workers = [(i, worker) for i, worker in reported if worker is not None]
    running = [worker for _, worker in workers if worker["state"] == "running"]
    if any(worker["asked_to_stop"] for _, worker in workers):
        return Verdict("running", "stopping") if running else Verdict("stopped", "stopped as asked")
    ended = [(i, worker) for i, worker in workers if worker["state"] != "running" and worker["status"] != 0]
    # The worker that ended the others says why, so it comes first.
    ended.sort(key=lambda one: (one[1]["status"] != exit_status.USER_ERROR, one[1]["status"] in ENDED_BY_ANOTHER))
    if ended:
        index, first = ended[0]
        reason = f"worker {index} {describe(first)}"
        restart = first["status"] is None or exit_status.meaning(first["status"]).restart
        return Verdict("restart" if restart else "fix", reason)
    if not running:
        return Verdict("done", "finished")
    return _hang([(i, worker) for i, worker in workers if worker["state"] == "running"], limits) or Verdict("running")


def _hang(workers: Sequence[tuple[int, dict[str, Any]]], limits: Limits) -> Verdict | None:
    in_phase = [(i, worker) for i, worker in workers if worker["phase"] is not None]
    for i, worker in workers:
        phase = "" if worker["phase"] is None else f"in phase {worker['phase']} "
        where = f"worker {i} hangs {phase}at step {worker['step']}"
        if (worker["heartbeat_age"] or 0.0) > limits.frozen:
            return Verdict("restart", f"{where}: its process has not run for {worker['heartbeat_age']:.0f} s")
        if (worker["progress_age"] or 0.0) > limits.deadline:
            return Verdict("restart", f"{where}: no progress for {worker['progress_age']:.0f} s")
    # Between stages only the first process may have something to say, so the youngest log counts.
    ages = [worker["log_age"] for _, worker in workers if worker["log_age"] is not None]
    if not in_phase and ages and min(ages) > limits.deadline:
        return Verdict("restart", f"the run hangs outside of training: no line in any log for {min(ages):.0f} s")
    return None


class Pod(Protocol):
    """What the supervisor needs of a place where a run is. The numbers are exit statuses."""

    def report(self) -> Report: ...
    def launch(self, workers: Sequence[int] | None = None) -> int: ...
    def stop(self, now: bool) -> int: ...
    def recreate(self) -> int: ...


class Supervisor:
    """Runs a job on a pod to its end. `clock` returns monotonic seconds.

    `elastic`: goes on without workers that do not answer, if at least that many are left; None waits for all.
    """

    def __init__(
        self,
        pod: Pod,
        limits: Limits | None = None,
        *,
        elastic: int | None = None,
        say: Callable[[str], None] = lambda text: _say(text),
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._pod, self._limits = pod, limits or Limits()
        self._say, self._sleep, self._clock = say, sleep, clock
        self._elastic = elastic
        self._chosen: list[int] | None = None  # the workers that the job is on; None for all
        self._lost: set[int] = set()  # workers that were left out because they did not answer
        self._answering_since: dict[int, float] = {}  # those of them that do again
        self._furthest: dict[str, int] = {}  # by stage; a step that was reached before is no progress
        self.restarts = 0
        self.failures = 0

    def run(self) -> int:
        """Starts the job, or watches one that runs already; returns the exit status."""
        try:
            return self._run()
        except KeyboardInterrupt:
            self._say("stopping the run; it saves first")
            self._pod.stop(now=False)
            return exit_status.STOPPED

    def _run(self) -> int:
        report = self._pod.report()
        if self._elastic is not None and report.pod == "READY" and None in report.workers:
            self._choose([i for i, worker in enumerate(report.workers) if worker is not None], report)
        if report.pod == "ABSENT":
            raise UserError("there is no such pod; create it with tpu_scripts/create.sh")
        verdict = judge(report, self._limits, self._chosen)
        if verdict.kind == "running":
            self._say("the job runs already; watching it")
        elif verdict.kind == "recreate":
            status = self._restart(verdict)
            if status is not None:
                return status
        else:
            status = self._launch()
            if status is not None:
                return status
        while True:
            verdict = self._wait_for_change()
            if verdict.kind == "done":
                self._say(f"finished after {self.restarts} restart{'s' * (self.restarts != 1)}")
                return exit_status.DONE
            if verdict.kind == "stopped":
                self._say(verdict.reason)
                return exit_status.STOPPED
            if verdict.kind in ("shrink", "grow"):
                status = self._resize(verdict)
                if status is not None:
                    return status
                continue
            if verdict.kind == "fix":
                self._end_the_rest(now=True)
                self._say(f"error: not restarted: {verdict.reason}")
                return exit_status.USER_ERROR
            status = self._restart(verdict)
            if status is not None:
                return status

    def _wait_for_change(self) -> Verdict:
        """Looks every `poll` seconds until the run needs something."""
        silent_since: float | None = None
        while True:
            self._sleep(self._limits.poll)
            report = self._pod.report()
            self._note_progress(report)
            verdict = judge(report, self._limits, self._chosen)
            if verdict.kind == "unknown":
                silent_since = self._clock() if silent_since is None else silent_since
                silent = self._clock() - silent_since
                if silent > self._limits.shrink and len(self._left(report)) >= (self._elastic or len(report.workers)):
                    self._choose(self._left(report), report)
                    return Verdict("shrink", f"{verdict.reason} for {silent:.0f} s")
                if silent > self._limits.unreachable:
                    return Verdict("recreate", f"{verdict.reason} for {self._limits.unreachable:.0f} s")
                continue
            silent_since = None
            fewer = self._fewer(report, verdict)
            if fewer is not None:
                return fewer
            if verdict.kind != "running":
                return verdict
            returned = self._returned(report)
            if returned:
                self._choose([i for i, worker in enumerate(report.workers) if worker is not None], report)
                return Verdict("grow", f"{_named(returned)} answer{'s' * (len(returned) == 1)} again")

    # Elastic runs

    def _left(self, report: Report) -> list[int]:
        """The workers that answer and that the job is on."""
        on = range(len(report.workers)) if self._chosen is None else self._chosen
        return [i for i in on if report.workers[i] is not None]

    def _choose(self, workers: list[int], report: Report) -> None:
        """The job is on these workers from its next start on."""
        self._lost = {i for i, worker in enumerate(report.workers) if worker is None}
        self._chosen = None if len(workers) == len(report.workers) else workers
        self._answering_since.clear()

    def _fewer(self, report: Report, verdict: Verdict) -> Verdict | None:
        """Whether the job's rows do not divide over its workers: then it goes on with one worker less."""
        indivisible = any(worker and worker["status"] == exit_status.INDIVISIBLE for worker in report.workers)
        workers = self._left(report)
        if verdict.kind != "restart" or not indivisible or self._elastic is None or len(workers) <= self._elastic:
            return None
        self._choose(workers[:-1], report)
        return Verdict("shrink", verdict.reason)

    def _returned(self, report: Report) -> list[int]:
        """The workers that were lost and have answered for long enough."""
        for i in self._lost:
            if report.workers[i] is None:
                self._answering_since.pop(i, None)
            else:
                self._answering_since.setdefault(i, self._clock())
        return [i for i, since in self._answering_since.items() if self._clock() - since > self._limits.grow]

    def _resize(self, verdict: Verdict) -> int | None:
        """Starts the job on the workers that there are now; None, or the exit status if it is given up."""
        self._say(verdict.reason)
        self.restarts += 1
        if self.restarts > self._limits.restarts:
            self._say(f"error: given up after {self.restarts - 1} restarts; the last: {verdict.reason}")
            return exit_status.TEMPORARY
        self._pod.stop(now=verdict.kind == "shrink")  # before growing it saves its step
        self._say(f"restart {self.restarts} on {'all workers' if self._chosen is None else _named(self._chosen)}")
        return self._launch()

    def _note_progress(self, report: Report) -> None:
        for worker in report.workers:
            if worker is None or worker["step"] is None:
                continue
            if worker["step"] > self._furthest.get(worker["stage"], -1):
                self._furthest[worker["stage"]] = worker["step"]
                self.failures = 0

    def _restart(self, verdict: Verdict) -> int | None:
        """Starts the job again; None, or the exit status if it is given up."""
        self._say(verdict.reason)
        recreate = verdict.kind == "recreate"
        if not recreate:
            self._end_the_rest()
        while True:
            self.restarts += 1
            self.failures += 1
            if self.failures > self._limits.failures or self.restarts > self._limits.restarts:
                without = f"{self.failures - 1} failures without a new step"
                self._say(f"error: given up: {without}; the last: {verdict.reason}")
                return exit_status.TEMPORARY
            pause = min(self._limits.longest_pause, self._limits.pause * 2 ** (self.failures - 1))
            self._say(f"restart {self.restarts} in {pause:.0f} s")
            self._sleep(pause)
            if recreate:
                status = self._pod.recreate()
                if status == exit_status.USER_ERROR:
                    return status
                if status == exit_status.UNAVAILABLE:
                    self.failures -= 1  # waiting for capacity is no failure of the run
                if status:
                    continue
            return self._launch()

    def _launch(self) -> int | None:
        """Starts the job. A start that fails is judged like a run that does: by what the workers report."""
        status = self._pod.launch() if self._chosen is None else self._pod.launch(self._chosen)
        if status == exit_status.USER_ERROR:
            return status
        if status:
            return self._restart(Verdict("restart", f"the start failed with exit status {status}"))
        return None

    def _end_the_rest(self, now: bool = False) -> None:
        """Waits for the other processes, which end by themselves when one has, and kills what is left."""
        end = self._clock() + (0.0 if now else self._limits.leave)
        while self._clock() < end:
            report = self._pod.report()
            states = [None if worker is None else worker["state"] for worker in report.workers]
            on = [i for i in range(len(states)) if self._chosen is None or i in self._chosen]
            if all(states[i] not in (None, "running") for i in on):
                return
            self._sleep(min(2.0, self._limits.poll))
        self._pod.stop(now=True)


@dataclasses.dataclass(frozen=True)
class Scripts:
    """A pod that is reached through scripts: `status.sh`, `launch.sh`, `stop.sh`, `create.sh`, `setup.sh`.

    Attributes:
        flags: of every script, such as `--project`.
        job: its name on the workers.
        arguments: of `easylm run`.
    """

    folder: Path
    name: str
    flags: tuple[str, ...]
    job: str
    arguments: tuple[str, ...]

    def report(self) -> Report:
        """What `status.sh --json` prints; a failure that the user has to fix ends the supervisor."""
        result = subprocess.run(
            [*self._command("status.sh"), "--job", self.job, "--json"], capture_output=True, text=True
        )  # fmt: skip
        if result.returncode == exit_status.USER_ERROR:
            raise UserError((result.stderr.strip().splitlines() or ["status.sh failed"])[-1])
        if result.returncode:
            return Report("UNKNOWN")
        value = json.loads(result.stdout.strip().splitlines()[-1])
        return Report(value["pod"], tuple(value["workers"]))

    def launch(self, workers: Sequence[int] | None = None) -> int:
        """Workers cannot be left out: a slice of a TPU runs as a whole or not at all."""
        if workers is not None:
            raise UserError("a TPU slice cannot run without one of its hosts; leave out --elastic")
        return self._run("launch.sh", "--job", self.job, "--", *self.arguments)

    def stop(self, now: bool) -> int:
        return self._run("stop.sh", "--job", self.job, *(["--now"] if now else []))

    def recreate(self) -> int:
        """The pod as it was created and set up before."""
        return self._run("create.sh") or self._run("setup.sh")

    def _command(self, script: str) -> list[str]:
        return ["bash", str(self.folder / script), self.name, *self.flags]

    def _run(self, script: str, *arguments: str) -> int:
        return subprocess.run([*self._command(script), *arguments]).returncode


def _named(workers: Sequence[int]) -> str:
    return f"worker{'s' * (len(workers) > 1)} {', '.join(map(str, workers))}"


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervise: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m easylm_jax.runtime.launch.supervisor",
                                     description="Keeps a run on a pod going.")  # fmt: skip
    parser.add_argument("name")
    parser.add_argument("--scripts", type=Path, required=True, help="the folder of launch.sh and the others")
    parser.add_argument("--flag", action="append", default=[], help="handed to every script")
    parser.add_argument("--job", default="run")
    add_limits(parser)
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:cut])
    pod = Scripts(given.scripts, given.name, tuple(given.flag), given.job, tuple(words[cut + 1 :]))
    return supervise(pod, given)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `Limits`."""
    for field in dataclasses.fields(Limits):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)


def supervise(pod: Pod, given: argparse.Namespace, elastic: int | None = None) -> int:
    """Runs the supervisor with the options of `add_limits`; SIGTERM stops the run as Ctrl-C does."""
    limits = Limits(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Limits)})

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        return Supervisor(pod, limits, elastic=elastic).run()
    except UserError as error:
        print(f"supervise: error: {str(error).partition('error: ')[2] or error}", file=sys.stderr)
        return exit_status.USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
