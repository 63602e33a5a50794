"""The interface of a model: what training, scoring, planning and decoding use, whatever the architecture.

A model is a frozen configuration and pure functions of its parameters. It holds no arrays and is hashable, so that
`jax.jit` may close over it. `models/decoder.py` implements it; a new architecture is another implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from models.config import Compute, DecoderConfig, Placement
from models.heads import TokenScores
from models.images import Images

Params = dict[str, Any]
Rules = tuple[tuple[str, tuple[str | None, ...]], ...]
# (q, k, v, window, carry, index of the layer) → (output, carry)
Attend = Callable[..., tuple[jax.Array, Any]]


class Auxiliary(NamedTuple):
    """An auxiliary loss of a model's layers, such as a router's load-balancing loss.

    The objective adds `weight` · Σ `total` / Σ `denominator`. Both sums are over the whole batch, however it is split
    into micro-batches. `total` and `denominator` are float32 scalars; `denominator` depends on the batch alone. With
    weight 0 the quotient is only reported as a metric (the sum itself where the denominator is 0).
    """

    total: jax.Array
    denominator: jax.Array
    weight: float


class Output(NamedTuple):
    """`hidden` [B, S, d]: hidden states after the final norm. `aux`: auxiliary losses by name, empty when dense."""

    hidden: jax.Array
    aux: dict[str, Auxiliary]


class Model(Protocol):
    """A model: configuration, parameters, forward pass, output head, and the pass over the layers for decoding."""

    @property
    def config(self) -> DecoderConfig: ...

    @property
    def compute(self) -> Compute: ...

    @property
    def placement(self) -> Placement: ...

    @property
    def platform(self) -> str:
        """The kind of device that the program runs on: "cpu", "gpu" or "tpu"."""
        ...

    @property
    def sharding_rules(self) -> Rules:
        """(regular expression of dotted names, logical axes) for every parameter; see `runtime/sharding.py`."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Freshly initialised float32 parameters."""
        ...

    def abstract_params(self, dtype: str = "float32") -> Params:
        """Shapes and types of the parameters (`jax.ShapeDtypeStruct`); allocates nothing."""
        ...

    def __call__(
        self, params: Params, tokens: jax.Array, *, positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None, add_embeddings: jax.Array | None = None,
        dropout_key: jax.Array | None = None, routing: jax.Array | None = None, images: Images | None = None,
    ) -> Output:  # fmt: skip
        """Hidden states of packed rows.

        Args:
            tokens, positions, segment_ids: int32 [B, S]; segment 0 is padding.
            add_embeddings: [B, S, d], added to the token embeddings.
            dropout_key: turns the configured dropout on.
            routing: int [B, S, L, k], the experts that compute each token (`models.moe`); None: the routers choose.
            images: pictures, for models that see them (`config.vision`).
        """
        ...

    def embed(self, embed: Params, tokens: jax.Array, dtype: Any) -> jax.Array:
        """Embeddings [B, S, d] of tokens in `dtype`; `embed` is `params["embed"]`."""
        ...

    def embed_images(self, params: Params, images: Images, length: int) -> jax.Array:
        """[B, length, d]: what pictures add to the embeddings of their tokens; 0 at all others."""
        ...

    def head_kernel(self, params: Params) -> jax.Array:
        """The vocabulary head [d, V]."""
        ...

    def target_scores(
        self, params: Params, hidden: jax.Array, targets: jax.Array, temperature: float = 1.0
    ) -> TokenScores:
        """Log-probabilities and related scores of targets int32 [B, S], given hidden states [B, S, d]."""
        ...

    def ropes(self, positions: jax.Array) -> dict[int | None, tuple[jax.Array, jax.Array]]:
        """Cosine and sine tables for positions [B, S], by attention window of a layer (None: full attention)."""
        ...

    def walk(self, layers: Any, x: jax.Array, ropes: dict, attend: Attend, carry: Any) -> tuple[jax.Array, Any]:
        """Applies all layers to x [B, S, d] with an attention function that the caller supplies, for decoding.

        `carry` (a cache of keys and values) is passed from layer to layer and returned with the final x. `layers` is
        `params["layers"]`, or a list with one tree for each layer.
        """
        ...

    def walk_with_reports(
        self, layers: Any, x: jax.Array, ropes: dict, attend: Attend, carry: Any
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """`walk`, and what the layers report, stacked over layers (empty when dense)."""
        ...

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of the forward pass for each token of a sequence of this length."""
        ...
