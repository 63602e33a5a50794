"""Collects rollouts: responses sampled and scored, at once or ahead of the updates in a thread of its own.

    prompt batch → responses of a policy → scores → (zero-variance groups replaced) → Rollout

A rollout is a pure function of the policy, the stage's seed, its step and how many batches of prompts were used before
it. So it does not matter when, or by which thread, it is collected, and a resumed run collects it again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable
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
    """A rollout, how many batches of prompts were used up to and with it, and the metrics of its collection."""

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
        """The rollout of `step` by these parameters, from the prompts after the first `prompt_batches_used` batches."""
        stage = self.stage
        attempts: list[Rollout] = []
        metrics: dict[str, Any] = {}
        sampling = 0.0
        useful = 0
        for attempt in range(stage.rollout_attempts):
            began = time.perf_counter()
            sampled = self.generator.sample(
                policy, self.loader.cache, self.loader.batch_at(prompt_batches_used + attempt), samples=stage.samples,
                seed=rollout.seed_of(stage.seed, step, attempt), greedy=False, cancelled=self.stopping.is_set,
            )  # fmt: skip
            sampling += time.perf_counter() - began
            began = time.perf_counter()
            _add(metrics, self.scorer(sampled, step, attempt))
            _add(metrics, {"judge_seconds": time.perf_counter() - began})
            attempts.append(sampled)
            useful += int(self._nonzero_variance(sampled).sum())
            if useful >= stage.batch:
                break
        tokens, responses = (sum(int(x.lengths.sum()) for x in attempts), sum(x.rows for x in attempts))
        metrics |= {
            "rollout_seconds": sampling, "rollouts_per_second": responses / sampling,
            "response_tokens_per_second": tokens / sampling,
        }  # fmt: skip
        collected = attempts[0]
        if stage.rollout_attempts > 1:
            metrics |= {"batches_drawn": len(attempts), "useful_groups": useful / (len(attempts) * stage.batch)}
            collected = self._chosen(attempts)
        return CollectedRollout(collected, prompt_batches_used + len(attempts), metrics)

    def _nonzero_variance(self, sampled: Rollout) -> np.ndarray:
        """Which groups have responses of unequal reward, bool [prompts]."""
        return rollout.nonzero_variance(sampled.final(self.stage.reward).reshape(-1, self.stage.samples))

    def _chosen(self, attempts: list[Rollout]) -> Rollout:
        """As many groups as a rollout has, in the order sampled: zero-variance groups only where others are too few."""
        whole = rollout.concatenate(attempts)
        order = np.argsort(~self._nonzero_variance(whole), kind="stable")[: self.stage.batch]
        return rollout.select(whole, (order[:, None] * whole.samples + np.arange(whole.samples)).reshape(-1))


def _add(metrics: dict[str, Any], more: dict[str, float]) -> None:
    """Adds the metrics of another attempt: seconds and counts are summed, everything else is of the last attempt."""
    for name, value in more.items():
        metrics[name] = value + (metrics.get(name, 0) if name.endswith(("_seconds", "_timeouts")) else 0)


class AsyncCollector:
    """Rollouts that are asked for before they are needed, collected in order.

    With `overlapping` a thread collects them while the updates of earlier ones go on. Without, each is collected when
    it is taken, by the policy that was asked: the same rollouts, but no time is won. Two threads must not start
    programs of several devices, or of several processes, on the same devices: their collectives could wait for each
    other.
    """

    def __init__(self, collector: RolloutCollector, prompt_batches_used: int, overlapping: bool = True):
        self.collector, self.prompt_batches_used = collector, prompt_batches_used
        self._thread = None
        if overlapping:
            self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._coming: dict[int, Callable[[], CollectedRollout]] = {}

    def submit(self, policy: PyTree, step: int) -> None:
        """Asks for the rollout of `step`, the one after the last that was asked for."""
        if self._thread is None:
            self._coming[step] = functools.partial(self._collect, policy, step)
        else:
            self._coming[step] = self._thread.submit(self._collect, policy, step).result

    def take(self, step: int) -> CollectedRollout:
        """Waits for the rollout of `step`, or collects it; raises what its collection raised."""
        return self._coming.pop(step)()

    def close(self) -> None:
        """Ends the thread; the rollout that it was collecting is thrown away."""
        if self._thread is not None:
            self.collector.stopping.set()
            self._thread.shutdown(cancel_futures=True)
            self.collector.stopping.clear()

    def _collect(self, policy: PyTree, step: int) -> CollectedRollout:
        mesh = self.collector.mesh
        alone = jax.default_device(mesh.devices.flat[0]) if mesh.size == 1 else contextlib.nullcontext()
        with jax.set_mesh(mesh), alone:
            collected = self.collector.collect(policy, step, self.prompt_batches_used)
        self.prompt_batches_used = collected.prompt_batches_used
        return collected
