"""A pod whose workers are processes of a `Launcher`, for the real supervisor: restarts that cost seconds.

Workers are started by forking, and may send themselves a signal at a chosen call (`Launcher.start(at=…)`) or be sent
one from outside; what the supervisor is told about them, and how they are stopped, is `launch.worker`'s own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import Running, free_port, launcher

from easylm_jax.runtime import files
from easylm_jax.runtime.launch import worker
from easylm_jax.runtime.launch.status import Report


@dataclass(frozen=True)
class Trouble:
    """What happens to one life of a run: worker `worker` gets signal `number`.

    `at`: `module:function:n`, it sends the signal to itself when it is about to call the function for the n-th time.
    `when`: the signal comes from outside, `delay` seconds after this holds.
    """

    name: str
    number: int
    worker: int = 0
    at: str | None = None
    when: Callable[[], bool] | None = None
    delay: float = 0.0


class LocalPod:
    """`count` workers that run `easylm ARGUMENTS`. `trouble` is asked before each start for what happens to it.

    `progress` tells `stage` and `step`, where heartbeats (every five seconds) are too rare for the steps of a test.
    `lives` are the processes, by start and by worker; `struck` the troubles that came to pass, with their times.
    """

    def __init__(
        self, folder: Path, count: int, *arguments: Any, trouble: Callable[[], Trouble | None] | None = None,
        progress: Callable[[], dict[str, Any]] | None = None, **how: Any,
    ):  # fmt: skip
        self.jobs = [folder / str(i) for i in range(count)]
        self.next_trouble, self.arguments, self.how = trouble or (lambda: None), arguments, how
        self.progress = progress or dict
        self.environment = how.pop("environment", {})
        self.lives: list[list[Running]] = []
        self._trouble: Trouble | None = None
        self.struck: list[tuple[Trouble, float]] = []

    def launch(self, workers: Sequence[int] | None = None) -> int:
        assert workers is None
        self._trouble = self.next_trouble()
        shared = {}
        if len(self.jobs) > 1:
            shared = {"EASYLM_COORDINATOR": f"localhost:{free_port()}", "EASYLM_PROCESSES": str(len(self.jobs))}
        self.lives.append([])
        for i, job in enumerate(self.jobs):
            job.mkdir(parents=True, exist_ok=True)
            for name in (worker.STATE, worker.EXIT, worker.HEARTBEAT, worker.STOP, worker.LOG):
                (job / name).unlink(missing_ok=True)
            number = {"EASYLM_PROCESS_ID": str(i)} if shared else {}
            heartbeat = {worker.HEARTBEAT_VARIABLE: str(job / worker.HEARTBEAT)}
            trouble, at = self._trouble, None
            if trouble is not None and trouble.at is not None and trouble.worker == i:
                at = f"{trouble.at}:{signal.Signals(trouble.number).name}"
            life = launcher().start(
                *self.arguments, environment={**shared, **number, **heartbeat, **self.environment}, at=at, **self.how
            )
            (job / worker.LOG).symlink_to(life.err_path)
            own, life_born = os.getpid(), worker._birth(life.pid)  # this process writes how it ended, in `report`
            state = {"pid": life.pid, "born": life_born, "watcher": own, "watcher_born": worker._birth(own)}
            files.write_json(job / worker.STATE, state)
            self.lives[-1].append(life)
        return 0

    def report(self) -> Report:
        self._strike()
        if self.lives:
            for job, life in zip(self.jobs, self.lives[-1], strict=True):
                if not (job / worker.EXIT).exists() and life.ended():
                    ended = life.wait().status
                    files.write_json(job / worker.EXIT, {"status": ended, "time": time.time()})
                    self._note(ended)
        told = self.progress()
        return Report("READY", tuple({**worker.status(job), **told} for job in self.jobs))

    def _strike(self) -> None:
        trouble = self._trouble
        if trouble is None or trouble.when is None or not trouble.when():
            return
        time.sleep(trouble.delay)
        life = self.lives[-1][trouble.worker]
        if not life.ended():
            life.signal(trouble.number)
            self._note(None)

    def _note(self, status: int | None) -> None:
        """Notes that the trouble of this life has come: its signal was sent, or it ended the process."""
        trouble = self._trouble
        if trouble is not None and (status is None or status in (-trouble.number, 130, 128 + trouble.number)):
            self.struck.append((trouble, time.time()))
            self._trouble = None

    def stop(self, now: bool) -> int:
        for job, life in zip(self.jobs, self.lives[-1], strict=True):
            if not life.ended():
                if now:
                    worker.kill(life.pid)
                else:
                    (job / worker.STOP).touch()
                    os.kill(life.pid, signal.SIGTERM)
        for life in self.lives[-1]:
            life.wait()
        self.report()
        return 0

    def recreate(self) -> int:
        raise AssertionError("this pod is never preempted")

    def said(self, life: int = -1) -> str:
        """All that the workers of a start have printed."""
        return "\n".join(one.err for one in self.lives[life])
