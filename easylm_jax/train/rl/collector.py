"""Collects rollouts: samples and scores responses, either synchronously or in a thread that runs ahead of the updates.

    prompt batch → responses of a policy → scores → (zero-variance groups replaced) → Rollout

A rollout is a pure function of the policy, the stage's seed, its step and the number of prompt batches used before it.
It therefore does not matter when or in which thread it is collected, and a resumed run reproduces it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from easylm_jax.config import RL
from easylm_jax.data import Loader
from easylm_jax.decode import rollout
from easylm_jax.decode.generator import Generator
from easylm_jax.decode.rollout import Rollout
from easylm_jax.rewards.scorer import RewardScorer

PyTree = Any


@dataclasses.dataclass(frozen=True)
class CollectedRollout:
    """A rollout, the number of prompt batches used so far (including its own), and the metrics of its collection."""

    rollout: Rollout
    prompt_batches_used: int
    metrics: dict[str, Any]


class RolloutCollector:
    """Collects the rollouts of a stage on the devices of `mesh`."""

    def __init__(
        self, stage: RL, generator: Generator, scorer: RewardScorer, loader: Loader, mesh: jax.sharding.Mesh
    ):  # fmt: skip
        self.stage, self.generator, self.scorer, self.loader, self.mesh = stage, generator, scorer, loader, mesh
        self.stopping = threading.Event()

    def collect(self, policy: PyTree, step: int, prompt_batches_used: int) -> CollectedRollout:
        """Collects the rollout of `step` with these parameters, starting at prompt batch `prompt_batches_used`."""
        stage = self.stage
        attempts: list[Rollout] = []
        metrics: dict[str, Any] = {}
        sampling = 0.0
        useful = 0
        for attempt in range(stage.rollout_attempts):
            began = time.perf_counter()
            sampled = self.generator.sample(
                policy, self.loader.cache, self.loader.batch_at(prompt_batches_used + attempt), samples=stage.samples,
                seed=rollout.rollout_seed(stage.seed, step, attempt), greedy=False, cancelled=self.stopping.is_set,
                routing=stage.router_replay,
            )  # fmt: skip
            sampling += time.perf_counter() - began
            began = time.perf_counter()
            _add(metrics, self.scorer(sampled, step, attempt))
            _add(metrics, {"judge_seconds": time.perf_counter() - began})
            attempts.append(sampled)
            useful += int(self._nonzero_variance(sampled).sum())
            if useful >= stage.batch:
                break
        tokens, responses = sum(int(x.lengths.sum()) for x in attempts), sum(x.rows for x in attempts)
        metrics |= {
            "rollout_seconds": sampling, "rollouts_per_second": responses / sampling,
            "response_tokens_per_second": tokens / sampling,
        }  # fmt: skip
        collected = attempts[0]
        if stage.rollout_attempts > 1:
            metrics |= {"batches_drawn": len(attempts), "useful_groups": useful / (len(attempts) * stage.batch)}
            collected = self._select_groups(attempts)
        return CollectedRollout(collected, prompt_batches_used + len(attempts), metrics)

    def _nonzero_variance(self, sampled: Rollout) -> np.ndarray:
        """Whether the rewards of each group differ, bool [prompts]."""
        return rollout.nonzero_variance(sampled.final(self.stage.reward).reshape(-1, self.stage.samples))

    def _select_groups(self, attempts: list[Rollout]) -> Rollout:
        """The first `stage.batch` groups with non-zero variance, then zero-variance groups if those are too few."""
        candidates = rollout.concatenate(attempts)
        groups = np.argsort(~self._nonzero_variance(candidates), kind="stable")[: self.stage.batch]
        rows = groups[:, None] * candidates.samples + np.arange(candidates.samples)
        return rollout.select(candidates, rows.reshape(-1))


def _add(metrics: dict[str, Any], more: dict[str, float]) -> None:
    """Adds the metrics of another attempt: seconds and timeouts are summed, all others are of the last attempt."""
    for name, value in more.items():
        metrics[name] = value + (metrics.get(name, 0) if name.endswith(("_seconds", "_timeouts")) else 0)


class AsyncCollector:
    """Collects rollouts that are submitted before they are needed, in order.

    With `overlapping`, a thread collects them while earlier rollouts are trained on. Without it, each rollout is
    collected when it is taken, by the policy it was submitted with: the results are the same, but nothing overlaps.
    Overlapping is not safe if both threads launch multi-device programs on the same devices, because their collectives
    can deadlock.
    """

    def __init__(self, collector: RolloutCollector, prompt_batches_used: int, overlapping: bool = True):
        self.collector, self.prompt_batches_used = collector, prompt_batches_used
        self._thread = None
        if overlapping:
            self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._submitted: dict[int, Callable[[], CollectedRollout]] = {}

    def submit(self, policy: PyTree, step: int) -> None:
        """Requests the rollout of `step` from this policy; steps must be submitted in order."""
        if self._thread is None:
            self._submitted[step] = functools.partial(self._collect, policy, step)
        else:
            self._submitted[step] = self._thread.submit(self._collect, policy, step).result

    def collect_now(self, step: int) -> None:
        """Collects the rollout of `step` before it is taken, in this thread."""
        collected = self._submitted.pop(step)()
        self._submitted[step] = lambda: collected

    def take(self, step: int) -> CollectedRollout:
        """Waits for the rollout of `step`, or collects it now; re-raises any error of its collection."""
        return self._submitted.pop(step)()

    def between_rollouts(self, sample: Callable[[], Rollout]) -> Rollout:
        """What `sample` returns, which uses the devices after the rollouts that are submitted."""
        return sample() if self._thread is None else self._thread.submit(sample).result()

    def close(self) -> None:
        """Stops the thread and discards the rollout it was collecting."""
        if self._thread is not None:
            self.collector.stopping.set()
            self._thread.shutdown(cancel_futures=True)
            self.collector.stopping.clear()

    def _collect(self, policy: PyTree, step: int) -> CollectedRollout:
        with on_devices(self.collector.mesh):
            collected = self.collector.collect(policy, step, self.prompt_batches_used)
        self.prompt_batches_used = collected.prompt_batches_used
        return collected


@contextlib.contextmanager
def on_devices(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Runs what samples rollouts on the devices of this mesh."""
    one_device = jax.default_device(mesh.devices.flat[0]) if mesh.size == 1 else contextlib.nullcontext()
    with jax.set_mesh(mesh), one_device:
        yield
