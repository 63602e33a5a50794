"""What a model is to all that trains, scores, plans or decodes with one: a protocol, so that none of it names a family.

A model is two frozen descriptions and pure functions of its parameters. It holds no arrays and is hashable, so that
`jax.jit` may close over it. `models/decoder.py` is the one that is there; a new architecture is another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from models.config import Compute, DecoderConfig, Placement
from models.heads import TokenScores

Params = dict[str, Any]
Rules = tuple[tuple[str, tuple[str | None, ...]], ...]
# (q, k, v, window, carry, layer number) → (output, carry)
Attend = Callable[..., tuple[jax.Array, Any]]


class Auxiliary(NamedTuple):
    """A loss that a model's layers report beside their output, such as a router's load balancing.

    The objective's mean gains `weight` · Σ `total` / Σ `count`, the sums taken over the whole batch however it is cut
    into micro-batches. `total` and `count` are float32 scalars; `count` depends on the batch alone.
    """

    total: jax.Array
    count: jax.Array
    weight: float


class Output(NamedTuple):
    """`hidden` [B, S, d] after the final norm; `aux`, by name, the losses that the layers report (none when dense)."""

    hidden: jax.Array
    aux: dict[str, Auxiliary]


class Model(Protocol):
    """A model: what it is, its parameters, its forward pass, its head, and its walk over the layers for decoding."""

    @property
    def config(self) -> DecoderConfig: ...

    @property
    def compute(self) -> Compute: ...

    @property
    def placement(self) -> Placement: ...

    @property
    def platform(self) -> str:
        """The kind of device that it is computed on: cpu, gpu or tpu."""
        ...

    @property
    def sharding_rules(self) -> Rules:
        """(pattern of dotted parameter names, logical axes) for every parameter; see `runtime/sharding.py`."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters."""
        ...

    def abstract_params(self, dtype: str = "float32") -> Params:
        """Shapes and types of the parameters, nothing allocated."""
        ...

    def __call__(
        self, params: Params, tokens: jax.Array, *, positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None, add_embeddings: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Output:  # fmt: skip
        """Hidden states of packed rows: tokens, positions, segment_ids int32 [B, S]."""
        ...

    def head_kernel(self, params: Params) -> jax.Array:
        """The vocabulary head [d, V]."""
        ...

    def target_scores(
        self, params: Params, hidden: jax.Array, targets: jax.Array, temperature: float = 1.0
    ) -> TokenScores:
        """What the vocabulary head says about targets [B, S] behind hidden states [B, S, d]."""
        ...

    def ropes(self, positions: jax.Array) -> dict[int | None, tuple[jax.Array, jax.Array]]:
        """Rotary tables for positions [B, S], one for each kind of layer."""
        ...

    def walk(self, layers: Any, x: jax.Array, ropes: dict, attend: Attend, carry: Any) -> tuple[jax.Array, Any]:
        """All layers over x [B, S, d] with an attention of the caller's, whose `carry` (a cache of keys and values)
        goes from layer to layer; `layers` is `params["layers"]`, or a list with one tree for each layer."""
        ...

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of the forward pass for each token of a sequence of this length."""
        ...
