"""What a stage of reinforcement learning is made of: the state that a step changes, and all that stays the same."""

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
from easylm_jax.train.rl.programs import RLPrograms
from easylm_jax.train.state import TrainStateInit
from easylm_jax.train.step import State

PyTree = Any


class RLState(NamedTuple):
    """All that a step changes. `step` int32 counts rollouts; `params`, `opt`, `rng` are the policy's, after `updates`
    updates; `value` is the value model's whole train state (None without one); `kl` float32 is the KL coefficient.
    `prompt_batches_used` counts the batches of prompts that rollouts were generated from. `stale_policies` are the
    parameters, as the engine takes them, of the last `asynchronous` steps before this one, by which the next rollouts
    are generated: a resumed run generates them again.
    """

    step: jax.Array
    params: PyTree
    opt: PyTree
    rng: jax.Array
    updates: jax.Array
    value: State | None
    kl: jax.Array
    prompt_batches_used: jax.Array
    stale_policies: tuple[PyTree, ...]

    @property
    def policy(self) -> State:
        """The policy as a train step knows it."""
        return State(self.updates, self.params, self.opt, self.rng)


REPLICATED = ("step", "rng", "updates", "kl", "prompt_batches_used")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutJob(Job):
    """A stage that writes its own data. `frozen` and the reference's parameters are on the devices already.

    `writing_layout` is where the policy as it writes lies for the devices that write, and `decode_mesh` the shape in
    which they do it; the engine brings the parameters from the one to the other.
    """

    stage: RL
    policy: TrainStateInit
    value: TrainStateInit | None
    programs: RLPrograms
    writing_layout: PyTree
    decode_mesh: jax.sharding.Mesh
    frozen: PyTree
    reference: PyTree
    judge: RewardScorer
    generator: Generator
    loader: Loader
    held_out: Cache | None
    tokenizer: Tokenizer
