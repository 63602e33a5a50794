"""Norms, projections, rotary embeddings and the SwiGLU feed-forward: the small parts of a decoder.

Each is a Flax linen module, used only through `init` and `apply`, or a plain function. Norms and rotations are computed
in float32 whatever the activation type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from models.config import DecoderConfig, RopeScaling


def truncated_normal(std: float) -> Callable[..., jax.Array]:
    """Initialiser: normal(0, std²) truncated at three standard deviations (OLMo 2: std 0.02, truncated at 0.06)."""

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        return std * jax.random.truncated_normal(key, -3.0, 3.0, shape, dtype)

    return init


def matrix_std(config: DecoderConfig, fan_in: int, output: bool = False) -> float:
    """Standard deviation of a weight matrix under `config.init`.

    "normal" is `config.init_std` everywhere (OLMo 2 §3.2). "mitchell" (OLMo 1) is 1/√fan_in, and 1/√(2·fan_in·(l+1))
    for the two matrices whose output is added to the residual stream (`output`); the factor 1/√(l+1) of layer l is
    applied where the layers are stacked.
    """
    if config.init == "normal":
        return config.init_std
    return 1.0 / math.sqrt(2 * fan_in if output else fan_in)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · (offset + scale) over the last `size` elements, in float32, then in the input's type.

    These elements may span several axes: a norm over all heads takes [..., H, hd] without a reshape. With a reshape, a
    TPU's compiler changes the layout twice, which took 4 % of a training step at 7B.
    """

    size: int
    eps: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), (self.size,), jnp.float32)
        scale = scale + self.offset if self.offset else scale
        count = next(n for n in range(1, x.ndim + 1) if math.prod(x.shape[-n:]) == self.size)
        axes = tuple(range(-count, 0))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=axes, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32).reshape(x.shape[-count:])).astype(x.dtype)


class LayerNorm(nn.Module):
    """OLMo 1's norm: mean and variance removed over the last axis, no weight and no bias, in float32."""

    eps: float

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype)


def residual_norm(config: DecoderConfig) -> nn.Module:
    """The family's norm for vectors of the residual stream."""
    if config.norm == "layernorm":
        return LayerNorm(config.norm_eps)
    return RMSNorm(config.width, config.norm_eps, config.norm_offset)


def embed_rows(config: DecoderConfig, table: jax.Array, tokens: jax.Array) -> jax.Array:
    """The embeddings of tokens [...] in a table [V, d], in the type of the table; scaled where the model does so."""
    x = table[tokens]
    return x * jnp.asarray(math.sqrt(config.width), x.dtype) if config.scale_embeddings else x


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap · tanh(x / cap); x itself where `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def matmul(x: jax.Array, kernel: jax.Array, flatten: bool = True) -> jax.Array:
    """x [..., inputs] times a kernel [inputs, outputs], with the leading axes of x flattened into one.

    Without flattening, the gradient of the kernel contracts over two axes at once, for which a CPU has no fast routine:
    the backward pass of a layer took three times as long. Where the sequence is sharded, flattening would move data
    between devices, so `flatten` is False.
    """
    if not flatten:
        return x @ kernel.astype(x.dtype)
    y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nn.Module):
    """x @ kernel (+ bias). The kernel is [inputs, outputs] and is cast to the activation type at use."""

    inputs: int
    outputs: int
    std: float
    use_bias: bool = False
    flatten: bool = True  # see `matmul`

    def setup(self):
        self.kernel = self.param("kernel", truncated_normal(self.std), (self.inputs, self.outputs), jnp.float32)
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.outputs,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel, self.flatten)
        return y + self.bias.astype(x.dtype) if self.use_bias else y


def linear_each(x: jax.Array, layers: Sequence[Linear], platform: str) -> list[jax.Array]:
    """Several projections of one input; on a CPU, as one wide matrix product.

    On a CPU one product with 3d columns is much faster than three with d columns, and so is its weight gradient. On
    accelerators the concatenation would cost a copy, so the products stay separate.
    """
    if platform != "cpu":
        return [layer(x) for layer in layers]
    y = matmul(x, jnp.concatenate([layer.kernel for layer in layers], axis=1), layers[0].flatten)
    parts = jnp.split(y, np.cumsum([layer.outputs for layer in layers])[:-1], axis=-1)
    return [p + layer.bias.astype(x.dtype) if layer.use_bias else p for p, layer in zip(parts, layers, strict=True)]


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"silu": nn.silu, "gelu_tanh": nn.gelu}


class SwiGLU(nn.Module):
    """down(silu(gate x) ⊙ up x), or with the activation of the configuration in the place of silu."""

    config: DecoderConfig
    platform: str
    flatten: bool = True  # see `matmul`

    def setup(self):
        c = self.config
        self.gate = Linear(c.width, c.ffn, matrix_std(c, c.width), flatten=self.flatten)
        self.up = Linear(c.width, c.ffn, matrix_std(c, c.width), flatten=self.flatten)
        self.down = Linear(c.ffn, c.width, matrix_std(c, c.ffn, output=True), flatten=self.flatten)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = linear_each(x, [self.gate, self.up], self.platform)
        gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
        return checkpoint_name(self.down(_ACTIVATIONS[self.config.activation](gate) * up), "down")


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Rotary frequencies, float64 [head_dim / 2]: θ^(−2i/hd), modified by `scaling` (spec olmo §2.2, 2.4, 2.5)."""
    base = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return base
    if scaling.kind == "linear":
        return base / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_context * base / (2 * np.pi)  # the context divided by the wavelength
        t = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        t = np.clip(t, 0.0, 1.0)
        return (1 - t) * base / scaling.factor + t * base

    def dimension(rotations: float) -> float:
        return head_dim * math.log(scaling.original_context / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(0, math.floor(dimension(scaling.beta_fast)))
    high = min(head_dim - 1, math.ceil(dimension(scaling.beta_slow)))
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return base * (1 - ramp) + base / scaling.factor * ramp


def rope_table(
    positions: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position: two float32 arrays [..., head_dim / 2] for int32 positions [...]."""
    frequencies = jnp.asarray(rope_frequencies(head_dim, theta, scaling), jnp.float32)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    magnitude = scaling.magnitude if scaling is not None else 1.0
    return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array], platform: str) -> jax.Array:
    """Rotate heads [..., S, H, hd] by a table [..., S, hd/2]; first half paired with second half, in float32.

    On a TPU the halves are swapped by an exact product with a matrix of 0 and ±1: half of a head fills only half of a
    vector register, and slicing heads took 2 % of a training step at 7B.
    """
    cos, sin = (table[..., :, None, :] for table in rope)
    if platform != "tpu":
        a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    turn = np.kron([[0, 1], [-1, 0]], np.eye(x.shape[-1] // 2))  # (a, b) → (−b, a)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    turned = jnp.matmul(x, jnp.asarray(turn, x.dtype), precision=exact)
    cos, sin = (jnp.concatenate([table, table], axis=-1) for table in (cos, sin))
    return (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(x.dtype)
