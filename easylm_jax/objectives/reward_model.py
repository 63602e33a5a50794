"""Reward models: a decoder with a scalar head, trained on pairs (spec tulu25 §4.2, tulu3 §4).

The score of a response is the head's output at its last real token, found from the segments, never by comparing ids.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from easylm_jax.objectives.base import Batch, Loss, Objective
from easylm_jax.objectives.forward import forward
from easylm_jax.objectives.numeric import as_float, masked
from easylm_jax.objectives.pairs import batch_counts, last_of_sides, pair_sums, valid_pairs
from models.errors import UserError
from models.heads import scalar_head
from models.model import Model, Output, Params


def reward_model_loss(
    chosen: ArrayLike, rejected: ArrayLike, margin: ArrayLike | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """−log σ(chosen − rejected − margin), one for each pair (Bradley–Terry; margin as in Touvron et al. 2023, eq. 2).

    Args:
        chosen, rejected: [N] scores.
        margin: [N], how much the chosen side should lead by; left out, 0.

    Returns:
        Losses [N], and [N] each, without gradient: `reward_chosen`, `reward_rejected` and their squares
        (`…_squared`, for standard deviations), `reward_margin`, `accuracy` (1 where the chosen score is the larger),
        `confidence` (the larger of p and 1 − p, where p = σ(chosen − rejected)) and `brier` ((1 − p)²). Over held-out
        pairs a calibrated model's mean confidence equals its accuracy.
    """
    chosen, rejected = as_float(chosen), as_float(rejected)
    lead = chosen - rejected
    losses = -jax.nn.log_sigmoid(lead if margin is None else lead - as_float(margin))
    metrics = {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "reward_chosen_squared": chosen**2,
        "reward_rejected_squared": rejected**2,
        "reward_margin": lead,
        "accuracy": (lead > 0).astype(jnp.float32),
        "confidence": jax.nn.sigmoid(jnp.abs(lead)),
        "brier": jax.nn.sigmoid(-lead) ** 2,
    }
    return losses, jax.lax.stop_gradient(metrics)


def pair_scores(model: Model, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Scores of the chosen and the rejected sides of packed pairs, each float32 [rows, P]; 0 where there is no pair."""
    return _pair_scores(forward(model, params, batch), params, batch)


def _pair_scores(output: Output, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    scores = scalar_head(output.hidden, params["score"]["kernel"])
    return last_of_sides(scores, batch["segment_ids"], batch["pair_index"].shape[1])


def score_responses(model: Model, params: Params, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Scores of unpacked rows (prompt and response) at their last real token; float32 [B].

    Args:
        model: a decoder with a scalar head.
        params: its parameters.
        tokens: int32 [B, S], right-padded with any id.
        lengths: int32 [B], real tokens of each row, at least 1.
    """
    index = jnp.arange(tokens.shape[1])
    segment_ids = (index[None] < lengths[:, None]).astype(jnp.int32)
    hidden = model(params, tokens, segment_ids=segment_ids).hidden
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
    return scalar_head(last[:, 0], params["score"]["kernel"])


def reward_modelling(model: Model, *, use_margin: bool = False) -> Objective:
    """Σ of `reward_model_loss` over a batch's packed pairs, divided by the number of pairs.

    Args:
        model: a decoder with a scalar head (`params["score"]["kernel"]`).
        use_margin: whether the column `margins` [rows, P] is subtracted from the lead.

    The batch has the columns of packed rows, laid out as in `objectives.pairs`, and `pair_index`. Metrics: those of
    `reward_model_loss` a pair; `pairs`, `trained_tokens` and `tokens` are totals.
    """

    def objective(params: Params, batch: Batch, key: jax.Array, frozen) -> Loss:
        if use_margin and "margins" not in batch:
            raise UserError("reward model: use_margin is set, but the batch has no column margins")
        valid = valid_pairs(batch)
        output = forward(model, params, batch)
        chosen, rejected = _pair_scores(output, params, batch)
        losses, values = reward_model_loss(chosen, rejected, batch["margins"] if use_margin else None)
        metrics = {**pair_sums(values, valid), **batch_counts(batch)}
        return Loss(masked(losses, valid).sum(), valid.sum().astype(jnp.float32), metrics, output.aux)

    return objective


def calibration(leads: ArrayLike, *, bins: int = 10) -> dict[str, jax.Array]:
    """How far a reward model's confidence can be believed, from its leads chosen − rejected on held-out pairs.

    A pair's confidence is σ(|lead|), in [0.5, 1]; it is right where the lead is positive, half right where it is 0.

    Args:
        leads: [N].
        bins: equal intervals of confidence.

    Returns:
        `count`, mean `confidence` and `accuracy` of each bin [bins] (0 in an empty one), and the scalar `error`: the
        mean over pairs of |confidence − accuracy| of their bins (expected calibration error).
    """
    leads = as_float(leads)
    confidence = jax.nn.sigmoid(jnp.abs(leads))
    right = 0.5 * (1.0 + jnp.sign(leads))
    which = jnp.clip(((confidence - 0.5) * 2 * bins).astype(jnp.int32), 0, bins - 1)
    member = (which[:, None] == jnp.arange(bins)).astype(leads.dtype)
    count = member.sum(axis=0)
    mean_confidence, accuracy = (
        (x[:, None] * member).sum(axis=0) / jnp.maximum(count, 1) for x in (confidence, right)
    )  # fmt: skip
    error = (count * jnp.abs(mean_confidence - accuracy)).sum() / jnp.maximum(count.sum(), 1)
    return {"count": count, "confidence": mean_confidence, "accuracy": accuracy, "error": error}
