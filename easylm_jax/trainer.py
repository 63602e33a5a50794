"""The loop for stages that read data: batches in, one jitted step, one metrics line and one checkpoint out.

    batch_at(step) → devices → step(state, batch, frozen) → metrics line → checkpoint

The loop knows no model and no objective; `experiment.py` puts a `Job` together and `train` runs it to its end, from
wherever the newest checkpoint is. Everything that decides the next step is in the checkpoint or a pure function of it,
so a run that was killed goes on bit for bit as if it had not been.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from easylm_jax import sharding
from easylm_jax.checkpoint import Checkpointer, Retention
from easylm_jax.config import Checkpoints, Monitoring
from easylm_jax.data import Cache, Loader
from easylm_jax.monitor import Monitor, StopRequest, Throughput, model_flops_per_token, total_peak_flops
from easylm_jax.monitor.metrics import FILE_NAME as METRICS_FILE
from easylm_jax.monitor.metrics import last_line
from easylm_jax.optimizer import Optimizer
from easylm_jax.steps import REPLICATED_STATE, Batch, Objective, State, make_score_step, make_train_step
from models.config import DecoderConfig
from models.errors import UserError

PyTree = Any


class Stopped(Exception):
    """A signal asked the run to stop; the step it was at is saved."""


@dataclasses.dataclass(frozen=True)
class Job:
    """All that one stage of training needs.

    `abstract_state` has the shapes and types of the train state; `fresh_state(layout)` makes the one before step 0 on
    the shardings it is given. `frozen` is on the devices already. `score` is the objective for held-out data. `meta`
    goes into every checkpoint as it is (the resolved configuration, the model).
    """

    name: str
    folder: Path
    mesh: jax.sharding.Mesh
    model: DecoderConfig
    rules: sharding.Rules
    objective: Objective
    score: Objective
    optimizer: Optimizer
    abstract_state: State
    fresh_state: Callable[[State], State]
    frozen: PyTree
    loader: Loader
    held_out: Cache | None
    validate_every: int | None
    steps: int
    accumulate: int
    checkpoints: Checkpoints
    monitoring: Monitoring
    meta: Mapping[str, Any]


def train(job: Job) -> dict[str, Any]:
    """Runs a job from its newest checkpoint (or its start) to its last step; returns the final metrics.

    Raises `Stopped` after a signal, and `UserError` for what the user can mend.
    """
    monitor = Monitor(
        job.folder, job.name, job.steps, tensorboard=job.monitoring.tensorboard, wandb=job.monitoring.wandb,
        config=job.meta["config"], watchdog=job.monitoring.watchdog, heartbeat=job.monitoring.heartbeat_seconds,
    )  # fmt: skip
    c = job.checkpoints
    checkpointer = Checkpointer(
        job.folder / "checkpoints", Retention(c.latest, c.keep_every, c.history),
        when_busy=c.when_busy, deadline_seconds=c.deadline_seconds,
    )  # fmt: skip
    throughput = _throughput(job)
    with jax.set_mesh(job.mesh), monitor, checkpointer, StopRequest(monitor.message) as stop:
        return _Run(job, monitor, checkpointer, stop, throughput).to_the_end()


def _throughput(job: Job) -> Throughput:
    """The meter of a stage. A CPU's peak is measured on one device, so this must come before the mesh is set."""
    per_token = model_flops_per_token(job.model, job.loader.cache.sequence_length)
    return Throughput(flops_per_token=per_token, peak_flops=total_peak_flops(list(job.mesh.devices.flat)))


class _Run:
    """One process's life in a job: what is on the device, and the helpers of the loop."""

    def __init__(
        self, job: Job, monitor: Monitor, checkpointer: Checkpointer, stop: StopRequest, throughput: Throughput
    ):
        self.job, self.monitor, self.checkpointer, self.stop = job, monitor, checkpointer, stop
        self.throughput = throughput
        abstract = job.abstract_state
        self.layout = sharding.state_shardings(abstract, job.rules, job.mesh, REPLICATED_STATE)
        self.abstract = sharding.placed(abstract, self.layout)
        everywhere = jax.sharding.NamedSharding(job.mesh, jax.sharding.PartitionSpec())
        self.rows = sharding.local_rows(job.loader.batch_rows, job.mesh)
        self.batch_layout = sharding.batch_sharding(job.mesh)
        self.step = make_train_step(
            job.objective,
            job.optimizer,
            accumulate=job.accumulate,
            shardings=(self.layout, self.batch_layout, everywhere),
        )
        self.score = make_score_step(job.score, shardings=(self.layout.params, self.batch_layout, everywhere))
        self.tokens_seen = 0
        self.read_at = 0.0
        self.validation: dict[str, float] = {}

    def to_the_end(self) -> dict[str, Any]:
        job, monitor = self.job, self.monitor
        with monitor.phase("init"):
            state, start = self._restore_or_start()
        last: dict[str, Any] = {}
        if start < job.steps:
            with monitor.phase("compile"):
                step = self._compile(state)
            batches = Prefetch(job.loader, self.rows, start, job.steps, job.mesh)
            try:
                state, last = self._loop(state, step, batches, start)
            finally:
                batches.close()
        else:
            last = last_line(job.folder / METRICS_FILE) or {}
        self.checkpointer.wait()
        if job.held_out is not None and not self._validated(job.steps):
            self._validate(state.params, job.steps)
        return {**{k: v for k, v in last.items() if isinstance(v, (int, float))}, **self.validation}

    def _restore_or_start(self) -> tuple[State, int]:
        job = self.job
        if self.checkpointer.latest_step() is None:
            return job.fresh_state(self.layout), 0
        state, meta = self.checkpointer.restore(self.abstract)
        if meta["data"]["fingerprint"] != job.loader.fingerprint:
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

    def _compile(self, state: State):
        """The step compiled for these shapes, with what it needs on a device told before it runs."""
        loader = self.job.loader
        columns = loader.batch_at(0, slice(0, 1))
        batch = {
            name: jax.ShapeDtypeStruct((loader.batch_rows, *array.shape[1:]), array.dtype, sharding=self.batch_layout)
            for name, array in columns.items()
        }
        compiled = self.step.lower(self.abstract, batch, self.job.frozen).compile()
        memory = compiled.memory_analysis()
        peak = getattr(memory, "peak_memory_in_bytes", 0) if memory else 0
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))
        self.monitor.message(
            f"{parameters:,} trained parameters, mesh {describe_mesh(self.job.mesh)}, "
            f"{peak / 2**20:,.0f} MiB a device for a step"
        )
        return compiled

    def _loop(self, state: State, step, batches: Prefetch, start: int) -> tuple[State, dict[str, Any]]:
        job, monitor = self.job, self.monitor
        pending: _Pending | None = None  # the newest step, whose metrics are still on the device
        last: dict[str, Any] = {}
        for number in range(start + 1, job.steps + 1):
            with monitor.phase("data", number):
                batch = next(batches)
            with monitor.phase("step", number):
                began = time.perf_counter()
                state, metrics = step(state, batch, job.frozen)
                if pending is not None:  # read one step late, while the device works on the next
                    self._write(pending.number, self._read(pending))
                pending = _Pending(number, metrics, began)
                stopping = self.stop.agreed(number)
                saving = stopping or number % job.checkpoints.every == 0 or number == job.steps or self._stays(number)
                validating = self._validation_due(number)
                if saving or validating:
                    last = self._read(pending)
            if validating:
                last |= self._validate(state.params, number)
            if saving or validating:  # the line is written before its checkpoint commits, so a kill loses none
                self._write(number, last)
                pending = None
            if saving:
                self._save(number, state, final=stopping or number == job.steps)
            if stopping and number < job.steps:
                self.checkpointer.wait()
                raise Stopped(
                    f"{job.name}: stopped at step {number} of {job.steps}, which is saved; run again to go on"
                )
        return state, last

    def _read(self, pending: _Pending) -> dict[str, Any]:
        """Waits for a step and returns its metrics line."""
        host = {name: value.item() for name, value in jax.device_get(dict(pending.metrics)).items()}
        # A step that was sent while the one before it still ran begins when that one was read.
        now = time.perf_counter()
        seconds, self.read_at = now - max(pending.began, self.read_at), now
        tokens = int(host.pop("tokens"))
        self.tokens_seen += tokens
        self.throughput.update(tokens, seconds)
        return {**host, "tokens": self.tokens_seen, "seconds": seconds, **self.throughput.metrics()}

    def _write(self, number: int, line: dict[str, Any]) -> None:
        self.monitor.log(number, {**line, "goodput": self.monitor.ledger.goodput()})
        self.job.optimizer.check(line, number)

    def _save(self, number: int, state: State, final: bool) -> None:
        with self.monitor.phase("checkpoint", number):
            meta = {
                **self.job.meta,
                "data": {"fingerprint": self.job.loader.fingerprint, "step": number, "tokens_seen": self.tokens_seen},
                "validation": self.validation,
                "clocks": self.monitor.clocks(),
            }
            if final or self._stays(number):
                self.checkpointer.wait()  # so that what is to stay is never what is skipped
            if self.checkpointer.save(number, state, meta):
                self.monitor.checkpoint_saved()

    def _stays(self, number: int) -> bool:
        """Whether a step is one of those that are kept for good, which are saved whatever `every` is."""
        c = self.job.checkpoints
        return any(every and number % every == 0 for every in (c.keep_every, c.history))

    def _validation_due(self, number: int) -> bool:
        every = self.job.validate_every
        return self.job.held_out is not None and (number == self.job.steps or bool(every and number % every == 0))

    def _validated(self, number: int) -> bool:
        return self.validation.get("validation_step") == number

    def _validate(self, params: PyTree, number: int) -> dict[str, float]:
        """Scores the held-out rows with the parameters after `number` steps; sums before means."""
        job = self.job
        assert job.held_out is not None
        with self.monitor.phase("evaluate", number):
            means = evaluate(self.score, params, job.frozen, job.held_out, job.loader.batch_rows, job.mesh)
        self.validation = {"validation_step": number, **{f"validation_{name}": value for name, value in means.items()}}
        self.monitor.message(f"step {number}: held-out loss {means['loss']:.4f}")
        return self.validation


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that was sent to the device."""

    number: int
    metrics: Mapping[str, jax.Array]
    began: float


def evaluate(
    score, params: PyTree, frozen: PyTree, cache: Cache, batch_rows: int, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Mean metrics over all rows of a cache; `score` is a jitted score step."""
    sums: dict[str, np.ndarray] = {}
    for local in cache.in_order(batch_rows, sharding.local_rows(batch_rows, mesh)):
        batch = sharding.place_batch(local, batch_rows, mesh)
        for name, pair in jax.device_get(score(params, batch, frozen)).items():
            sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
    return {name: float(total / count) if count else float(total) for name, (total, count) in sums.items()}


class Prefetch(Iterator[Batch]):
    """Global batches on the devices, read one ahead by a thread while the current step runs."""

    def __init__(self, loader: Loader, rows: slice, start: int, stop: int, mesh: jax.sharding.Mesh, depth: int = 2):
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._read, args=(loader, rows, start, stop, mesh), name="prefetch", daemon=True
        )
        self._thread.start()

    def _read(self, loader: Loader, rows: slice, start: int, stop: int, mesh: jax.sharding.Mesh) -> None:
        try:
            for step in range(start, stop):
                batch = sharding.place_batch(loader.batch_at(step, rows), loader.batch_rows, mesh)
                if not self._put(batch):
                    return
        except BaseException as error:  # whatever it was belongs to the thread that trains
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()


def describe_mesh(mesh: jax.sharding.Mesh) -> str:
    """The axes that split something, as a recipe writes them."""
    split = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1]
    return ",".join(split) or "one device"
