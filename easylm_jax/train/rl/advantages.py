"""Builds batches of updates from rollouts: advantages and returns (PPO), group advantages (GRPO), pairs (online DPO).

There is one class for each algorithm. `rows` computes the rows of the updates and a few metrics from a rollout and its
log-probabilities and values; `batch` selects the columns that go to the device. A new algorithm is a class here and an
entry of `BATCH_BUILDERS`.
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
from easylm_jax.objectives.base import FORWARD, IMAGES, image_shapes
from easylm_jax.runtime import chunked
from models.config import DecoderConfig
from models.errors import UserError

Columns = dict[str, np.ndarray]
Metrics = dict[str, Any]


def make_batch_builder(stage: RL, mesh: jax.sharding.Mesh, policy: DecoderConfig | None = None) -> BatchBuilder:
    """The batch builder of a stage's algorithm; `policy` is needed where routers are replayed."""
    builder = BATCH_BUILDERS[stage.algorithm](stage, mesh)
    if stage.router_replay:
        assert policy is not None
        if policy.experts is None or stage.algorithm not in ("ppo", "grpo"):
            what = "its policy is a dense model" if policy.experts is None else "its pairs are trained without it"
            raise UserError(f"stage {stage.name}: router_replay is for PPO and GRPO of a mixture of experts; {what}")
        builder.columns = (*builder.columns, "routing")
        builder.routed = (policy.layers, policy.experts.active)
    return builder


class BatchBuilder:
    """The base class of all algorithms. `update_rows` is the number of rows of one update."""

    columns: tuple[str, ...] = (*FORWARD, "mask", "old_logprobs", "advantages")

    def __init__(self, stage: Any, mesh: jax.sharding.Mesh):
        self.stage, self.mesh = stage, mesh
        self.update_rows = stage.update_rows
        self.routed: tuple[int, int] = (0, 0)  # layers and experts of a token in the column `routing`
        if stage.correction is not None:
            self.columns = (*self.columns, "weights")

    def rows(self, sampled: Rollout, columns: Columns, kl: float) -> tuple[Columns, Metrics]:
        """The rows of the updates, and metrics of the rollout; `kl` is the KL coefficient."""
        raise NotImplementedError

    def recompute(self, columns: Columns, kl: float) -> tuple[Columns, Metrics]:
        """The rows with their columns recomputed from the current parameters, and metrics."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to recompute")

    def batch(self, rows: Columns) -> Columns:
        """The columns of an update's rows that go to the device."""
        return {name: rows[name] for name in (*self.columns, *(name for name in IMAGES if name in rows))}

    def abstract(self, width: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of an update's batch for rows of `width` tokens."""
        types = {**dict.fromkeys(FORWARD, jnp.int32), "routing": jnp.int16}
        more = {"routing": self.routed}
        shapes = {
            name: jax.ShapeDtypeStruct((self.update_rows, width, *more.get(name, ())), types.get(name, jnp.float32))
            for name in self.columns
        }
        data = self.stage.data
        if data.vision is not None:
            shapes |= image_shapes(data.vision, self.update_rows, data.prompt_crops, data.sequence_length)
        return shapes

    def on_mesh(self, function: Any, columns: Columns, *scalars: float) -> Any:
        """Runs `function(columns, *scalars)` over all rows on the mesh; returns its result on the host."""
        placed = chunked.place_rows(columns, self.mesh)
        return jax.device_get(function(placed, *map(np.float32, scalars)))

    def corrected(self, columns: Columns) -> tuple[Columns, Metrics]:
        """The columns with the importance weights of the sampler correction, if the stage has one, and metrics."""
        high = self.stage.correction
        if high is None:
            return columns, {}
        weights, sums = importance_weights(
            columns["old_logprobs"], columns["sampler_logprobs"], columns["mask"], high=high
        )
        metrics = {name: float(total / count) for name, (total, count) in sums.items()}
        return {**columns, "weights": np.asarray(weights, np.float32)}, metrics


class _PPO(BatchBuilder):
    """Per-token rewards, GAE and whitening, computed once per rollout with the parameters before its updates."""

    columns = (*BatchBuilder.columns, "old_values", "returns")

    def __init__(self, stage: PPO, mesh: jax.sharding.Mesh):
        super().__init__(stage, mesh)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.compute = jax.jit(functools.partial(_advantages, stage), out_shardings=everywhere)

    def rows(self, sampled: Rollout, columns: Columns, kl: float) -> tuple[Columns, Metrics]:
        columns, metrics = self.corrected(columns)
        columns = {
            **columns, "final_scores": sampled.final(self.stage.reward), "lengths": sampled.lengths.astype(np.int32),
            "prompt_lengths": sampled.prompt_lengths.astype(np.int32),
        }  # fmt: skip
        columns, advantage_metrics = self.recompute(columns, kl)
        return columns, {**metrics, "reward": float(columns["final_scores"].mean()), **advantage_metrics}

    def recompute(self, columns: Columns, kl: float) -> tuple[Columns, Metrics]:
        inputs = (
            "mask", "old_logprobs", "reference_logprobs", "old_values", "final_scores", "lengths", "prompt_lengths",
        )  # fmt: skip
        advantages, returns, scalars = self.on_mesh(self.compute, {name: columns[name] for name in inputs}, kl)
        metrics = {name: float(value) for name, value in scalars.items()}
        return {**columns, "advantages": advantages, "returns": returns}, metrics

    def batch(self, rows: Columns) -> Columns:
        if self.stage.whiten == "mini_batch":
            rows = {**rows, "advantages": np.asarray(whiten(rows["advantages"], rows["mask"]))}
        return super().batch(rows)


def _advantages(stage: PPO, columns: dict[str, jax.Array], kl: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """Advantages and returns at target positions [B, S], and metrics (spec tulu25 §4.4 step 5–8)."""
    mask = columns["mask"]
    divergence = kl_estimate(columns["old_logprobs"], columns["reference_logprobs"], stage.kl_kind)
    # Target positions end one before token positions. Prompt targets get rewards too, but `gae` ignores them (mask).
    ends = columns["prompt_lengths"] - 1 + columns["lengths"]
    rewards = token_rewards(columns["final_scores"], divergence, ends, beta=kl)
    advantages, returns = gae(rewards, columns["old_values"], mask, gamma=stage.gamma, lam=stage.lam)
    metrics = {
        "explained_variance": explained_variance(columns["old_values"], returns, mask),
        "advantage_mean": (advantages * mask).sum() / mask.sum(),
        "kl_reward": -(kl * divergence * mask).sum() / mask.shape[0],
    }
    if stage.whiten == "rollout":
        advantages = whiten(advantages, mask)
    return advantages, returns, metrics


class _GRPO(BatchBuilder):
    """Group-relative advantages: one per response, relative to the other responses to its prompt, at all its tokens."""

    def __init__(self, stage: GRPO, mesh: jax.sharding.Mesh):
        super().__init__(stage, mesh)
        if stage.kl:
            self.columns = (*self.columns, "reference_logprobs")

    def rows(self, sampled: Rollout, columns: Columns, kl: float) -> tuple[Columns, Metrics]:
        stage: GRPO = self.stage
        columns, metrics = self.corrected(columns)
        rewards = sampled.final(self.stage.reward)
        groups = rewards.reshape(-1, stage.samples)
        advantages = np.asarray(group_advantages(groups, stage.advantages), np.float32).reshape(-1)
        zero_variance = ~rollout.nonzero_variance(groups)
        kept = np.ones(sampled.rows, bool)
        if stage.drop_equal:
            kept &= ~np.repeat(zero_variance, stage.samples)
        if stage.mask_truncated:
            kept &= sampled.ended
        mask = columns["mask"] * kept[:, None]
        token_advantages = advantages[:, None] * mask
        if stage.whiten == "rollout":
            token_advantages = np.asarray(whiten(token_advantages, mask)) * mask
        columns = {**columns, "mask": mask.astype(np.float32), "advantages": token_advantages.astype(np.float32)}
        metrics |= {
            "reward": float(rewards.mean()), "equal_groups": float(zero_variance.mean()), "kept": float(kept.mean()),
            "advantage_mean": float(advantages.mean()),
        }  # fmt: skip
        return columns, metrics


class _OnlineDPO(BatchBuilder):
    """Preference pairs: the best and the worst response to a prompt, packed in one row (`objectives.pairs`)."""

    columns = (*FORWARD, "loss_weights", "pair_index", "reference_chosen", "reference_rejected")

    def __init__(self, stage: OnlineDPO, mesh: jax.sharding.Mesh):
        super().__init__(stage, mesh)
        self.update_rows = stage.update_rows // stage.samples

    def abstract(self, width: int) -> dict[str, jax.ShapeDtypeStruct]:
        per_pair = dict.fromkeys(("pair_index", "reference_chosen", "reference_rejected"), (self.update_rows, 1))
        floats = ("loss_weights", "reference_chosen", "reference_rejected")
        data = self.stage.data
        seen = {} if data.vision is None else image_shapes(
            data.vision, self.update_rows, data.prompt_crops, 2 * data.sequence_length
        )  # fmt: skip
        return seen | {
            name: jax.ShapeDtypeStruct(
                per_pair.get(name, (self.update_rows, 2 * width)), jnp.float32 if name in floats else jnp.int32
            )
            for name in self.columns
        }

    def rows(self, sampled: Rollout, columns: Columns, kl: float) -> tuple[Columns, Metrics]:
        rewards = sampled.final(self.stage.reward)
        groups = rewards.reshape(-1, self.stage.samples)
        first = np.arange(len(groups)) * self.stage.samples
        chosen, rejected = first + groups.argmax(axis=1), first + groups.argmin(axis=1)
        has_pair = rollout.nonzero_variance(groups)
        reference = (columns["reference_logprobs"] * columns["mask"]).sum(axis=1)

        def packed(name: str, scale: int = 1) -> np.ndarray:
            """The column of the chosen responses followed by that of the rejected responses, times `scale`."""
            return np.concatenate([columns[name][chosen], scale * columns[name][rejected]], axis=1)

        pairs = {
            "tokens": packed("tokens"), "targets": packed("targets"), "segment_ids": packed("segment_ids", 2),
            "positions": packed("positions"), "loss_weights": packed("mask"),
            "pair_index": np.where(has_pair, np.arange(len(groups)), -1).astype(np.int32)[:, None],
            "reference_chosen": reference[chosen].astype(np.float32)[:, None],
            "reference_rejected": reference[rejected].astype(np.float32)[:, None],
        }  # fmt: skip
        if IMAGES[0] in columns:  # both responses are about the same pictures, whose crops are there once
            width = columns["tokens"].shape[1]
            places = [columns["places"][rows] for rows in (chosen, rejected)]
            pairs |= {name: columns[name][chosen] for name in ("crops", "padding")}
            pairs["pooling"] = packed("pooling")
            pairs["places"] = np.concatenate([places[0], np.where(places[1] < 0, -1, places[1] + width)], axis=1)
        return pairs, {"reward": float(rewards.mean()), "equal_groups": float(1 - has_pair.mean())}


BATCH_BUILDERS: dict[str, type[BatchBuilder]] = {"ppo": _PPO, "grpo": _GRPO, "online_dpo": _OnlineDPO}
