"""The forward pass of a model over a batch: the one place where objectives run one."""

from __future__ import annotations

import jax

from easylm_jax.objectives.base import Batch
from models.model import Model, Output, Params


def forward(model: Model, params: Params, batch: Batch, *, dropout_key: jax.Array | None = None) -> Output:
    """Hidden states [B, S, d] of a batch of packed rows, and the losses that the layers report beside them.

    An objective hands `Output.aux` on in its `Loss`, so that a mixture of experts trains its router under every
    objective; scores of a model that is not trained leave it.
    """
    return model(
        params, batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"],
        dropout_key=dropout_key,
    )  # fmt: skip
