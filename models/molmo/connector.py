"""The connector: features of patches to embeddings of patch tokens (spec molmo §5).

features + padding embedding → groups of 2 × 2 → attention of their mean to the four → SwiGLU → width of the decoder
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.attention import MASKED
from models.config import VisionConfig
from models.layers import Linear
from models.model import Params, Rules

SHARDING_RULES: Rules = (
    (r"connector\.padding\.table", (None, None)),
    (r"connector\.pool\.[qkv]\.kernel", ("width", "heads")),
    (r"connector\.pool\.[qkv]\.bias", ("heads",)),
    (r"connector\.pool\.o\.kernel", ("heads", "width")),
    (r"connector\.pool\.o\.bias", (None,)),
    (r"connector\.projector\.(gate|up)\.kernel", ("width", "ffn")),
    (r"connector\.projector\.down\.kernel", ("ffn", "width")),
)


class Pool(nn.Module):
    """Attention from the mean of a group's features to each of them; absent ones count in neither."""

    inputs: int
    width: int
    heads: int
    std: float

    def setup(self):
        self.q, self.k, self.v = (Linear(self.inputs, self.width, self.std, use_bias=True) for _ in range(3))
        self.o = Linear(self.width, self.width, self.std, use_bias=True)

    def __call__(self, x: jax.Array, present: jax.Array) -> jax.Array:
        """[..., N, width] for groups x [..., N, G, inputs] with `present` bool [..., N, G]."""
        shown = present[..., None]
        count = jnp.maximum(present.sum(axis=-1, keepdims=True), 1)
        mean = jnp.where(shown, x, 0).astype(jnp.float32).sum(axis=-2) / count
        heads = (self.heads, self.width // self.heads)
        q = self.q(mean.astype(x.dtype)).reshape(*mean.shape[:-1], *heads)
        k, v = (layer(x).reshape(*x.shape[:-1], *heads) for layer in (self.k, self.v))
        scores = jnp.einsum("...hd,...ghd->...hg", q * heads[1] ** -0.5, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(present[..., None, :], scores, MASKED)).astype(v.dtype)
        out = jnp.einsum("...hg,...ghd->...hd", weights, v)
        return self.o(out.reshape(*out.shape[:-2], self.width))


class Projector(nn.Module):
    """down(silu(gate x) ⊙ up x), without biases."""

    inputs: int
    hidden: int
    outputs: int
    std: float

    def setup(self):
        self.gate, self.up = (Linear(self.inputs, self.hidden, self.std) for _ in range(2))
        self.down = Linear(self.hidden, self.outputs, self.std)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nn.silu(self.gate(x)) * self.up(x))


class Connector(nn.Module):
    """Features of patches to embeddings of tokens. Without training, padding changes nothing: its table begins at 0."""

    vision: VisionConfig
    width: int  # of the decoder

    def setup(self):
        v = self.vision
        inputs = v.width * len(v.features)
        self.pool = Pool(inputs, v.width, v.heads, v.init_std)
        self.projector = Projector(v.width, v.connector_ffn, self.width, v.init_std)
        self.padding = Table(2, inputs)

    def __call__(self, features: jax.Array, padding: jax.Array, pooling: jax.Array) -> jax.Array:
        """Embeddings [B, N, width].

        Args:
            features: [B, patches, inputs] of all patches of a row's crops.
            padding: uint8 [B, patches]: 0 where a patch is real, 1 where a part of it is padding, 2 where all of it is.
            pooling: int32 [B, N, 4], the patches of each token, −1 where there is none.
        """
        partial, whole = ((padding == kind)[..., None].astype(features.dtype) for kind in (1, 2))
        table = self.padding().astype(features.dtype)
        features = features + whole * table[0] + partial * table[1]
        groups = jax.vmap(lambda rows, index: rows[index])(features, jnp.maximum(pooling, 0))
        return self.projector(self.pool(groups, pooling >= 0))


class Table(nn.Module):
    """A table of zeros."""

    rows: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("table", nn.initializers.zeros, (self.rows, self.width), jnp.float32)


def init(vision: VisionConfig, width: int, key: jax.Array) -> Params:
    """Freshly initialised float32 parameters."""
    inputs = vision.width * len(vision.features)
    empty = jnp.zeros((1, 1, inputs)), jnp.zeros((1, 1), jnp.uint8), jnp.zeros((1, 1, 4), jnp.int32)
    return Connector(vision, width).init(key, *empty)["params"]
