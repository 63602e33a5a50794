"""Preference losses without a reward model: DPO and its variants, and KTO (spec tulu25 §4.3, tulu3 §3.1).

`preference_loss` and `kto_loss` are functions of summed log-probabilities; `preference_optimization` is the objective
that computes those sums from packed pairs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from easylm_jax.objectives.base import Batch, Loss, Objective, Sums
from easylm_jax.objectives.forward import forward
from easylm_jax.objectives.numeric import as_float, log1mexp, masked
from easylm_jax.objectives.pairs import batch_counts, pair_sums, sum_sides, valid_pairs
from models.errors import UserError
from models.model import Model, Output, Params

PairKind = Literal["dpo", "dpo_norm", "ipo", "simpo", "orpo", "wpo"]
KINDS = ("dpo", "dpo_norm", "ipo", "simpo", "orpo", "wpo", "kto")
REFERENCE_FREE = ("simpo", "orpo")
_NEED_LENGTHS = ("dpo_norm", "simpo", "orpo", "wpo")
_SMOOTHED = ("dpo", "dpo_norm", "simpo", "wpo")
_SIMPO_MARGIN = 0.3  # the default of γ / β (spec tulu3 §3.1)

Metrics = dict[str, jax.Array]


def preference_loss(
    kind: PairKind,
    policy_chosen: ArrayLike,
    policy_rejected: ArrayLike,
    reference_chosen: ArrayLike | None = None,
    reference_rejected: ArrayLike | None = None,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    chosen_lengths: ArrayLike | None = None,
    rejected_lengths: ArrayLike | None = None,
    gamma: float | None = None,
) -> tuple[jax.Array, Metrics]:
    """One loss for each pair, and metrics.

    With S the sum of a response's log-probabilities, L = S / length, s = S − S_reference, and e the label smoothing:

    | kind | z | loss | source |
    |---|---|---|---|
    | dpo | β (s_c − s_r) | −(1−e) log σ(z) − e log σ(−z) | Rafailov et al. 2023, eq. 7 |
    | dpo_norm | β (s_c/length_c − s_r/length_r) | the same | Tülu 3 §5 |
    | simpo | β (L_c − L_r) − γ | the same | Meng et al. 2024, eq. 6 |
    | wpo | as dpo | the same, times min(1, exp(L_c + L_r)) without gradient | Zhou et al. 2024, eq. 2 |
    | ipo | s_c − s_r, with s / length if lengths are given | (z − 1/(2β))² | Azar et al. 2024, eq. 17 |
    | orpo | log odds(exp L_c) − log odds(exp L_r) | −L_c − β log σ(z) | Hong et al. 2024, eq. 6–7 |

    Args:
        kind: one of the above.
        policy_chosen, policy_rejected: [N], sums of response log-probabilities under the policy.
        reference_chosen, reference_rejected: [N], the same under the reference; not used by simpo and orpo.
        beta: β; 0.1 for Tülu 2.5's dpo, 5 for Tülu 3's dpo_norm. In ipo it is τ, in orpo λ.
        label_smoothing: e, the probability that a label is flipped (not for ipo and orpo).
        chosen_lengths, rejected_lengths: [N], trained tokens of each side. Optional for ipo (the paper has none), not
            used by dpo, required by the others.
        gamma: simpo's margin γ, in units of z; by default 0.3 β.

    Returns:
        Losses [N], and metrics [N] without gradient: `reward_chosen`, `reward_rejected` (β s, normalised as in the
        kind), `reward_margin`, `accuracy` (1 if the chosen reward is larger), `logprob_chosen`, `logprob_rejected`.

    Raises:
        UserError: the kind is unknown, or a required argument is missing.
    """
    _check(kind, label_smoothing, reference_chosen is not None and reference_rejected is not None,
           chosen_lengths is not None and rejected_lengths is not None, gamma)  # fmt: skip
    chosen, rejected = as_float(policy_chosen), as_float(policy_rejected)
    scores = chosen, rejected
    if reference_chosen is not None and reference_rejected is not None and kind not in REFERENCE_FREE:
        scores = chosen - as_float(reference_chosen), rejected - as_float(reference_rejected)
    if kind in ("dpo_norm", "simpo", "orpo") or (kind == "ipo" and chosen_lengths is not None):
        scores = _per_token(scores[0], chosen_lengths), _per_token(scores[1], rejected_lengths)
    difference = scores[0] - scores[1]
    if kind == "ipo":
        losses = (difference - 1.0 / (2.0 * beta)) ** 2
    elif kind == "orpo":
        log_odds = difference - log1mexp(scores[0]) + log1mexp(scores[1])
        losses = -scores[0] - beta * jax.nn.log_sigmoid(log_odds)
    elif kind == "simpo":
        margin = _SIMPO_MARGIN * beta if gamma is None else gamma
        losses = _log_loss(beta * difference - margin, label_smoothing)
    else:
        losses = _log_loss(beta * difference, label_smoothing)
    if kind == "wpo":
        likelihood = _per_token(chosen, chosen_lengths) + _per_token(rejected, rejected_lengths)
        losses = losses * jax.lax.stop_gradient(jnp.exp(jnp.minimum(likelihood, 0.0)))
    return losses, _metrics(beta * scores[0], beta * scores[1], chosen, rejected)


def _check(kind: str, label_smoothing: float, reference: bool, lengths: bool, gamma: float | None) -> None:
    if kind == "kto" or kind not in KINDS:
        hint = "kto has no pairs: use kto_loss" if kind == "kto" else f"choose one of {', '.join(KINDS[:-1])}"
        raise UserError(f"preference loss: no kind {kind!r} of pairs; {hint}")
    if kind not in REFERENCE_FREE and not reference:
        raise UserError(f"preference loss: {kind} needs reference log-probabilities of both sides")
    if kind in _NEED_LENGTHS and not lengths:
        raise UserError(f"preference loss: {kind} is per token and needs chosen_lengths and rejected_lengths")
    if not 0.0 <= label_smoothing < 0.5:
        raise UserError(f"preference loss: label_smoothing is {label_smoothing}; it must be in [0, 0.5)")
    if label_smoothing and kind not in _SMOOTHED:
        raise UserError(f"preference loss: {kind} has no label smoothing; set label_smoothing to 0")
    if gamma is not None and kind != "simpo":
        raise UserError(f"preference loss: gamma is simpo's margin, {kind} has none; leave it out")


def _per_token(total: jax.Array, lengths: ArrayLike | None) -> jax.Array:
    assert lengths is not None  # checked by `_check`
    return total / jnp.maximum(as_float(lengths), 1.0)


def _log_loss(z: jax.Array, label_smoothing: float) -> jax.Array:
    """−(1 − e) log σ(z) − e log σ(−z)."""
    losses = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(z)
    return losses - label_smoothing * jax.nn.log_sigmoid(-z) if label_smoothing else losses


def _metrics(reward_chosen, reward_rejected, logprob_chosen, logprob_rejected) -> Metrics:
    metrics = {
        "reward_chosen": reward_chosen,
        "reward_rejected": reward_rejected,
        "reward_margin": reward_chosen - reward_rejected,
        "accuracy": (reward_chosen > reward_rejected).astype(jnp.float32),
        "logprob_chosen": logprob_chosen,
        "logprob_rejected": logprob_rejected,
    }
    return jax.lax.stop_gradient(metrics)


def kto_loss(
    policy_logprobs: ArrayLike,
    reference_logprobs: ArrayLike,
    desirable: ArrayLike,
    *,
    beta: float,
    kl: ArrayLike | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[jax.Array, Metrics]:
    """KTO losses of unpaired responses, each desirable or undesirable (Ethayarajh et al. 2024, eq. 7–8).

    With s = policy − reference: w_d (1 − σ(β (s − kl))) for a desirable response, w_u (1 − σ(β (kl − s))) for others.

    Args:
        policy_logprobs, reference_logprobs: [N], sums of response log-probabilities.
        desirable: [N], true (1) for desirable responses.
        beta: β, 0.1 in the paper.
        kl: scalar estimate of KL(policy ‖ reference) per response, in nats; clipped to at least 0, without gradient.
            By default 0.
        desirable_weight, undesirable_weight: w_d and w_u, to balance unequal numbers of the two.

    Returns:
        Losses [N], and metrics [N] without gradient: `reward` (β s), `kl` (as used), `logprob`.
    """
    policy = as_float(policy_logprobs)
    ratio = policy - as_float(reference_logprobs)
    good = jnp.asarray(desirable).astype(bool)
    origin = jax.lax.stop_gradient(jnp.maximum(as_float(0.0 if kl is None else kl), 0.0))
    gain = jnp.where(good, ratio - origin, origin - ratio)
    losses = jnp.where(good, desirable_weight, undesirable_weight) * jax.nn.sigmoid(-beta * gain)
    metrics = {"reward": beta * ratio, "kl": jnp.broadcast_to(origin, ratio.shape), "logprob": policy}
    return losses, jax.lax.stop_gradient(metrics)


class SequenceLogprobs(NamedTuple):
    """Summed log-probabilities and number of the trained tokens of each side of each pair; float32 [rows, P].

    `entropy` is a (sum, count) pair over all trained tokens, in nats. Entries without a pair are 0.
    """

    chosen: jax.Array
    rejected: jax.Array
    chosen_lengths: jax.Array
    rejected_lengths: jax.Array
    entropy: tuple[jax.Array, jax.Array]


def sequence_logprobs(model: Model, params: Params, batch: Batch) -> SequenceLogprobs:
    """Log-probabilities of both sides of every packed pair, in one forward pass.

    Cached reference log-probabilities are `chosen` and `rejected` under the initial parameters, by `pair_index`; they
    return as the columns `reference_chosen` and `reference_rejected` of batches.
    """
    return _sequence_logprobs(model, params, forward(model, params, batch), batch)


def _sequence_logprobs(model: Model, params: Params, output: Output, batch: Batch) -> SequenceLogprobs:
    scores = model.target_scores(params, output.hidden, batch["targets"])
    weights = batch["loss_weights"].astype(jnp.float32)
    pairs = batch["pair_index"].shape[1]
    chosen, rejected = sum_sides(weights * scores.logprobs, batch["segment_ids"], pairs)
    lengths = sum_sides(weights, batch["segment_ids"], pairs)
    entropy = jax.lax.stop_gradient(weights * scores.entropy).sum(), weights.sum()
    return SequenceLogprobs(chosen, rejected, *lengths, entropy)


def preference_optimization(
    model: Model,
    kind: str,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    gamma: float | None = None,
    reference: Literal["cached", "model"] | None = "cached",
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Objective:
    """The mean preference loss of a batch's packed pairs (for kto, of their sides).

    Args:
        model: the model to train.
        kind: one of `KINDS`; see `preference_loss` and `kto_loss`.
        beta, label_smoothing, gamma: as there.
        reference: "cached" reads the columns `reference_chosen` and `reference_rejected` [rows, P]; "model" computes
            them with the frozen parameters `frozen["reference"]`. Not used by simpo and orpo.
        desirable_weight, undesirable_weight: kto only.

    The batch has the columns of packed rows (`tokens`, `targets`, `segment_ids`, `positions`, `loss_weights`), in the
    layout of `objectives.pairs`, and `pair_index`. Metrics per pair are those of `preference_loss`; `entropy` is in
    nats per trained token; `pairs`, `trained_tokens` and `tokens` are totals.

    kto treats each side as an example. Its KL is the mean log-ratio of all sides in a forward pass (a micro-batch over
    all devices), clipped to at least 0; with accumulation each micro-batch has its own.

    Raises:
        UserError: arguments do not fit the kind; or a column is missing, when the objective is traced.
    """
    if kind == "kto":
        _check_kto(label_smoothing, gamma, reference)
    else:
        _check(kind, label_smoothing, reference is not None, True, gamma)

    def objective(params: Params, batch: Batch, key: jax.Array, frozen) -> Loss:
        valid = valid_pairs(batch)
        output = forward(model, params, batch)
        policy = _sequence_logprobs(model, params, output, batch)
        pair = masked(policy.chosen, valid), masked(policy.rejected, valid)
        base: tuple[jax.Array, jax.Array] | None = None
        if kind not in REFERENCE_FREE:
            chosen, rejected = _reference(model, batch, frozen, reference)
            base = masked(chosen, valid), masked(rejected, valid)
        if kind == "kto":
            assert base is not None
            weights = desirable_weight, undesirable_weight
            total, denominator, metrics = _kto_on_pairs(pair, base, valid, beta, weights)
        else:
            losses, values = preference_loss(
                cast(PairKind, kind), *pair, *(base or (None, None)), beta=beta, label_smoothing=label_smoothing,
                gamma=gamma, chosen_lengths=policy.chosen_lengths, rejected_lengths=policy.rejected_lengths,
            )  # fmt: skip
            total, denominator = masked(losses, valid).sum(), valid.sum().astype(jnp.float32)
            metrics = pair_sums(values, valid)
        metrics = {**metrics, "entropy": policy.entropy, **batch_counts(batch)}
        return Loss(total, denominator, metrics, output.aux)

    return objective


def _check_kto(label_smoothing: float, gamma: float | None, reference: str | None) -> None:
    if reference is None:
        raise UserError("preference loss: kto needs reference log-probabilities; set reference to cached or model")
    if label_smoothing or gamma is not None:
        raise UserError("preference loss: kto has neither label_smoothing nor gamma; leave them out")


def _reference(model: Model, batch: Batch, frozen, source: str | None) -> tuple[jax.Array, jax.Array]:
    """Sums of log-probabilities of both sides under the reference, without a gradient."""
    if source == "model":
        scores = sequence_logprobs(model, frozen["reference"], batch)
        return jax.lax.stop_gradient((scores.chosen, scores.rejected))
    missing = [name for name in ("reference_chosen", "reference_rejected") if name not in batch]
    if missing:
        raise UserError(f"preference loss: the batch has no column {missing[0]}; cache the reference or use the model")
    return batch["reference_chosen"], batch["reference_rejected"]


def _kto_on_pairs(
    pair: tuple[jax.Array, jax.Array],
    base: tuple[jax.Array, jax.Array],
    valid: jax.Array,
    beta: float,
    weights: tuple[float, float],
) -> tuple[jax.Array, jax.Array, Sums]:
    """KTO with both sides of each valid pair as separate examples: Σ losses, their number, metrics."""
    sides = jnp.stack(pair), jnp.stack(base)  # [2, rows, P], chosen first; both are 0 where there is no pair
    count = valid.sum().astype(jnp.float32)
    kl = (sides[0] - sides[1]).sum() / jnp.maximum(2.0 * count, 1.0)
    desirable = jnp.stack([jnp.ones_like(valid), jnp.zeros_like(valid)])
    losses, values = kto_loss(
        *sides, desirable, beta=beta, kl=kl, desirable_weight=weights[0], undesirable_weight=weights[1]
    )
    metrics = pair_sums({**_metrics(*values["reward"], *values["logprob"]), "kl": values["kl"][0]}, valid)
    return masked(losses, valid[None]).sum(), 2.0 * count, metrics
