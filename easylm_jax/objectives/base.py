"""What an objective is: a function from parameters and a batch to sums and their denominators."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from models.model import Auxiliary

FORWARD = ("tokens", "targets", "segment_ids", "positions")  # what a model reads of a batch


PyTree = Any
Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]


class Loss(NamedTuple):
    """`total` is a sum of losses, `denominator` what the whole batch's sum is divided by (both float32 scalars).

    `metrics` maps a name to a (sum, count) pair; the pairs are added over micro-batches and divided at the end. Where
    the count is 0 the sum itself is reported (totals, such as the number of trained tokens). `auxiliary` are the losses
    that the model's layers report: each adds weight · Σ total / Σ count to the mean.
    """

    total: jax.Array
    denominator: jax.Array
    metrics: Sums
    auxiliary: dict[str, Auxiliary] = {}


class Objective(Protocol):
    """What a stage minimises. `frozen` holds arrays that take part but are not trained (a reference model, a base)."""

    def __call__(self, params: PyTree, batch: Batch, key: jax.Array, frozen: PyTree) -> Loss: ...
