"""Next-token prediction: pre-training, mid-training and supervised fine-tuning (spec olmo §6, tulu3 §2.1)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from easylm_jax.objectives.base import Batch, Loss, Objective
from easylm_jax.objectives.forward import forward
from models.model import Model, Params

Reduction = Literal["token", "sequence_sum"]


def language_modelling(
    model: Model, *, z_loss: float = 0.0, reduction: Reduction = "token", dropout: bool = False
) -> Objective:
    """The loss Σ w_t (−log p(target_t) + z · logsumexp_t²) over the tokens of a batch, with its denominator.

    Args:
        model: the model to train.
        z_loss: weight z of the squared log-normaliser, which keeps logits from drifting (OLMo 2 §3.3.3).
        reduction: "token" divides by Σ w, so that every trained token has the same weight however rows are packed.
            "sequence_sum" divides by the number of documents with a trained token: Tülu 3's `sum` reduction with one
            sequence per micro-batch (spec tulu3 §2.1).
        dropout: whether the model's configured dropout is enabled.

    The batch has `tokens`, `targets`, `segment_ids`, `positions` (int32 [B, S]) and `loss_weights` (float32 [B, S]).
    Metrics: `cross_entropy` and `accuracy` per trained token, `entropy` of the predictions in nats, `z_loss` before its
    weight, `trained_tokens`, and `tokens` without padding.
    """

    def objective(params: Params, batch: Batch, key: jax.Array, frozen) -> Loss:
        output = forward(model, params, batch, dropout_key=key if dropout else None)
        scores = model.target_scores(params, output.hidden, batch["targets"])
        weights = batch["loss_weights"].astype(jnp.float32)
        count = weights.sum()
        nll = -(weights * scores.logprobs).sum()
        z = (weights * scores.logsumexp**2).sum()
        denominator = count if reduction == "token" else trained_documents(batch["segment_ids"], weights)
        metrics = {
            "cross_entropy": (nll, count),
            "accuracy": ((weights * scores.correct).sum(), count),
            "entropy": (jax.lax.stop_gradient(weights * scores.entropy).sum(), count),
            "z_loss": (z, count),
            "trained_tokens": (count, jnp.zeros_like(count)),
            "tokens": ((batch["segment_ids"] > 0).sum().astype(jnp.float32), jnp.zeros_like(count)),
        }
        return Loss(nll + z_loss * z, denominator, metrics, output.aux)

    return objective


def trained_documents(segment_ids: jax.Array, weights: jax.Array) -> jax.Array:
    """The number of documents of packed rows that have a trained token; float32 scalar.

    A document is counted at its first trained token: one without an earlier trained token of its segment in the row.
    The trained tokens of a document need not be contiguous, but its segment is.
    """
    trained = weights > 0
    index = jnp.arange(segment_ids.shape[1])[None]
    first = jnp.concatenate([jnp.ones_like(trained[:, :1]), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)
    start = jax.lax.cummax(jnp.where(first, index, 0), axis=1)
    last_trained = jax.lax.cummax(jnp.where(trained, index, -1), axis=1)
    before = jnp.concatenate([-jnp.ones_like(last_trained[:, :1]), last_trained[:, :-1]], axis=1)
    return (trained & (before < start)).sum().astype(jnp.float32)
