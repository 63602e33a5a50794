"""From scores to what an update trains on: advantages and returns (PPO), group advantages (GRPO), pairs (online DPO).

One class for each kind of stage. `rows` turns a rollout and what the models say of it into the rows of its updates and
a few metrics; `batch` picks the columns that reach the device. A new algorithm is a class here and a line in
`BATCH_BUILDERS`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.config import GRPO, PPO, RL, OnlineDPO
from easylm_jax.decode import rollout
from easylm_jax.decode.rollout import Rollout
from easylm_jax.objectives import (
    explained_variance,
    gae,
    group_advantages,
    importance_weights,
    kl_estimate,
    token_rewards,
    whiten,
)
from easylm_jax.objectives.base import FORWARD
from easylm_jax.runtime import chunked, sharding

Columns = dict[str, np.ndarray]
Line = dict[str, Any]


def make_batch_builder(stage: RL, mesh: jax.sharding.Mesh) -> BatchBuilder:
    """What makes the batches of a stage's updates."""
    return BATCH_BUILDERS[stage.algorithm](stage, mesh)


class BatchBuilder:
    """What the kinds share. `update_rows` is the number of rows of one update."""

    columns: tuple[str, ...] = (*FORWARD, "mask", "old_logprobs", "advantages")

    def __init__(self, stage: Any, mesh: jax.sharding.Mesh):
        self.stage, self.mesh = stage, mesh
        self.update_rows = stage.update_rows
        if stage.correction is not None:
            self.columns = (*self.columns, "weights")

    def rows(self, made: Rollout, columns: Columns, kl: float) -> tuple[Columns, Line]:
        """Rows of the updates, and metrics of the rollout."""
        raise NotImplementedError

    def recompute(self, columns: Columns, kl: float) -> tuple[Columns, Line]:
        """The columns of these rows from what current parameters say of them, and metrics."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to compute again")

    def batch(self, part: Columns) -> Columns:
        """What an update is given of its rows."""
        return {name: part[name] for name in self.columns}

    def abstract(self, width: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of what an update is given, for rows of `width` tokens."""
        whole = dict.fromkeys(FORWARD, jnp.int32)
        return {
            name: jax.ShapeDtypeStruct((self.update_rows, width), whole.get(name, jnp.float32)) for name in self.columns
        }

    def on_mesh(self, function: Any, columns: Columns, *scalars: float) -> Any:
        """`function(columns, *scalars)` over all rows at once, on the host afterwards."""
        count = len(next(iter(columns.values())))
        placed = sharding.place_batch(chunked.process_rows(columns, count, self.mesh), count, self.mesh)
        return jax.device_get(function(placed, *map(np.float32, scalars)))

    def corrected(self, columns: Columns) -> tuple[Columns, Line]:
        """The columns with weights that correct for the sampler, where the stage wants them."""
        high = self.stage.correction
        if high is None:
            return columns, {}
        weights, sums = importance_weights(
            columns["old_logprobs"], columns["sampler_logprobs"], columns["mask"], high=high
        )
        line = {name: float(total / count) for name, (total, count) in sums.items()}
        return {**columns, "weights": np.asarray(weights, np.float32)}, line


class _PPO(BatchBuilder):
    """Per-token rewards, GAE, whitening. Computed once a rollout, with the parameters before its updates."""

    columns = (*BatchBuilder.columns, "old_values", "returns")

    def __init__(self, stage: PPO, mesh: jax.sharding.Mesh):
        super().__init__(stage, mesh)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.compute = jax.jit(functools.partial(_advantages, stage), out_shardings=everywhere)

    def rows(self, made: Rollout, columns: Columns, kl: float) -> tuple[Columns, Line]:
        columns, line = self.corrected(columns)
        columns = {
            **columns, "final_scores": made.final(self.stage.reward), "lengths": made.lengths.astype(np.int32),
            "prompt_lengths": made.prompt_lengths.astype(np.int32),
        }  # fmt: skip
        columns, told = self.recompute(columns, kl)
        return columns, {**line, "reward": float(columns["final_scores"].mean()), **told}

    def recompute(self, columns: Columns, kl: float) -> tuple[Columns, Line]:
        wanted = (
            "mask",
            "old_logprobs",
            "reference_logprobs",
            "old_values",
            "final_scores",
            "lengths",
            "prompt_lengths",
        )
        advantages, returns, told = self.on_mesh(self.compute, {name: columns[name] for name in wanted}, kl)
        line = {name: float(value) for name, value in told.items()}
        return {**columns, "advantages": advantages, "returns": returns}, line

    def batch(self, part: Columns) -> Columns:
        if self.stage.whiten == "mini_batch":
            part = {**part, "advantages": np.asarray(whiten(part["advantages"], part["mask"]))}
        return super().batch(part)


def _advantages(stage: PPO, columns: dict[str, jax.Array], kl: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """Advantages and returns where tokens are targets [B, S], and what to log of them (spec tulu25 §4.4 step 5–8)."""
    mask = columns["mask"]
    divergence = kl_estimate(columns["old_logprobs"], columns["reference_logprobs"], stage.kl_kind)
    # Targets end one place before the tokens do. The prompt's own targets have rewards too, which `gae` passes over.
    ends = columns["prompt_lengths"] - 1 + columns["lengths"]
    rewards = token_rewards(columns["final_scores"], divergence, ends, beta=kl)
    advantages, returns = gae(rewards, columns["old_values"], mask, gamma=stage.gamma, lam=stage.lam)
    told = {
        "explained_variance": explained_variance(columns["old_values"], returns, mask),
        "advantage_mean": (advantages * mask).sum() / mask.sum(),
        "kl_reward": -(kl * divergence * mask).sum() / mask.shape[0],
    }
    if stage.whiten == "rollout":
        advantages = whiten(advantages, mask)
    return advantages, returns, told


class _GRPO(BatchBuilder):
    """A response's advantage against the other answers to its prompt, the same at each of its tokens."""

    def __init__(self, stage: GRPO, mesh: jax.sharding.Mesh):
        super().__init__(stage, mesh)
        if stage.kl:
            self.columns = (*self.columns, "reference_logprobs")

    def rows(self, made: Rollout, columns: Columns, kl: float) -> tuple[Columns, Line]:
        stage: GRPO = self.stage
        columns, line = self.corrected(columns)
        rewards = made.final(self.stage.reward)
        groups = rewards.reshape(-1, stage.samples)
        advantages = np.asarray(group_advantages(groups, stage.advantages), np.float32).reshape(-1)
        equal = ~rollout.nonzero_variance(groups)
        kept = np.ones(made.rows, bool)
        if stage.drop_equal:
            kept &= ~np.repeat(equal, stage.samples)
        if stage.mask_truncated:
            kept &= made.ended
        mask = columns["mask"] * kept[:, None]
        spread = advantages[:, None] * mask
        if stage.whiten == "rollout":
            spread = np.asarray(whiten(spread, mask)) * mask
        columns = {**columns, "mask": mask.astype(np.float32), "advantages": spread.astype(np.float32)}
        line |= {
            "reward": float(rewards.mean()), "equal_groups": float(equal.mean()), "kept": float(kept.mean()),
            "advantage_mean": float(advantages.mean()),
        }  # fmt: skip
        return columns, line


class _Pairs(BatchBuilder):
    """A prompt's best answer against its worst, side by side in a row as preference data lies (`objectives.pairs`)."""

    columns = (*FORWARD, "loss_weights", "pair_index", "reference_chosen", "reference_rejected")

    def __init__(self, stage: OnlineDPO, mesh: jax.sharding.Mesh):
        super().__init__(stage, mesh)
        self.update_rows = stage.update_rows // stage.samples

    def abstract(self, width: int) -> dict[str, jax.ShapeDtypeStruct]:
        one = dict.fromkeys(("pair_index", "reference_chosen", "reference_rejected"), (self.update_rows, 1))
        floats = ("loss_weights", "reference_chosen", "reference_rejected")
        return {
            name: jax.ShapeDtypeStruct(
                one.get(name, (self.update_rows, 2 * width)), jnp.float32 if name in floats else jnp.int32
            )
            for name in self.columns
        }

    def rows(self, made: Rollout, columns: Columns, kl: float) -> tuple[Columns, Line]:
        rewards = made.final(self.stage.reward)
        groups = rewards.reshape(-1, self.stage.samples)
        first = np.arange(len(groups)) * self.stage.samples
        best, worst = first + groups.argmax(axis=1), first + groups.argmin(axis=1)
        differ = rollout.nonzero_variance(groups)
        reference = (columns["reference_logprobs"] * columns["mask"]).sum(axis=1)

        def both(name: str, scale: int = 1) -> np.ndarray:
            """The chosen row and behind it the rejected one."""
            return np.concatenate([columns[name][best], scale * columns[name][worst]], axis=1)

        pairs = {
            "tokens": both("tokens"), "targets": both("targets"), "segment_ids": both("segment_ids", 2),
            "positions": both("positions"), "loss_weights": both("mask"),
            "pair_index": np.where(differ, np.arange(len(groups)), -1).astype(np.int32)[:, None],
            "reference_chosen": reference[best].astype(np.float32)[:, None],
            "reference_rejected": reference[worst].astype(np.float32)[:, None],
        }  # fmt: skip
        return pairs, {"reward": float(rewards.mean()), "equal_groups": float(1 - differ.mean())}


BATCH_BUILDERS: dict[str, type[BatchBuilder]] = {"ppo": _PPO, "grpo": _GRPO, "online_dpo": _Pairs}
