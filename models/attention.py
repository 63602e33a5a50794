"""Causal attention over packed rows, one implementation for each platform behind `attention`.

What a query may see is decided by `segment_ids` alone: keys of the same segment, at or before the query, and within
`window` keys when the layer slides. Segment 0 is padding; padding sees only padding, so no softmax is ever empty.

| name | where | how |
|---|---|---|
| `blocked` | CPU, and wherever nothing better applies | queries in blocks, each against only the keys it can see |
| `splash` | TPU | JAX's splash kernel, batch and heads mapped over the mesh by `shard_map` |
| `cudnn` | GPU, 16-bit | fused cuDNN kernel through `jax.nn.dot_product_attention` |
| `dense` | reference | the whole score matrix at once; what the others are tested against |
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError

MASKED = -1e30  # finite, so that a row which is masked in one block and open in the next never makes 0 · inf


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array,
    window: int | None = None,
    kernel: str = "auto",
    platform: str = "cpu",
    batch_axes: tuple[str, ...] | None = None,
) -> jax.Array:
    """softmax(q kᵀ / √hd) v under the packed causal mask.

    Args:
        q: [B, S, H, hd]; k, v: [B, S, KV, hd] with H a multiple of KV (query head h reads key head h // (H/KV)).
        segment_ids: int32 [B, S].
        window: keys a query sees, itself included; None for all.
        kernel: a name of the table above, or "auto".
        platform: where the program will run.
        batch_axes: mesh axes over which the batch is split, for kernels that must be mapped by hand.

    Returns:
        [B, S, H, hd] in q's type; the softmax is in float32.
    """
    name = choose_kernel(kernel, platform, q.shape[1], q.shape[3], q.dtype)
    run = {"blocked": _blocked, "dense": _dense, "splash": _splash, "cudnn": _cudnn}[name]
    return run(q, k, v, segment_ids, window, batch_axes)


def choose_kernel(kernel: str, platform: str, length: int, head_dim: int, dtype) -> str:
    """The implementation that "auto" stands for; a named one is checked and returned."""
    if kernel not in ("auto", "blocked", "dense", "splash", "cudnn"):
        raise UserError(f"unknown attention kernel {kernel!r}; use auto, blocked, dense, splash or cudnn")
    if kernel != "auto":
        return kernel
    # Splash tiles sequences by 128 lanes. cuDNN's fused kernel takes 16-bit inputs and head sizes up to 256 only.
    if platform == "tpu" and length % 128 == 0 and head_dim % 64 == 0:
        return "splash"
    if platform == "gpu" and jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 256:
        return "cudnn"
    return "blocked"


def visible(segment_ids: jax.Array, queries: tuple[int, int], keys: tuple[int, int], window: int | None) -> jax.Array:
    """Boolean [B, queries, keys]: may the query in this span of the row see the key in that span?"""
    i = jnp.arange(*queries)[:, None]
    j = jnp.arange(*keys)[None, :]
    order = j <= i if window is None else (j <= i) & (i - j < window)
    same = segment_ids[:, slice(*queries), None] == segment_ids[:, None, slice(*keys)]
    return order & same


def _grouped_scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """[B, KV, G, Q, hd] × [B, KV, K, hd] → float32 [B, KV, G, Q, K]; the group is folded into one product's rows."""
    b, kv, g, n, hd = q.shape
    scores = jax.lax.dot_general(
        q.reshape(b, kv, g * n, hd), k, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )
    return scores.reshape(b, kv, g, n, k.shape[2])


def _grouped_values(p: jax.Array, v: jax.Array) -> jax.Array:
    """[B, KV, G, Q, K] × [B, KV, K, hd] → [B, KV, G, Q, hd]."""
    b, kv, g, n, keys = p.shape
    out = jax.lax.dot_general(p.reshape(b, kv, g * n, keys), v, (((3,), (2,)), ((0, 1), (0, 1))))
    return out.reshape(b, kv, g, n, v.shape[3])


def _head_major(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scaled queries as [B, KV, G, S, hd], keys and values as [B, KV, S, hd]."""
    b, s, heads, hd = q.shape
    kv = k.shape[2]
    q = (q * hd**-0.5).reshape(b, s, kv, heads // kv, hd).transpose(0, 2, 3, 1, 4)
    return q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """One softmax over the given keys; mask [B, Q, K]."""
    scores = jnp.where(mask[:, None, None], _grouped_scores(q, k), MASKED)
    p = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # Normalised after the product with v: hd values a query to divide instead of K.
    total = p.sum(axis=-1, keepdims=True)
    return (_grouped_values(p.astype(v.dtype), v) / total).astype(v.dtype)


def _token_major(out: jax.Array) -> jax.Array:
    b, kv, g, s, hd = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(b, s, kv * g, hd)


def _dense(q, k, v, segment_ids, window, batch_axes):
    length = q.shape[1]
    mask = visible(segment_ids, (0, length), (0, length), window)
    return _token_major(_attend(*_head_major(q, k, v), mask))


def _blocked(q, k, v, segment_ids, window, batch_axes):
    """Queries in blocks against the keys from the start of their window to their own end: half the work of `dense`.

    Long rows recompute each block's scores in the backward pass, so that memory grows with S · block, not S².
    """
    length = q.shape[1]
    block = max(64, -(-length // 16))
    q, k, v = _head_major(q, k, v)

    def one(q, k, v, segment_ids, start, stop, first):
        mask = visible(segment_ids, (start, stop), (first, stop), window)
        return _attend(q[:, :, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], mask)

    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        first = 0 if window is None else max(0, start - window + 1)
        span = functools.partial(one, start=start, stop=stop, first=first)
        outputs.append((jax.checkpoint(span) if length > 1024 else span)(q, k, v, segment_ids))
    return _token_major(jnp.concatenate(outputs, axis=3))


def _cudnn(q, k, v, segment_ids, window, batch_axes):
    length = q.shape[1]
    mask = visible(segment_ids, (0, length), (0, length), window)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def _splash_kernel(heads: int, length: int, window: int | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    # The largest tile of 128·2ⁿ up to 512 that divides the row.
    block = math.gcd(length, 512)
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), block),
        **dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), block),
    )
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )


def _splash(q, k, v, segment_ids, window, batch_axes, interpret=False):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    def local(q, k, v, segment_ids):
        kernel = _splash_kernel(q.shape[2], q.shape[1], window, interpret)
        head_major = (x.transpose(0, 2, 1, 3) for x in (q * np.asarray(q.shape[-1] ** -0.5, q.dtype), k, v))
        segments = splash.SegmentIds(q=segment_ids, kv=segment_ids)
        return jax.vmap(kernel)(*head_major, segments).transpose(0, 2, 1, 3)

    if batch_axes is None:
        return local(q, k, v, segment_ids)
    spec = jax.sharding.PartitionSpec(batch_axes, None, "tp", None)
    rows = jax.sharding.PartitionSpec(batch_axes, None)
    return jax.shard_map(local, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False)(
        q, k, v, segment_ids
    )
