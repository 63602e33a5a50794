"""Writes rollouts: prompts answered and judged, at once or ahead of the updates in a thread of its own.

    prompts of batch `drawn` → answers of a policy → scores → (groups that teach nothing replaced) → Rollout

A rollout is a pure function of the policy, the stage's seed, its number and how many batches of prompts were drawn
before it. So it does not matter when, or by which thread, it is written, and a run that was killed writes it again.
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
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import Engine, rollout
from easylm_jax.decode.rollout import Rollout
from easylm_jax.rewards.scorer import RewardScorer

PyTree = Any


@dataclasses.dataclass(frozen=True)
class CollectedRollout:
    """A rollout, how many batches of prompts were drawn up to and with it, and what to log of its making."""

    made: Rollout
    prompt_batches_used: int
    line: dict[str, Any]


class RolloutCollector:
    """Writes the rollouts of a stage on the devices of `mesh`."""

    def __init__(
        self,
        stage: RL,
        engine: Engine,
        judge: RewardScorer,
        loader: Loader,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
    ):
        self.stage, self.engine, self.judge, self.loader, self.tokenizer = stage, engine, judge, loader, tokenizer
        self.mesh = mesh
        self.ends = rollout.end_ids(loader.cache, tokenizer)
        self.stopping = threading.Event()

    def write(self, policy: PyTree, number: int, prompt_batches_used: int) -> CollectedRollout:
        """Rollout `number` by these parameters, from the batch of prompts after the first `prompt_batches_used`."""
        stage = self.stage
        most = stage.rollout_attempts
        parts: list[Rollout] = []
        line: dict[str, Any] = {}
        sampling = 0.0
        useful = 0
        for part in range(most):
            began = time.perf_counter()
            made = rollout.sample(
                self.engine, policy, self.loader.batch_at(prompt_batches_used + part), stage.sampling,
                samples=stage.samples, seed=rollout.seed_of(stage.seed, number, part), tokenizer=self.tokenizer,
                end_ids=self.ends, cancelled=self.stopping.is_set,
            )  # fmt: skip
            sampling += time.perf_counter() - began
            began = time.perf_counter()
            _add(line, self.judge(made, number, part))
            _add(line, {"judge_seconds": time.perf_counter() - began})
            parts.append(made)
            useful += int(self._teaches(made).sum())
            if useful >= stage.batch:
                break
        tokens, answers = (sum(int(x.lengths.sum()) for x in parts), sum(x.rows for x in parts))
        line |= {
            "rollout_seconds": sampling, "rollouts_per_second": answers / sampling,
            "response_tokens_per_second": tokens / sampling,
        }  # fmt: skip
        made = parts[0]
        if most > 1:
            line |= {"batches_drawn": len(parts), "useful_groups": useful / (len(parts) * stage.batch)}
            made = self._chosen(parts)
        return CollectedRollout(made, prompt_batches_used + len(parts), line)

    def _teaches(self, made: Rollout) -> np.ndarray:
        """Which groups have answers of unequal worth, bool [prompts]."""
        return rollout.nonzero_variance(made.final(self.stage.reward).reshape(-1, self.stage.samples))

    def _chosen(self, parts: list[Rollout]) -> Rollout:
        """As many groups as a rollout has, in the order drawn: those that teach first, then, if need be, others."""
        whole = rollout.concatenate(parts)
        order = np.argsort(~self._teaches(whole), kind="stable")[: self.stage.batch]
        return rollout.select(whole, (order[:, None] * whole.samples + np.arange(whole.samples)).reshape(-1))


def _add(line: dict[str, Any], more: dict[str, float]) -> None:
    """Adds what another part of a rollout logs: seconds and counts are summed, everything else is of the last part."""
    for name, value in more.items():
        line[name] = value + (line.get(name, 0) if name.endswith(("_seconds", "_timeouts")) else 0)


class AsyncCollector:
    """Rollouts that are asked for before they are needed, written in order.

    With `overlapping` a thread writes them while the updates of earlier ones go on. Without, each is written when it is
    taken, by the policy that was asked: the same rollouts, but no time is won. Two threads must not start programs of
    several devices, or of several processes, on the same devices: their collectives could wait for each other.
    """

    def __init__(self, writer: RolloutCollector, prompt_batches_used: int, overlapping: bool = True):
        self.writer, self.prompt_batches_used = writer, prompt_batches_used
        self._thread = None
        if overlapping:
            self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._coming: dict[int, Callable[[], CollectedRollout]] = {}

    def submit(self, policy: PyTree, number: int) -> None:
        """Asks for rollout `number`, the one after the last that was asked for."""
        if self._thread is None:
            self._coming[number] = functools.partial(self._write, policy, number)
        else:
            self._coming[number] = self._thread.submit(self._write, policy, number).result

    def take(self, number: int) -> CollectedRollout:
        """Waits for rollout `number`, or writes it; raises what its making raised."""
        return self._coming.pop(number)()

    def close(self) -> None:
        """Ends the thread; what it was writing is thrown away."""
        if self._thread is not None:
            self.writer.stopping.set()
            self._thread.shutdown(cancel_futures=True)
            self.writer.stopping.clear()

    def _write(self, policy: PyTree, number: int) -> CollectedRollout:
        mesh = self.writer.mesh
        alone = jax.default_device(mesh.devices.flat[0]) if mesh.size == 1 else contextlib.nullcontext()
        with jax.set_mesh(mesh), alone:
            written = self.writer.write(policy, number, self.prompt_batches_used)
        self.prompt_batches_used = written.prompt_batches_used
        return written
