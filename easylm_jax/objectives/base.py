"""The protocol of objectives: functions from parameters and a batch to sums and their denominators."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from models.config import VisionConfig
from models.model import Auxiliary, Images

FORWARD = ("tokens", "targets", "segment_ids", "positions")  # the columns of a batch that a forward pass reads
IMAGES = Images._fields  # and those of its pictures, where it has some


PyTree = Any
Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]


def image_shapes(vision: VisionConfig, rows: int, crops: int, places: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the columns `IMAGES` for rows of so many crops and patch tokens."""
    patches, shape = vision.grid**2, jax.ShapeDtypeStruct
    shapes = Images(
        crops=shape((rows, crops, patches, 3 * vision.patch**2), jnp.uint8),
        padding=shape((rows, crops, patches), jnp.uint8),
        pooling=shape((rows, places, 4), jnp.int32),
        places=shape((rows, places), jnp.int32),
    )
    return shapes._asdict()


class Loss(NamedTuple):
    """The result of an objective on a micro-batch: sums, which are added over micro-batches before they are divided.

    Attributes:
        total: the sum of the losses, float32 scalar.
        denominator: the divisor of the total; the batch's loss is Σ total / Σ denominator. float32 scalar.
        metrics: (sum, count) pairs by name. With a count of 0 the sum itself is reported (totals, such as the number of
            trained tokens).
        auxiliary: losses that the model's layers report; each adds weight · Σ total / Σ count to the batch's loss.
    """

    total: jax.Array
    denominator: jax.Array
    metrics: Sums
    auxiliary: dict[str, Auxiliary] = {}


class Objective(Protocol):
    """The function that a stage minimises. `frozen` holds arrays that are not trained (a reference, a LoRA base)."""

    def __call__(self, params: PyTree, batch: Batch, key: jax.Array, frozen: PyTree) -> Loss: ...
