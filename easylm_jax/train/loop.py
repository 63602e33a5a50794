"""What every training loop does besides its steps: start or resume, metrics, checkpoints, held-out scores, stops.

A loop has a `Job`, which says what is made, and four things of its own: `prepare`, `advance`, `read` and `validate`.
Everything that decides the next step is in the checkpoint or a pure function of it, so a run that was killed goes on
bit for bit as if it had not been.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from easylm_jax.checkpoint.checkpointer import Checkpointer, Retention
from easylm_jax.config import Checkpoints, Monitoring
from easylm_jax.runtime import sharding
from easylm_jax.runtime.monitor import Monitor, StopRequest
from easylm_jax.runtime.monitor.metrics import FILE_NAME as METRICS_FILE
from easylm_jax.runtime.monitor.metrics import last_line
from models.errors import UserError

PyTree = Any
Line = dict[str, Any]


class Stopped(Exception):
    """A signal asked the run to stop; the step it was at is saved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What any loop needs to know of a stage.

    `abstract_state` has the shapes and types of all that a step changes, `layout` their shardings; `fresh_state()`
    makes the state before step 0. `fingerprint` is that of the data. `validate_every` is None for the last step alone;
    `validates` says whether there is held-out data. `meta` goes into every checkpoint as it is.
    """

    name: str
    folder: Path
    mesh: jax.sharding.Mesh
    abstract_state: PyTree
    layout: PyTree
    fresh_state: Callable[[], PyTree]
    fingerprint: str
    validates: bool
    validate_every: int | None
    steps: int
    checkpoints: Checkpoints
    monitoring: Monitoring
    meta: Mapping[str, Any]


class Loop(abc.ABC):
    """One process's life in a job. `tokens_seen` counts trained tokens over all restarts."""

    def __init__(self, job: Job):
        self.job = job
        self.abstract = sharding.with_shardings(job.abstract_state, job.layout)
        self.tokens_seen = 0
        self.validation: dict[str, float] = {}

    @abc.abstractmethod
    def prepare(self, state: PyTree, start: int) -> None:
        """Compiles and opens what the steps from `start` on need; called when there are steps to do."""

    @abc.abstractmethod
    def advance(self, state: PyTree, step: int) -> tuple[PyTree, Any]:
        """Step `number` (from 1): the new state, and what `read` will make a metrics line of."""

    @abc.abstractmethod
    def read(self, pending: Any) -> Line:
        """Waits for a step and returns its metrics line."""

    @abc.abstractmethod
    def check(self, line: Line, step: int) -> None:
        """Raises `UserError` where a line says that the run has gone wrong for good."""

    @abc.abstractmethod
    def validate(self, state: PyTree, step: int) -> tuple[dict[str, float], str]:
        """Scores on held-out data by name, and what to say of them."""

    def close(self) -> None:  # noqa: B027 - most loops leave nothing open
        """Ends what `prepare` began."""

    def run(self) -> Line:
        """From the newest checkpoint (or the start) to the last step; returns the final metrics.

        Raises `Stopped` after a signal, and `UserError` for what the user can mend.
        """
        job, c = self.job, self.job.checkpoints
        self.monitor = Monitor(
            job.folder, job.name, job.steps, tensorboard=job.monitoring.tensorboard, wandb=job.monitoring.wandb,
            config=job.meta["config"], watchdog=job.monitoring.watchdog, heartbeat=job.monitoring.heartbeat_seconds,
        )  # fmt: skip
        self.checkpointer = Checkpointer(
            job.folder / "checkpoints", Retention(c.latest, c.keep_every, c.history),
            when_busy=c.when_busy, deadline_seconds=c.deadline_seconds,
        )  # fmt: skip
        with jax.set_mesh(job.mesh), self.monitor, self.checkpointer, StopRequest(self.monitor.message) as stop:
            self.stop = stop
            return self._to_the_end()

    def _to_the_end(self) -> Line:
        job = self.job
        with self.monitor.phase("init"):
            state, start = self._restore_or_start()
        last: Line = {}
        if start < job.steps:
            try:
                self.prepare(state, start)
                state, last = self._loop(state, start)
            finally:
                self.close()
        else:
            last = last_line(job.folder / METRICS_FILE) or {}
        self.checkpointer.wait()
        if job.validates and self.validation.get("validation_step") != job.steps:
            self._validate(state, job.steps)
        spent = sum(self.monitor.ledger.seconds().values())  # of all processes that this run had
        numbers = {name: value for name, value in last.items() if isinstance(value, (int, float))}
        return {**numbers, **self.validation, "wall_seconds": spent}

    def _restore_or_start(self) -> tuple[PyTree, int]:
        job = self.job
        if self.checkpointer.latest_step() is None:
            return job.fresh_state(), 0
        state, meta = self.checkpointer.restore(self.abstract)
        if meta["data"]["fingerprint"] != job.fingerprint:
            raise UserError(
                f"stage {job.name}: its checkpoints were trained on other data (or another batch or seed); "
                "use another --out, or --overwrite to begin again"
            )
        start = int(state.step)
        self.tokens_seen = int(meta["data"]["tokens_seen"])
        self.validation = dict(meta.get("validation") or {})
        self.monitor.resume(meta["clocks"], start)
        self.monitor.message(f"resuming at step {start} of {job.steps}")
        return state, start

    def _loop(self, state: PyTree, start: int) -> tuple[PyTree, Line]:
        job = self.job
        waiting: tuple[int, Any] | None = None  # the newest step, whose metrics are still on the device
        last: Line = {}
        for step in range(start + 1, job.steps + 1):
            state, pending = self.advance(state, step)
            with self.monitor.phase("step", step):
                if waiting is not None:  # read one step late, while the device works on the next
                    self._write(waiting[0], self.read(waiting[1]))
                waiting = step, pending
                stopping = self.stop.agreed(step)
                saving = stopping or step % job.checkpoints.every == 0 or step == job.steps or self._stays(step)
                validating = self._validation_due(step)
                if saving or validating:
                    last = self.read(pending)
            if validating:
                last |= self._validate(state, step)
            if saving or validating:  # the line is written before its checkpoint commits, so a kill loses none
                self._write(step, last)
                waiting = None
            if saving:
                self._save(step, state, final=stopping or step == job.steps)
            if stopping and step < job.steps:
                self.checkpointer.wait()
                raise Stopped(f"{job.name}: stopped at step {step} of {job.steps}, which is saved; run again to go on")
        return state, last

    def _write(self, step: int, line: Line) -> None:
        self.monitor.log(step, {**line, "goodput": self.monitor.ledger.goodput()})
        self.check(line, step)

    def _save(self, step: int, state: PyTree, final: bool) -> None:
        with self.monitor.phase("checkpoint", step):
            meta = {
                **self.job.meta,
                "data": {"fingerprint": self.job.fingerprint, "step": step, "tokens_seen": self.tokens_seen},
                "validation": self.validation,
                "clocks": self.monitor.clocks(),
            }
            if final or self._stays(step):
                self.checkpointer.wait()  # so that what is to stay is never what is skipped
            if self.checkpointer.save(step, state, meta):
                self.monitor.checkpoint_saved()

    def _stays(self, step: int) -> bool:
        """Whether a step is one of those that are kept for good, which are saved whatever `every` is."""
        c = self.job.checkpoints
        return any(every and step % every == 0 for every in (c.keep_every, c.history))

    def _validation_due(self, step: int) -> bool:
        every = self.job.validate_every
        return self.job.validates and (step == self.job.steps or bool(every and step % every == 0))

    def _validate(self, state: PyTree, step: int) -> dict[str, float]:
        """Held-out scores of the parameters after `number` steps."""
        with self.monitor.phase("evaluate", step):
            scores, words = self.validate(state, step)
        self.validation = {"validation_step": step, **{f"validation_{name}": value for name, value in scores.items()}}
        self.monitor.message(f"step {step}: held-out {words}")
        return self.validation


def describe_mesh(mesh: jax.sharding.Mesh) -> str:
    """The axes that split something, as a recipe writes them."""
    split = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1]
    return ",".join(split) or "one device"
