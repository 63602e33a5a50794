"""The forward pass of a model over a batch, shared by all objectives."""

from __future__ import annotations

import jax

from easylm_jax.objectives.base import Batch
from models.model import Model, Output, Params


def forward(model: Model, params: Params, batch: Batch, *, dropout_key: jax.Array | None = None) -> Output:
    """Hidden states [B, S, d] of a batch of packed rows, and the auxiliary losses of the layers.

    Objectives pass `Output.aux` on in their `Loss`, so that a mixture of experts trains its router under every
    objective; forward passes of models that are not trained ignore it.
    """
    return model(
        params, batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"],
        dropout_key=dropout_key,
    )  # fmt: skip
