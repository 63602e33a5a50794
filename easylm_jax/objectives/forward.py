"""The forward pass of a model inside an objective."""

from __future__ import annotations

import jax

from easylm_jax.objectives.base import Batch
from models.decoder import Decoder, Params


def _hidden(model: Decoder, params: Params, batch: Batch) -> jax.Array:
    return model(params, batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"]).hidden
