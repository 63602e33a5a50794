"""The pictures of a batch, as a model's forward pass takes them. Without JAX, for worker processes."""

from __future__ import annotations

from typing import Any, NamedTuple


class Images(NamedTuple):
    """The pictures of a batch of rows; shapes are those of the row with the most, the others are filled up.

    `crops` uint8 [B, C, P², 3·p²]; `padding` uint8 [B, C, P²]; `pooling` int32 [B, N, 4], indices into the C · P²
    patches of a row, −1 where there is none; `places` int32 [B, N], the token of the row that each of N embeddings is
    added to, −1 where there is none.
    """

    crops: Any
    padding: Any
    pooling: Any
    places: Any
