"""The state and the job of a reinforcement learning stage: what a step changes, and what stays fixed."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from easylm_jax.config import RL
from easylm_jax.data import Cache, Loader
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode.generator import Generator
from easylm_jax.rewards.scorer import RewardScorer
from easylm_jax.train.loop import Job
from easylm_jax.train.rl.exchange import Exchange
from easylm_jax.train.rl.programs import RLPrograms
from easylm_jax.train.state import TrainStateInit
from easylm_jax.train.step import State

PyTree = Any
Leaf = Any  # an array, or its shape or its sharding


class RLState(NamedTuple):
    """Everything that a step changes.

    Attributes:
        step: int32, rollouts trained on.
        params, opt, rng: the policy's parameters, optimizer state and random key, after `updates` updates.
        updates: int32, policy updates.
        value: the train state of the value model; None without one.
        kl: float32, the KL coefficient.
        prompt_batches_used: int32, prompt batches that rollouts were sampled from.
        stale_policies: the policy parameters, as the engine takes them, of the last `asynchronous` steps. The next
            rollouts are sampled from them; a resumed run samples those rollouts again.
    """

    step: Leaf
    params: PyTree
    opt: PyTree
    rng: Leaf
    updates: Leaf
    value: State | None
    kl: Leaf
    prompt_batches_used: Leaf
    stale_policies: tuple[PyTree, ...]

    @property
    def policy(self) -> State:
        """The train state of the policy."""
        return State(self.updates, self.params, self.opt, self.rng)


REPLICATED = ("step", "rng", "updates", "kl", "prompt_batches_used")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutJob(Job):
    """A stage that trains on rollouts. `frozen` and the reference parameters are on the devices already.

    `rollout_layout` is the sharding of the policy's parameters on the devices that sample rollouts, and `decode_mesh`
    the mesh on which those devices decode; the engine reshards the parameters from the one to the other. `exchange` is
    given if processes of their own sample rollouts.
    """

    stage: RL
    policy: TrainStateInit
    value: TrainStateInit | None
    programs: RLPrograms
    rollout_layout: PyTree
    decode_mesh: jax.sharding.Mesh
    frozen: PyTree
    reference: PyTree
    scorer: RewardScorer
    generator: Generator
    loader: Loader
    held_out: Cache | None
    tokenizer: Tokenizer
    exchange: Exchange | None
