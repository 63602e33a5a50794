"""The training loop of stages that read prepared data.

    batch_at(step) → devices → step(state, batch, frozen) → metrics line → checkpoint

It is independent of the model and the objective: `stage.py` makes a `TrainJob`, and `train` runs it (`loop.py`).
"""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from easylm_jax.data import Cache, Loader
from easylm_jax.objectives.base import Batch, Objective
from easylm_jax.runtime import sharding
from easylm_jax.runtime.compiler import Options, peak_bytes
from easylm_jax.runtime.monitor import Throughput, model_flops_per_token, total_peak_flops
from easylm_jax.train.loop import Job, Loop, Metrics, describe_mesh
from easylm_jax.train.optimizer import Optimizer
from easylm_jax.train.step import State, make_score_step, make_train_step
from models.config import DecoderConfig
from models.flops import vision_flops

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """A stage that reads prepared data. `frozen` is on the devices already; `score` is the validation objective."""

    model: DecoderConfig
    objective: Objective
    score: Objective
    optimizer: Optimizer
    frozen: PyTree
    loader: Loader
    held_out: Cache | None
    accumulate: int
    options: Options | None


def train(job: TrainJob) -> Metrics:
    """Runs a job from its latest checkpoint (or from scratch) to its last step; returns the final metrics."""
    # The peak FLOPs of a CPU are measured on one device, so this comes before the mesh is set.
    cache = job.loader.cache
    per_token = model_flops_per_token(job.model, cache.sequence_length)
    if job.model.vision is not None and cache.manifest.get("row_crops"):
        seen = vision_flops(job.model, cache.manifest["row_crops"], cache.manifest["row_patch_tokens"])
        per_token += seen / cache.sequence_length  # of the forward pass, as the tokens' own
    throughput = Throughput(flops_per_token=per_token, peak_flops=total_peak_flops(list(job.mesh.devices.flat)))
    return _DataLoop(job, throughput).run()


class _DataLoop(Loop):
    """Trains on batches that are prefetched; metrics are read one step late."""

    job: TrainJob

    def __init__(self, job: TrainJob, throughput: Throughput):
        super().__init__(job)
        self.throughput = throughput
        everywhere = jax.sharding.NamedSharding(job.mesh, jax.sharding.PartitionSpec())
        self.rows = sharding.local_rows(job.loader.batch_rows, job.mesh)
        self.batch_layout = sharding.batch_sharding(job.mesh)
        self.step: Any = make_train_step(  # a jitted function, which is lowered below
            job.objective,
            job.optimizer,
            accumulate=job.accumulate,
            shardings=(job.layout, self.batch_layout, everywhere),
            options=job.options,
        )
        self.score = make_score_step(
            job.score, shardings=(job.layout.params, self.batch_layout, everywhere), options=job.options
        )
        self.read_at = 0.0

    def prepare(self, state: State, start: int) -> None:
        """Compiles the step for the shapes of a batch, prints its memory per device, and starts reading data."""
        loader = self.job.loader
        with self.monitor.phase("compile"):
            columns = loader.batch_at(0, slice(0, 1))
            batch = {
                name: jax.ShapeDtypeStruct((loader.batch_rows, *x.shape[1:]), x.dtype, sharding=self.batch_layout)
                for name, x in columns.items()
            }
            self.compiled = self.step.lower(self.abstract, batch, self.job.frozen).compile()
        peak = peak_bytes(self.compiled, self.job.mesh.devices.flat[0].platform)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))
        self.monitor.message(
            f"{parameters:,} trained parameters, mesh {describe_mesh(self.job.mesh)}, "
            f"{peak / 2**20:,.0f} MiB per device for a step"
        )
        self.batches = Prefetch(loader, self.rows, start, self.job.steps, self.job.mesh)

    def close(self) -> None:
        if hasattr(self, "batches"):
            self.batches.close()

    def advance(self, state: State, step: int) -> tuple[State, _Pending]:
        with self.monitor.phase("data", step):
            batch = next(self.batches)
        with self.monitor.phase("step", step):
            began = time.perf_counter()
            state, metrics = self.compiled(state, batch, self.job.frozen)
            ended = time.perf_counter() if all(value.is_ready() for value in metrics.values()) else None
        return state, _Pending(metrics, began, ended)

    def read(self, pending: _Pending) -> Metrics:
        metrics = {name: value.item() for name, value in jax.device_get(dict(pending.metrics)).items()}
        # A step that was dispatched while the previous one ran starts when the previous one was read.
        ended = pending.ended or time.perf_counter()
        seconds, self.read_at = ended - max(pending.began, self.read_at), ended
        tokens = int(metrics.pop("tokens"))
        self.tokens_seen += tokens
        self.throughput.update(tokens, seconds)
        return {**metrics, "tokens": self.tokens_seen, "seconds": seconds, **self.throughput.metrics()}

    def check(self, metrics: Metrics, step: int) -> None:
        self.job.optimizer.check(metrics, step)

    def trained(self, state: State) -> Mapping[str, State]:
        return {"model": state}

    def validate(self, state: State, step: int) -> tuple[dict[str, float], str]:
        """The mean metrics of the held-out rows, and a summary."""
        job = self.job
        assert job.held_out is not None
        means = evaluate(self.score, state.params, job.frozen, job.held_out, job.loader.batch_rows, job.mesh)
        summary = f"loss {means['loss']:.4f}"
        if "accuracy" in means and means.get("pairs"):
            half = 1.96 * math.sqrt(means["accuracy"] * (1 - means["accuracy"]) / means["pairs"])
            summary += f", accuracy {means['accuracy']:.3f} ± {half:.3f} (95 %, {means['pairs']:.0f} pairs)"
        if "confidence" in means:  # of a calibrated model it equals the accuracy
            summary += f", mean confidence {means['confidence']:.3f}"
        return means, summary


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that was dispatched to the device. `ended`: when, where it ran while it was dispatched (on a CPU)."""

    metrics: Mapping[str, jax.Array]
    began: float
    ended: float | None


def evaluate(
    score, params: PyTree, frozen: PyTree, cache: Cache, batch_rows: int, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Mean metrics over all rows of a cache; `score` is a jitted score step. Sums are added before they are divided."""
    sums: dict[str, np.ndarray] = {}
    for local in cache.in_order(batch_rows, sharding.local_rows(batch_rows, mesh)):
        batch = sharding.place_batch(local, batch_rows, mesh)
        for name, pair in jax.device_get(score(params, batch, frozen)).items():
            sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
    return {name: float(total / count) if count else float(total) for name, (total, count) in sums.items()}


class Prefetch(Iterator[Batch]):
    """Global batches on the devices, read ahead by a thread while the current step runs."""

    def __init__(
        self, loader: Loader, rows: np.ndarray, start: int, stop: int, mesh: jax.sharding.Mesh, depth: int = 2
    ):
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._read, args=(loader, rows, start, stop, mesh), name="prefetch", daemon=True
        )
        self._thread.start()

    def _read(self, loader: Loader, rows: np.ndarray, start: int, stop: int, mesh: jax.sharding.Mesh) -> None:
        try:
            for step in range(start, stop):
                batch = sharding.place_batch(loader.batch_at(step, rows), loader.batch_rows, mesh)
                if not self._put(batch):
                    return
        except BaseException as error:  # re-raised in the thread that trains
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
        """Stops the thread."""
        self._closed.set()
        self._thread.join()
