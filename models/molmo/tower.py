"""The vision transformer: patches of crops to features, layer by layer (spec molmo §4).

One set of equations for four encoders. `Traits` says in which parts they differ. The output of the last layers that no
feature is taken from is never computed; their parameters are kept, so that a checkpoint comes back as it was.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.config import VisionConfig
from models.layers import Linear, truncated_normal
from models.model import Params, Rules


def quick_gelu(x: jax.Array) -> jax.Array:
    """x · σ(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


@dataclasses.dataclass(frozen=True)
class Traits:
    """How an encoder differs from the others. `mean` and `std` normalise colours from 0 to 1."""

    activation: Callable[[jax.Array], jax.Array]
    eps: float
    class_token: bool = True
    patch_bias: bool = False
    pre_norm: bool = False
    layer_scale: bool = False
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


_CLIP = Traits(quick_gelu, 1e-5, pre_norm=True)
TRAITS = {
    "clip": _CLIP,
    "metaclip": _CLIP,
    "siglip": Traits(
        functools.partial(nn.gelu, approximate=True), 1e-6, class_token=False, patch_bias=True,
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    ),
    "dino": Traits(
        functools.partial(nn.gelu, approximate=False), 1e-6, patch_bias=True, layer_scale=True,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ),
}  # fmt: skip

SHARDING_RULES: Rules = (
    (r"vision\.patch\.kernel", (None, "width")),
    (r"vision\.patch\.bias", (None,)),
    (r"vision\.class_token\.table", (None,)),
    (r"vision\.positions\.table", (None, "width")),
    (r"vision\.pre_norm\.(scale|bias)", (None,)),
    (r"vision\.blocks\.(attn|ffn)_norm\.(scale|bias)", (None, None)),
    (r"vision\.blocks\.attn\.[qkv]\.kernel", (None, "width", "heads")),
    (r"vision\.blocks\.attn\.[qkv]\.bias", (None, "heads")),
    (r"vision\.blocks\.attn\.o\.kernel", (None, "heads", "width")),
    (r"vision\.blocks\.mlp\.up\.kernel", (None, "width", "ffn")),
    (r"vision\.blocks\.mlp\.up\.bias", (None, "ffn")),
    (r"vision\.blocks\.mlp\.down\.kernel", (None, "ffn", "width")),
    (r"vision\.blocks\.(attn\.o|mlp\.down)\.bias", (None, None)),
    (r"vision\.blocks\.(attn|ffn)_scale\.scale", (None, None)),
)


class Norm(nn.Module):
    """LayerNorm with weight and bias over the last axis, in float32."""

    size: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (self.size,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.size,), jnp.float32)
        y = x.astype(jnp.float32)
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class LayerScale(nn.Module):
    """A factor for each channel of a sub-layer's output (DINOv2)."""

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", nn.initializers.ones, (self.size,), jnp.float32).astype(x.dtype)


class Attention(nn.Module):
    """Attention of all tokens of a crop to each other, with biases; the softmax is in float32."""

    width: int
    heads: int
    std: float

    def setup(self):
        self.q, self.k, self.v, self.o = (Linear(self.width, self.width, self.std, use_bias=True) for _ in range(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        heads = (*x.shape[:-1], self.heads, -1)
        q, k, v = (layer(x).reshape(heads) for layer in (self.q, self.k, self.v))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores).astype(v.dtype)
        return self.o(jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape))


class FeedForward(nn.Module):
    """down(activation(up x)), with biases."""

    width: int
    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    std: float

    def setup(self):
        self.up = Linear(self.width, self.hidden, self.std, use_bias=True)
        self.down = Linear(self.hidden, self.width, self.std, use_bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """One layer: h = x + A(N x), y = h + F(N h)."""

    vision: VisionConfig

    def setup(self):
        v, traits = self.vision, TRAITS[self.vision.encoder]
        self.attn_norm, self.ffn_norm = Norm(v.width, traits.eps), Norm(v.width, traits.eps)
        self.attn = Attention(v.width, v.heads, v.init_std)
        self.mlp = FeedForward(v.width, v.ffn, traits.activation, v.init_std)
        if traits.layer_scale:
            self.attn_scale, self.ffn_scale = LayerScale(v.width), LayerScale(v.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        scaled = TRAITS[self.vision.encoder].layer_scale
        y = self.attn(self.attn_norm(x))
        x = x + (self.attn_scale(y) if scaled else y)
        y = self.mlp(self.ffn_norm(x))
        return x + (self.ffn_scale(y) if scaled else y)


def init(vision: VisionConfig, key: jax.Array) -> Params:
    """Freshly initialised float32 parameters: matrices normal with standard deviation `init_std`."""
    traits, pixels = TRAITS[vision.encoder], 3 * vision.patch**2
    patch_key, class_key, place_key, block_key = jax.random.split(key, 4)
    normal = truncated_normal(vision.init_std)
    block = Block(vision)
    params: Params = {
        "patch": {"kernel": normal(patch_key, (pixels, vision.width))},
        "positions": {"table": normal(place_key, (vision.grid**2 + traits.class_token, vision.width))},
        "blocks": jax.vmap(lambda key: block.init(key, jnp.zeros((1, 1, vision.width)))["params"])(
            jax.random.split(block_key, vision.layers)
        ),
    }
    if traits.patch_bias:
        params["patch"]["bias"] = jnp.zeros((vision.width,))
    if traits.class_token:
        params["class_token"] = {"table": normal(class_key, (vision.width,))}
    if traits.pre_norm:
        params["pre_norm"] = {"scale": jnp.ones((vision.width,)), "bias": jnp.zeros((vision.width,))}
    return params


def normalised(vision: VisionConfig, crops: jax.Array, dtype: Any) -> jax.Array:
    """Colours of uint8 patches [..., 3·p²], less the encoder's mean and divided by its standard deviation."""
    traits = TRAITS[vision.encoder]
    mean, std = (np.tile(np.array(value, np.float32), vision.patch**2) for value in (traits.mean, traits.std))
    return ((crops.astype(jnp.float32) * np.float32(1 / 255) - mean) / std).astype(dtype)


def unsplit(x: jax.Array) -> jax.Array:
    """Leaves the sharding of activations to the compiler."""
    return x


def features(
    vision: VisionConfig, params: Params, crops: jax.Array, *, dtype: Any, remat: bool,
    split: Callable[[jax.Array], jax.Array] = unsplit,
) -> jax.Array:  # fmt: skip
    """The features [N, P², layers · width] of crops uint8 [N, P², 3·p²], in `dtype`.

    Those of the layers of `vision.features`, one after the other; the class token's are dropped. `remat` recomputes
    the inside of each layer in the backward pass; `split` constrains the sharding of activations [N, T, width].
    """
    patches = normalised(vision, crops, dtype)
    found = hidden_states(vision, params, patches, vision.feature_layers, remat=remat, split=split)
    x = jnp.concatenate(found, axis=-1)
    return x[:, 1:] if TRAITS[vision.encoder].class_token else x


def hidden_states(
    vision: VisionConfig, params: Params, x: jax.Array, layers: tuple[int, ...], *, remat: bool = False,
    split: Callable[[jax.Array], jax.Array] = unsplit,
) -> list[jax.Array]:  # fmt: skip
    """Outputs [N, T, width] of the `layers` (from 0), for normalised patches [N, P², 3·p²]; the type is that of x.

    `split` constrains the sharding of what goes from block to block.
    """
    traits, dtype = TRAITS[vision.encoder], x.dtype
    x = x @ params["patch"]["kernel"].astype(dtype)
    if traits.patch_bias:
        x = x + params["patch"]["bias"].astype(dtype)
    if traits.class_token:
        first = jnp.broadcast_to(params["class_token"]["table"].astype(dtype), (len(x), 1, vision.width))
        x = jnp.concatenate([first, x], axis=1)
    x = x + params["positions"]["table"].astype(dtype)
    if traits.pre_norm:
        x = cast(jax.Array, Norm(vision.width, traits.eps).apply({"params": params["pre_norm"]}, x))
    block = Block(vision)

    def one(x: jax.Array, layer: Params) -> tuple[jax.Array, None]:
        with jax.named_scope("vision_block"):
            return split(cast(jax.Array, block.apply({"params": layer}, x))), None

    run = jax.checkpoint(one, prevent_cse=False) if remat else one
    found, start = {}, 0
    for stop in sorted(set(layers)):
        part = jax.tree.map(lambda leaf, a=start, b=stop: leaf[a : b + 1], params["blocks"])
        x, _ = jax.lax.scan(run, split(x), part)
        found[stop], start = x, stop + 1
    return [found[layer] for layer in layers]
