"""The forward pass of a model over a batch, shared by all objectives."""

from __future__ import annotations

import jax

from easylm_jax.objectives.base import IMAGES, Batch
from models.model import Images, Model, Output, Params


def forward(
    model: Model, params: Params, batch: Batch, *, dropout_key: jax.Array | None = None, replay: bool = False
) -> Output:
    """Hidden states [B, S, d] of a batch of packed rows, and the auxiliary losses of the layers.

    Objectives pass `Output.aux` on in their `Loss`, so that a mixture of experts trains its router under every
    objective; forward passes of models that are not trained ignore it. With `replay`, tokens are computed by the
    experts of the column `routing` [B, S, L, k], where the batch has one: those of the model that sampled them.
    """
    given = {"routing": batch["routing"]} if replay and "routing" in batch else {}
    return model(
        params, batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"],
        dropout_key=dropout_key, images=images_of(batch), **given,
    )  # fmt: skip


def images_of(batch: Batch) -> Images | None:
    """The pictures of a batch, from its columns of these names; None where it has none."""
    return Images(*(batch[name] for name in IMAGES)) if IMAGES[0] in batch else None
