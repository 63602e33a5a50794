"""Reward models: a decoder with a scalar head, trained on preference pairs (spec tulu25 §4.2, tulu3 §4).

The score of a response is the head's output at its last token, which is found from segments or lengths, never by
comparing token ids.
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
from models.model import Images, Model, Output, Params


def reward_model_loss(
    chosen: ArrayLike, rejected: ArrayLike, margin: ArrayLike | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """−log σ(chosen − rejected − margin), one for each pair (Bradley–Terry; margin as in Touvron et al. 2023, eq. 2).

    Args:
        chosen, rejected: [N] scores.
        margin: [N], subtracted from the difference of the scores; by default 0.

    Returns:
        Losses [N], and metrics [N] without gradient: `reward_chosen`, `reward_rejected` and their squares
        (`…_squared`, for standard deviations), `reward_margin`, `accuracy` (1 if the chosen score is larger),
        `confidence` (the larger of p and 1 − p, where p = σ(chosen − rejected)) and `brier` ((1 − p)²). On held-out
        pairs, the mean confidence of a calibrated model equals its accuracy.
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
    """Scores of the chosen and the rejected sides of packed pairs, each float32 [rows, P]; 0 if there is no pair."""
    return _pair_scores(forward(model, params, batch), params, batch)


def _pair_scores(output: Output, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    scores = scalar_head(output.hidden, params["score"]["kernel"])
    return last_of_sides(scores, batch["segment_ids"], batch["pair_index"].shape[1])


def score_responses(
    model: Model, params: Params, tokens: jax.Array, lengths: jax.Array, images: Images | None = None
) -> jax.Array:
    """Scores of unpacked rows (prompt and response), at the last token; float32 [B].

    Args:
        model: a decoder with a scalar head.
        params: its parameters.
        tokens: int32 [B, S], right-padded with any id.
        lengths: int32 [B], tokens of each row without padding, at least 1.
        images: the pictures of the prompts, where they have some.
    """
    index = jnp.arange(tokens.shape[1])
    segment_ids = (index[None] < lengths[:, None]).astype(jnp.int32)
    hidden = model(params, tokens, segment_ids=segment_ids, images=images).hidden
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
    return scalar_head(last[:, 0], params["score"]["kernel"])


def reward_modelling(model: Model, *, use_margin: bool = False) -> Objective:
    """The mean `reward_model_loss` of a batch's packed pairs.

    Args:
        model: a decoder with a scalar head (`params["score"]["kernel"]`).
        use_margin: whether the column `margins` [rows, P] is subtracted from the difference of the scores.

    The batch has the columns of packed rows, in the layout of `objectives.pairs`, and `pair_index`. Metrics per pair
    are those of `reward_model_loss`; `pairs`, `trained_tokens` and `tokens` are totals.
    """

    def objective(params: Params, batch: Batch, key: jax.Array, frozen) -> Loss:
        if use_margin and "margins" not in batch:
            raise UserError("reward model: use_margin is set, but the batch has no column margins; keep it in the data")
        valid = valid_pairs(batch)
        output = forward(model, params, batch)
        chosen, rejected = _pair_scores(output, params, batch)
        losses, values = reward_model_loss(chosen, rejected, batch["margins"] if use_margin else None)
        metrics = {**pair_sums(values, valid), **batch_counts(batch)}
        return Loss(masked(losses, valid).sum(), valid.sum().astype(jnp.float32), metrics, output.aux)

    return objective


def calibration(leads: ArrayLike, *, bins: int = 10) -> dict[str, jax.Array]:
    """The calibration of a reward model, from its score differences chosen − rejected on held-out pairs.

    The confidence in a pair is σ(|lead|), in [0.5, 1]; its accuracy is 1 for a positive lead, ½ for 0, and 0 otherwise.

    Args:
        leads: [N], score differences.
        bins: number of equal intervals of confidence.

    Returns:
        `count`, mean `confidence` and mean `accuracy` of each bin [bins] (0 if empty), and the scalar `error`: the
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
