"""Objectives on rollouts: the policy and the value model, trained on responses sampled from the policy.

Each row of a batch has one prompt and its response: `tokens`, `targets`, `segment_ids`, `positions` [B, S] as for all
objectives, and `mask` [B, S], 1 where the target is a response token. Per-token columns (`old_logprobs`, `advantages`,
…) are stored at the position whose target is the token. The value of a token is also read there, that is before the
token was sampled (spec tulu25 §4.4 step 6).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from easylm_jax.objectives.base import Batch, Loss, Objective
from easylm_jax.objectives.estimators import KLKind
from easylm_jax.objectives.forward import forward
from easylm_jax.objectives.policy_gradient import Aggregation, grpo_loss, value_loss
from models.heads import TokenScores, scalar_head
from models.model import Model, Params


def target_scores(model: Model, params: Params, batch: Batch, *, temperature: float = 1.0) -> TokenScores:
    """Log-probabilities and entropy of every target of a batch, each float32 [B, S]."""
    hidden = forward(model, params, batch, replay=True).hidden
    return model.target_scores(params, hidden, batch["targets"], temperature)


def token_values(model: Model, params: Params, batch: Batch) -> jax.Array:
    """The predictions of a value model at every position, float32 [B, S]; `model` has a scalar head."""
    return scalar_head(forward(model, params, batch).hidden, params["score"]["kernel"])


def policy_optimization(
    model: Model,
    *,
    temperature: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregation: Aggregation = "token",
    constant: float | None = None,
    bnpo_rows: int | None = None,
    ratio: Literal["token", "sequence"] = "token",
    surrogate: Literal["clip", "cispo"] = "clip",
    kl: float = 0.0,
    kl_kind: KLKind = "k3",
) -> Objective:
    """The clipped policy loss over rollouts: PPO with the advantages of `gae`, GRPO with `group_advantages`.

    The batch also has `old_logprobs` and `advantages` [B, S]; `reference_logprobs` if `kl` is not 0; and `weights`
    [B, S] with a sampler correction. The arguments are those of `grpo_loss`; with the defaults it is `ppo_loss`.
    """

    def objective(params: Params, batch: Batch, key: jax.Array, frozen) -> Loss:
        output = forward(model, params, batch, replay=True)
        scores = model.target_scores(params, output.hidden, batch["targets"], temperature)
        loss, denominator, metrics = grpo_loss(
            scores.logprobs, batch["old_logprobs"], batch["advantages"], batch["mask"],
            clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, aggregation=aggregation, constant=constant,
            bnpo_rows=bnpo_rows, ratio=ratio, surrogate=surrogate,
            reference_logprobs=batch.get("reference_logprobs") if kl else None, beta=kl, kl=kl_kind,
            weights=batch.get("weights"), entropy=scores.entropy,
        )  # fmt: skip
        return Loss(loss, denominator, {**metrics, "tokens": _total(batch["segment_ids"] > 0)}, output.aux)

    return objective


def value_regression(model: Model, *, clip: float | None, coefficient: float = 1.0) -> Objective:
    """`coefficient` times the `value_loss` of a value model; the batch has `old_values` and `returns`."""

    def objective(params: Params, batch: Batch, key: jax.Array, frozen) -> Loss:
        output = forward(model, params, batch)
        values = scalar_head(output.hidden, params["score"]["kernel"])
        loss, denominator, metrics = value_loss(values, batch["old_values"], batch["returns"], batch["mask"], clip=clip)
        return Loss(coefficient * loss, denominator, metrics, output.aux)

    return objective


def _total(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    return mask.sum().astype(jnp.float32), jnp.zeros((), jnp.float32)
