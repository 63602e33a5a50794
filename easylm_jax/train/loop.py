"""The training loop shared by all stages: start or resume, metrics, checkpoints, validation, and stopping on signals.

A loop is given a `Job` and implements `prepare`, `advance`, `read`, `check` and `validate`. Everything that determines
the next step is in the checkpoint or a pure function of it, so a killed run resumes bit for bit.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from easylm_jax.checkpoint.checkpointer import Checkpointer, Retention
from easylm_jax.checkpoint.neighbour import of_this_run
from easylm_jax.checkpoint.replica import Replica
from easylm_jax.config import Checkpoints, Monitoring
from easylm_jax.runtime import sharding
from easylm_jax.runtime.monitor import Monitor, StopRequest
from easylm_jax.runtime.monitor.metrics import FILE_NAME as METRICS_FILE
from easylm_jax.runtime.monitor.metrics import last_line
from easylm_jax.runtime.monitor.progress import short_number
from easylm_jax.train.save_schedule import SaveSchedule
from easylm_jax.train.step import State
from models import reading
from models.errors import UserError

PyTree = Any
Metrics = dict[str, Any]


class _ResumedData(TypedDict):
    fingerprint: str
    step: int
    tokens_seen: int


class _ResumedMeta(TypedDict):
    """The metadata of a checkpoint that a run goes on from."""

    data: _ResumedData
    clocks: dict[str, Any]


class Stopped(Exception):
    """The run was stopped by a signal, after saving its current step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The inputs of a loop that are common to all kinds of stages.

    Attributes:
        name: of the stage.
        folder: of the stage.
        mesh: the devices that train.
        abstract_state: shapes and types of everything that a step changes.
        layout: the shardings of the state.
        fresh_state: makes the state before the first step.
        fingerprint: of the data, the batch size and the seed.
        validates: whether there is held-out data.
        validate_every: steps between validations; None validates after the last step only.
        ask: `(parameters, step)` → the scores of benchmarks, by the name of the metric; None asks none.
        ask_every: steps between two evaluations on benchmarks; they are asked after the last step too.
        steps: total number of steps.
        checkpoints: when to save and what to keep.
        monitoring: where metrics go.
        meta: stored in every checkpoint.
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
    ask: Callable[[PyTree, int], dict[str, float]] | None = None
    ask_every: int | None = None


class Loop(abc.ABC):
    """Runs a job in one process. `tokens_seen` counts trained tokens over all restarts."""

    def __init__(self, job: Job):
        self.job = job
        self.abstract = sharding.with_shardings(job.abstract_state, job.layout)
        self.tokens_seen = 0
        self.validation: dict[str, float] = {}
        self.saves = SaveSchedule(job.checkpoints.every)
        self._saved = 0

    @abc.abstractmethod
    def prepare(self, state: PyTree, start: int) -> None:
        """Compiles programs and opens data for the steps after `start`; called only if there are steps left."""

    @abc.abstractmethod
    def advance(self, state: PyTree, step: int) -> tuple[PyTree, Any]:
        """Dispatches `step` (from 1); returns the new state and a handle for `read`."""

    @abc.abstractmethod
    def read(self, pending: Any) -> Metrics:
        """Waits for a dispatched step and returns its metrics."""

    @abc.abstractmethod
    def check(self, metrics: Metrics, step: int) -> None:
        """Raises `UserError` if the metrics show that training has failed for good."""

    @abc.abstractmethod
    def trained(self, state: PyTree) -> Mapping[str, State]:
        """The train state of each model that is trained, by name, such as "policy"."""

    @abc.abstractmethod
    def validate(self, state: PyTree, step: int) -> tuple[dict[str, float], str]:
        """Validation metrics by name, and a summary to print."""

    def close(self) -> None:  # noqa: B027 - most loops have nothing to close
        """Releases what `prepare` opened."""

    def run(self) -> Metrics:
        """Runs from the latest checkpoint (or from scratch) to the last step; returns the final metrics.

        Raises:
            Stopped: a signal stopped the run.
            UserError: an error that the user can fix.
        """
        job, c = self.job, self.job.checkpoints
        self.monitor = Monitor(
            job.folder, job.name, job.steps, tensorboard=job.monitoring.tensorboard, wandb=job.monitoring.wandb,
            config=job.meta["config"], watchdog=job.monitoring.watchdog, heartbeat=job.monitoring.heartbeat_seconds,
        )  # fmt: skip
        self.checkpointer = Checkpointer(
            job.folder / "checkpoints", Retention(c.latest, c.keep_every, c.history),
            when_busy=c.when_busy, deadline_seconds=c.deadline_seconds,
            replica=None if c.replica is None else Replica(c.replica, str(job.folder.absolute()), of_this_run()),
        )  # fmt: skip
        with jax.set_mesh(job.mesh), self.monitor, self.checkpointer, StopRequest(self.monitor.message) as stop:
            self.stop = stop
            return self._run_to_end()

    def _run_to_end(self) -> Metrics:
        job = self.job
        with self.monitor.phase("init"):
            state, start = self._restore_or_start()
        last: Metrics = {}
        if start < job.steps:
            self.monitor.message(self._describe_saving())
            try:
                self.prepare(state, start)
                state, last = self._loop(state, start)
            finally:
                self.close()
        else:
            last = last_line(job.folder / METRICS_FILE) or {}
        self.checkpointer.wait()
        self._check_end(state, last)
        if job.validates and self.validation.get("validation_step") != job.steps:
            self._validate(state, job.steps)
        wall_seconds = sum(self.monitor.ledger.seconds().values())  # over all restarts of this run
        scalars = {name: value for name, value in last.items() if isinstance(value, (int, float))}
        return {**scalars, **self.validation, "wall_seconds": wall_seconds}

    def _check_end(self, state: PyTree, last: Metrics) -> None:
        """Raises `UserError` if the run ends with a model that was not trained or is of no use."""
        job, faults = self.job, []
        loss = last.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            faults.append(f"the loss of its last step is {loss}")
        for name, trained in self.trained(state).items():
            updates, skipped = jax.device_get((trained.step, trained.opt.skipped_total))
            if 0 < updates <= skipped:
                faults.append(f"all {updates} updates of the {name} were skipped (they were not finite or stood out)")
            if not all_finite(trained.params, job.mesh):
                faults.append(f"parameters of the {name} are not finite")
        if faults:
            raise UserError(
                f"stage {job.name}: training ended at step {job.steps}, but {' and '.join(faults)}; it is not done and "
                f"its checkpoints are kept in {job.folder / 'checkpoints'}; train again with a lower learning rate or "
                "other data (--overwrite or another --out)"
            )

    def _restore_or_start(self) -> tuple[PyTree, int]:
        job = self.job
        if not self.checkpointer.has_state():
            return job.fresh_state(), 0
        state, meta = self.checkpointer.restore(self.abstract)
        found = reading.fault(_ResumedMeta, meta)
        if found is None and meta.get("config_hash") != job.meta.get("config_hash"):
            found = "they are of other settings"
        if found is not None:
            raise UserError(
                f"stage {job.name}: its checkpoints in {job.folder} were not written by this stage ({found}); use "
                "another --out, or --overwrite to begin again"
            )
        if meta["data"]["fingerprint"] != job.fingerprint:
            raise UserError(
                f"stage {job.name}: its checkpoints in {job.folder} were trained on other data (or with another batch "
                "size or seed); use another --out, or --overwrite to begin again"
            )
        start = int(meta["data"]["step"])
        self.tokens_seen = int(meta["data"]["tokens_seen"])
        self.validation = dict(meta.get("validation") or {})
        self.monitor.resume(meta["clocks"], start)
        source = f" from a {self.checkpointer.restored_from}" if self.checkpointer.restored_from else ""
        self.monitor.message(f"resuming at step {start} of {job.steps}{source}")
        return state, start

    def _loop(self, state: PyTree, start: int) -> tuple[PyTree, Metrics]:
        job = self.job
        unread: tuple[int, Any] | None = None  # the latest step, whose metrics are still on the device
        last: Metrics = {}
        for step in range(start + 1, job.steps + 1):
            state, pending = self.advance(state, step)
            with self.monitor.phase("step", step):
                if unread is not None:  # read one step late, while the device runs the next step
                    self._log(unread[0], self.read(unread[1]))
                unread = step, pending
                stopping = self.stop.agreed(step)
                saving = stopping or self.saves.due(step) or step == job.steps or self._is_permanent(step)
                validating, asking = self._validation_due(step), self._asking_due(step)
                replicating = not saving and self._replica_due(step)
                reading = saving or validating or asking or replicating
                if reading:
                    last = self.read(pending)
            if validating:
                last |= self._validate(state, step)
            if asking:
                last |= self._ask(state, step)
            if saving:
                final = stopping or step == job.steps or self._is_permanent(step)
                waited = self._await_previous_save(step, final)
            if reading:  # metrics are written before the checkpoint commits, so a kill loses none
                self._log(step, last)
                unread = None
            if saving:
                self._save(step, state, waited, report=not stopping and step < job.steps)
            elif replicating:
                with self.monitor.phase("checkpoint", step):
                    self.checkpointer.replicate(step, state, self._meta(step))
            if stopping and step < job.steps:
                self.checkpointer.wait()
                raise Stopped(f"{job.name}: stopped at step {step} of {job.steps}, which is saved; run again to resume")
        return state, last

    def _log(self, step: int, metrics: Metrics) -> None:
        self.monitor.log(step, {**metrics, "goodput": self.monitor.ledger.goodput()})
        self.check(metrics, step)

    def _await_previous_save(self, step: int, final: bool) -> float:
        """Waits for the save in progress unless this one is to be skipped instead; returns the seconds.

        This comes before the step's metrics are written: with every step saved, a killed run repeats at most one step
        that its metrics have.
        """
        before = self.checkpointer.blocked_seconds
        if final or self.job.checkpoints.when_busy == "wait":
            with self.monitor.phase("checkpoint", step):
                self.checkpointer.wait()
        return self.checkpointer.blocked_seconds - before

    def _save(self, step: int, state: PyTree, waited: float, report: bool) -> None:
        with self.monitor.phase("checkpoint", step):
            before = self.checkpointer.blocked_seconds
            if self.checkpointer.save(step, state, self._meta(step)):
                self.monitor.checkpoint_saved()
            if report:
                self._report_saving(step, waited + self.checkpointer.blocked_seconds - before)

    def _meta(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint of this step."""
        return {
            **self.job.meta,
            "data": {"fingerprint": self.job.fingerprint, "step": step, "tokens_seen": self.tokens_seen},
            "validation": self.validation,
            "clocks": self.monitor.clocks(),
        }

    def _replica_due(self, step: int) -> bool:
        c = self.job.checkpoints
        return c.replica is not None and step % c.replica_every == 0

    def _describe_saving(self) -> str:
        """What each checkpoint is about to write, and how often."""
        c = self.job.checkpoints
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.abstract))
        how_often = "each step" if self.saves.every == 1 else f"every {self.saves.every} steps"
        return f"a checkpoint is {short_number(size)}B, saved after {how_often}; the newest {c.latest} are kept"

    def _report_saving(self, step: int, waited: float) -> None:
        """Says once how long a save takes; and that the interval grows, where training waits for saves."""
        self._saved += 1
        written = self.checkpointer.write_seconds
        if self._saved == 2 and written is not None:
            self.monitor.message(f"a checkpoint takes {written:.2g} s to write; training waited {waited:.2g} s for it")
        if self.saves.adapt(step, waited):
            self.monitor.message(
                f"saving takes {written or waited:.2g} s and a step {self.saves.step_seconds:.2g} s: from now on every "
                f"{self.saves.every} steps are saved (checkpoints.every=1 saves each step)"
            )

    def _is_permanent(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept permanently; such steps are saved independently of `every`."""
        c = self.job.checkpoints
        return any(every and step % every == 0 for every in (c.keep_every, c.history))

    def _validation_due(self, step: int) -> bool:
        every = self.job.validate_every
        return self.job.validates and (step == self.job.steps or bool(every and step % every == 0))

    def _asking_due(self, step: int) -> bool:
        every = self.job.ask_every
        return every is not None and (step == self.job.steps or step % every == 0)

    def _ask(self, state: PyTree, step: int) -> dict[str, float]:
        """The scores of the benchmarks after `step`."""
        assert self.job.ask is not None
        (trained,) = self.trained(state).values()
        with self.monitor.phase("evaluate", step):
            scores = self.job.ask(trained.params, step)
        shown = ", ".join(f"{name.partition('/')[2]} {value:.4g}" for name, value in scores.items())
        self.monitor.message(f"step {step}: {shown}")
        return scores

    def validate_first(self, state: PyTree, known: Metrics) -> None:
        """Validates the parameters before the first update and writes the metrics line of step 0, with those metrics
        that are `known` there.

        A run that is killed before its first checkpoint writes it again.
        """
        metrics = {**known, **self._validate(state, 0)}
        self.monitor.metrics.write(0, {**metrics, "goodput": self.monitor.ledger.goodput()})

    def _validate(self, state: PyTree, step: int) -> dict[str, float]:
        """The validation metrics of the parameters after `step`, also kept for checkpoints."""
        with self.monitor.phase("evaluate", step):
            scores, summary = self.validate(state, step)
        self.validation = {"validation_step": step, **{f"validation_{name}": value for name, value in scores.items()}}
        self.monitor.message(f"step {step}: held-out {summary}")
        return self.validation


def all_finite(tree: PyTree, mesh: jax.sharding.Mesh) -> bool:
    """Whether every number of a tree of arrays is finite; all processes get the same result."""

    def check(leaves: list[jax.Array]) -> jax.Array:
        return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))

    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return not leaves or bool(jax.device_get(jax.jit(check, out_shardings=everywhere)(leaves)))


def describe_mesh(mesh: jax.sharding.Mesh) -> str:
    """The mesh axes of size above 1, in the notation of recipes."""
    split = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1]
    return ",".join(split) or "one device"
