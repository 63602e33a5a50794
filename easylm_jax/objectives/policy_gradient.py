"""The losses of PPO, GRPO and their variants, on log-probabilities of sampled tokens (spec tulu25 §4.4, tulu3 §5).

Each returns a sum, its denominator for the whole batch, and metrics as (sum, count), so that micro-batches, hosts and
packed rows add up exactly. Behaviour log-probabilities, advantages, old values and returns are constants: no gradient
flows into them. Values outside a mask are ignored, even if they are not finite.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from easylm_jax.objectives.base import Sums
from easylm_jax.objectives.estimators import KLKind, kl_estimate
from easylm_jax.objectives.numeric import as_float, bounded_exp, masked, masked_sum
from easylm_jax.objectives.sequences import Sequences
from models.errors import UserError

Result = tuple[jax.Array, jax.Array, Sums]
Aggregation = Literal["token", "sequence", "dr_grpo", "bnpo"]


def final_scores(
    scores: ArrayLike, ended: ArrayLike, *, missing_end: float | None = -10.0, gain: float = 1.0, bias: float = 0.0
) -> jax.Array:
    """Final rewards [B] from scores: `missing_end` replaces the score of a truncated response, then gain and bias.

    Args:
        scores: [B], of the reward model or a verifier.
        ended: [B], whether the sampler saw an end token or a stop string; not found by comparing token ids.
        missing_end: −10 for PPO, 0 for GRPO (spec tulu25 §4.4 step 4, tulu3 §5.1); None keeps every score.
        gain, bias: the result is gain · score + bias.
    """
    scores = as_float(scores)
    if missing_end is not None:
        scores = jnp.where(jnp.asarray(ended).astype(bool), scores, missing_end)
    return gain * scores + bias


def token_rewards(scores: ArrayLike, kl: ArrayLike, lengths: ArrayLike, *, beta: float | jax.Array) -> jax.Array:
    """Per-token rewards, float32 [B, T]: −β kl at each response token, plus the score at the last; 0 beyond the length.

    Args:
        scores: [B], final rewards of whole responses; they are not rounded.
        kl: [B, T], a KL estimate for each token (`kl_estimate`).
        lengths: int [B], response tokens including the end token. The score of a response of length 0 is dropped.
        beta: the KL coefficient, in units of reward per nat; 0.05 for Tülu 2.5.
    """
    scores, kl, lengths = as_float(scores), as_float(kl), jnp.asarray(lengths)[:, None]
    index = jnp.arange(kl.shape[1])[None]
    rewards = jnp.where(index < lengths, -beta * kl, 0.0)
    return rewards + jnp.where(index == lengths - 1, scores[:, None], 0.0)


class _Surrogate(NamedTuple):
    loss: jax.Array
    ratio: jax.Array
    low: jax.Array
    high: jax.Array


def _clipped(log_ratio, advantages, clip_low, clip_high, dual_clip) -> _Surrogate:
    """max(−A ρ, −A clip(ρ, 1 − low, 1 + high)), and where the bounds are active.

    It uses `where` instead of `maximum`, whose gradient at ties (ρ exactly at a bound) would be halved.
    """
    ratio = bounded_exp(log_ratio)
    low = (advantages < 0) & (ratio < 1.0 - clip_low)
    high = (advantages > 0) & (ratio > 1.0 + clip_high)
    bounded = jnp.where(low, 1.0 - clip_low, jnp.where(high, 1.0 + clip_high, ratio))
    if dual_clip is not None:
        far = (advantages < 0) & (ratio > dual_clip)
        bounded, high = jnp.where(far, dual_clip, bounded), high | far
    return _Surrogate(-advantages * bounded, ratio, low, high)


def ppo_loss(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    weights: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
) -> Result:
    """PPO's clipped policy loss (Schulman et al. 2017, eq. 7), summed over response tokens.

    With ρ = exp(logprobs − old_logprobs), a token costs max(−A ρ, −A clip(ρ, 1 − clip_low, 1 + clip_high)).

    Args:
        logprobs: [B, T] under the trained parameters.
        old_logprobs: [B, T], of the parameters before the updates; the same in every epoch over a rollout.
        advantages: [B, T].
        mask: [B, T], 1 on response tokens.
        clip_low, clip_high: the clip range of ρ below and above 1; infinity disables a side.
        dual_clip: a bound c > 1 on ρ for A < 0, beyond which the loss is −c A (Ye et al. 2020).
        weights: [B, T], factors of the policy loss (`importance_weights`).
        entropy: [B, T], of the policy in nats, for the metrics only.

    Returns:
        The sum of the loss, the number of response tokens, and metrics per token: `policy_loss`, `ratio`,
        `clip_fraction`, `clip_fraction_low`, `clip_fraction_high` (share of clipped tokens, by side), `approx_kl`
        (KL(old ‖ new), k3 of the ratio), and `entropy` if given.
    """
    logprobs, mask = as_float(logprobs), jnp.asarray(mask)
    fixed = (as_float(x) for x in (old_logprobs, advantages, 1.0 if weights is None else weights))
    old, advantages, factors = jax.lax.stop_gradient(tuple(fixed))
    log_ratio = masked(logprobs - old, mask)
    advantages, factors = masked(advantages, mask), masked(factors, mask)
    surrogate = _clipped(log_ratio, advantages, clip_low, clip_high, dual_clip)
    losses = surrogate.loss * factors
    metrics = _policy_metrics(losses, log_ratio, surrogate, mask, entropy)
    return losses.sum(), _count(mask), metrics


def _count(mask: jax.Array) -> jax.Array:
    return (mask > 0).sum().astype(jnp.float32)


def _policy_metrics(losses, log_ratio, surrogate: _Surrogate, mask, entropy) -> Sums:
    values = {
        "policy_loss": losses,
        "ratio": surrogate.ratio,
        "clip_fraction": (surrogate.low | surrogate.high).astype(jnp.float32),
        "clip_fraction_low": surrogate.low.astype(jnp.float32),
        "clip_fraction_high": surrogate.high.astype(jnp.float32),
        "approx_kl": _k3(log_ratio),
    }
    if entropy is not None:
        values["entropy"] = as_float(entropy)
    return _sums(values, mask)


def _k3(log_ratio: jax.Array) -> jax.Array:
    """ρ − 1 − log ρ: an estimate of KL(old ‖ new) from tokens sampled by the old policy."""
    return kl_estimate(-log_ratio, 0.0, "k3")


def _sums(values: dict[str, jax.Array], mask: jax.Array) -> Sums:
    """(sum, count) of each value over the mask, without gradients."""
    count = _count(mask)
    shape = mask.shape
    return {
        name: (jax.lax.stop_gradient(masked_sum(jnp.broadcast_to(x, shape), mask)), count)
        for name, x in values.items()
    }  # fmt: skip


def value_loss(
    values: ArrayLike, old_values: ArrayLike, returns: ArrayLike, mask: ArrayLike, *, clip: float | None
) -> Result:
    """½ max((V − G)², (clip(V, V_old ± clip) − G)²), summed over response tokens (spec tulu25 §4.4 step 9).

    Args:
        values: [B, T] under the trained parameters.
        old_values: [B, T], of the parameters before the updates.
        returns: [B, T], the targets G.
        mask: [B, T], 1 on response tokens.
        clip: the clip range around the old value; None for a plain squared error.

    Returns:
        The sum (including the ½), the number of response tokens, and metrics per token: `value_loss`, `value`,
        `return`, `value_error` (V − G), `value_clip_fraction`.
    """
    values, mask = as_float(values), jnp.asarray(mask)
    old, returns = jax.lax.stop_gradient((as_float(old_values), as_float(returns)))
    # Zero outside the mask before squaring, since 0 · NaN in a gradient is NaN.
    values, old, returns = (masked(x, mask) for x in (values, old, returns))
    squares = (values - returns) ** 2
    acts = jnp.zeros_like(squares, bool)
    if clip is not None:
        clipped = (jnp.clip(values, old - clip, old + clip) - returns) ** 2
        # Within the clip range both squares are equal, and the unclipped one carries the gradient.
        acts = clipped > squares
        squares = jnp.where(acts, clipped, squares)
    losses = 0.5 * squares
    metrics = {
        "value_loss": losses,
        "value": values,
        "return": returns,
        "value_error": values - returns,
        "value_clip_fraction": acts.astype(jnp.float32),
    }
    return losses.sum(), _count(mask), _sums(metrics, mask)


def importance_weights(
    old_logprobs: ArrayLike,
    sampler_logprobs: ArrayLike,
    mask: ArrayLike,
    *,
    low: float = 0.0,
    high: float = 2.0,
    drop_below: float = 0.0,
    drop_above: float = float("inf"),
    level: Literal["token", "sequence"] = "token",
    segment_ids: ArrayLike | None = None,
) -> tuple[jax.Array, Sums]:
    """Importance weights that correct the difference between sampler and trainer probabilities (spec tulu3 §5.4).

    w = clip(ρ, low, high), and 0 if ρ is outside [drop_below, drop_above]; ρ = exp(old_logprobs − sampler_logprobs),
    with its logarithm clipped to ±10. With `high` alone it is truncated importance sampling.

    Args:
        old_logprobs: [N, T], computed by the trainer before the updates.
        sampler_logprobs: [N, T], computed by the sampler.
        mask: [N, T], 1 on response tokens.
        low, high: bounds of the weights.
        drop_below, drop_above: tokens with a ratio outside these bounds have weight 0.
        level: "sequence" uses the geometric mean of the ratios of a response for all its tokens.
        segment_ids: [N, T] for packed rows; each segment is a response.

    Returns:
        Weights [N, T] without gradient, 0 outside the mask, and metrics per token: `sampler_ratio`, `sampler_kl`
        (KL(sampler ‖ trainer), k3), `weight`, `weight_clipped`, `weight_dropped` (shares).
    """
    mask = jnp.asarray(mask)
    gap = masked(jax.lax.stop_gradient(as_float(old_logprobs) - as_float(sampler_logprobs)), mask)
    per_response = _choice("level of importance weights", level, ("token", "sequence")) == "sequence"
    log_ratio = Sequences.of(mask, segment_ids).mean(gap) if per_response else gap
    ratio = jnp.exp(jnp.clip(log_ratio, -10.0, 10.0))
    dropped = (ratio < drop_below) | (ratio > drop_above)
    clipped = ~dropped & ((ratio < low) | (ratio > high))
    weights = masked(jnp.where(dropped, 0.0, jnp.clip(ratio, low, high)), mask)
    metrics = {
        "sampler_ratio": ratio,
        "sampler_kl": _k3(gap),
        "weight": weights,
        "weight_clipped": clipped.astype(jnp.float32),
        "weight_dropped": dropped.astype(jnp.float32),
    }
    return weights, _sums(metrics, mask)


def grpo_loss(
    logprobs: ArrayLike,
    old_logprobs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: Aggregation = "token",
    reference_logprobs: ArrayLike | None = None,
    beta: float = 0.0,
    kl: KLKind = "k3",
    ratio: Literal["token", "sequence"] = "token",
    surrogate: Literal["clip", "cispo"] = "clip",
    dual_clip: float | None = None,
    weights: ArrayLike | None = None,
    constant: float | None = None,
    bnpo_rows: int | None = None,
    segment_ids: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
) -> Result:
    """The GRPO loss and its variants, with a choice of aggregation, ratio and surrogate.

    The loss of a token is w · max(−A ρ, −A clip(ρ, 1 − clip_low, 1 + clip_high)) + β kl.

    Args:
        logprobs: [N, T] under the trained parameters.
        old_logprobs: [N, T], of the parameters before the updates.
        advantages: [N], one for each response (`group_advantages`), or [N, T] for packed rows.
        mask: [N, T], 1 on response tokens.
        clip_low, clip_high: as in `ppo_loss`.
        aggregation: the mean that is taken. "token": over all response tokens (DAPO). "sequence": over the tokens of
            each response, then over the responses that have a token (GRPO as published). "dr_grpo": the sum divided by
            `constant` tokens per response, so that long responses are not favoured. "bnpo": over the tokens of this
            call, so that micro-batches have equal weight (the released Tülu 3.1 and OLMo 2 models, spec tulu3 §5.3);
            with `bnpo_rows` it is the mean over micro-batches of that many rows, without it depends on how a batch is
            split.
        reference_logprobs: [N, T] of the reference; required if beta is not 0, otherwise for the metric `kl` only.
        beta: the KL coefficient; the KL term has a gradient here.
        kl: the KL estimator (`kl_estimate`).
        ratio: "sequence" clips exp of the mean log-ratio of a response (GSPO, Zheng et al. 2025).
        surrogate: "cispo" replaces the clipped term by −A min(ρ, 1 + clip_high) log π with a constant ratio
            (MiniMax-M1 2025), so that every token keeps a gradient.
        dual_clip, weights, entropy: as in `ppo_loss`. Weights do not affect the KL term.
        constant: tokens, for "dr_grpo"; by default T.
        bnpo_rows: rows of a micro-batch, for "bnpo"; must divide N. Every micro-batch with a token counts one, so that
            sums over calls add up exactly. By default all rows of the call are one micro-batch.
        segment_ids: [N, T] for packed rows; each segment is a response.

    Returns:
        The sum of the loss, its denominator, and the metrics of `ppo_loss` per token, with `kl` if there is a
        reference.

    Raises:
        UserError: an unknown choice, `beta` without a reference, or `bnpo_rows` that do not divide N.
    """
    logprobs, mask = as_float(logprobs), jnp.asarray(mask)
    fixed = (as_float(x) for x in (old_logprobs, advantages, 1.0 if weights is None else weights))
    old, advantages, factors = jax.lax.stop_gradient(tuple(fixed))
    advantages = masked(advantages[:, None] if advantages.ndim == 1 else advantages, mask)
    factors = masked(factors, mask)
    sequences = Sequences.of(mask, segment_ids)
    logprobs = masked(logprobs, mask)
    log_ratio = logprobs - masked(old, mask)
    per_response = _choice("ratio", ratio, ("token", "sequence")) == "sequence"
    compared = sequences.mean(log_ratio) if per_response else log_ratio
    clipped = _clipped(compared, advantages, clip_low, clip_high, dual_clip)
    if _choice("surrogate", surrogate, ("clip", "cispo")) == "cispo":
        clipped = _cispo(clipped.ratio, advantages, logprobs, clip_high)
    losses = clipped.loss * factors
    metrics = _policy_metrics(losses, log_ratio, clipped, mask, entropy)
    if reference_logprobs is not None:
        reference = masked(jax.lax.stop_gradient(as_float(reference_logprobs)), mask)
        divergence = kl_estimate(logprobs, reference, kl, old_logprobs=masked(old, mask))
        metrics |= _sums({"kl": divergence}, mask)
        losses = losses + beta * divergence
    elif beta:
        raise UserError(f"grpo: beta is {beta}, but there are no reference log-probabilities; pass reference_logprobs")
    return *_aggregate(losses, sequences, aggregation, constant, bnpo_rows), metrics


def _choice(what: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"{what}: there is no {value!r}; choose {' or '.join(allowed)}")
    return value


def _cispo(ratio: jax.Array, advantages: jax.Array, logprobs: jax.Array, clip_high: float) -> _Surrogate:
    high = ratio > 1.0 + clip_high
    fixed = jax.lax.stop_gradient(jnp.minimum(ratio, 1.0 + clip_high))
    return _Surrogate(-advantages * fixed * logprobs, ratio, jnp.zeros_like(high), high)


def _aggregate(
    losses: jax.Array, sequences: Sequences, aggregation: str, constant: float | None, bnpo_rows: int | None
) -> tuple[jax.Array, jax.Array]:
    """The sum of token losses [N, T] (0 outside the mask), and its denominator for the whole batch."""
    tokens = sequences.tokens()
    if aggregation == "token":
        return losses.sum(), tokens
    if aggregation == "sequence":
        return (losses / sequences.lengths()).sum(), sequences.trained()
    if aggregation == "dr_grpo":
        return losses.sum(), sequences.number() * (losses.shape[1] if constant is None else constant)
    _choice("aggregation", aggregation, ("token", "sequence", "dr_grpo", "bnpo"))
    if bnpo_rows is not None:
        return _micro_batch_means(losses, sequences, bnpo_rows)
    return losses.sum() / jnp.maximum(tokens, 1.0), jnp.ones_like(tokens)


def _micro_batch_means(losses: jax.Array, sequences: Sequences, rows: int) -> tuple[jax.Array, jax.Array]:
    """The sum over micro-batches of `rows` rows of their token means, and the number of micro-batches with a token.

    Each row is divided by the tokens of its micro-batch, without gathering rows, which may be on different devices.
    """
    if rows < 1 or len(losses) % rows:
        raise UserError(f"grpo: bnpo_rows {rows} does not divide {len(losses)} rows")
    tokens = sequences.mask.reshape(-1, rows, losses.shape[1]).sum(axis=(1, 2)).astype(jnp.float32)
    shares = losses.sum(axis=1) / jnp.repeat(jnp.maximum(tokens, 1.0), rows)
    return shares.sum(), (tokens > 0).sum().astype(jnp.float32)
