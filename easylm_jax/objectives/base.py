"""The protocol of objectives: functions from parameters and a batch to sums and their denominators."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from models.model import Auxiliary

FORWARD = ("tokens", "targets", "segment_ids", "positions")  # the columns of a batch that a forward pass reads


PyTree = Any
Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]


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
