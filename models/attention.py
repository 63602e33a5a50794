"""Causal attention over packed rows. `attention` selects one implementation for each platform.

`segment_ids` alone decide the mask: a query attends to keys of its own segment, at or before its own position, and
within `window` keys in sliding-window layers. Segment 0 is padding; padding attends only to padding, so that no
softmax is empty.

| name | used on | method |
|---|---|---|
| `blocked` | CPU, and wherever no other applies | queries in blocks, each with only the keys that it attends to |
| `splash` | TPU | JAX's splash attention kernel, batch and heads mapped over the mesh by `shard_map` |
| `cudnn` | GPU, 16-bit types | cuDNN's fused kernel through `jax.nn.dot_product_attention` |
| `dense` | tests | the whole score matrix at once; the reference for the others |

Where a mesh axis shards the sequence, each device gathers the keys and values of whole rows and attends with its own
queries (context parallelism by all-gather, as in Llama 3, arXiv 2407.21783 section 3.3.2). The mask stays the same: it
is computed from the position of a query in the whole row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from models.config import BRANCH, Placement
from models.errors import UserError
from models.layers import soft_cap

MASKED = -1e30  # finite: with −inf, a query whose keys are all masked in one block would give 0 · inf = NaN


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array,
    window: int | None = None,
    kernel: str = "auto",
    platform: str = "cpu",
    placement: Placement = Placement(),  # noqa: B008 - frozen
    softcap: float | None = None,
    branches: bool = False,
) -> jax.Array:
    """softmax(q kᵀ / √hd) v under the packed causal mask.

    Args:
        q: [B, S, H, hd]; k, v: [B, S, KV, hd] with H a multiple of KV (query head h reads key head h // (H/KV)).
        segment_ids: int32 [B, S].
        window: keys that a query attends to, its own included; None for all.
        kernel: a name of the table above, or "auto".
        platform: where the program will run: "cpu", "gpu" or "tpu".
        placement: the mesh axes that rows, sequences and heads are sharded over.
        softcap: bounds the scores s to c · tanh(s / c) before the mask; None for no bound.
        branches: whether segments may be branches of others (`BRANCH`), which splash attention cannot express.

    Returns:
        [B, S, H, hd] in q's type; the softmax is in float32.
    """
    parts = 1 if placement.sequence is None else jax.sharding.get_abstract_mesh().shape[placement.sequence]
    name = choose_kernel(kernel, platform, q.shape[1] // parts, q.shape[3], q.dtype, softcap)
    if name == "splash":
        if not branches:
            return _splash(q, k, v, segment_ids, window, placement, softcap)
        name = "blocked"
    kernels: dict[str, Callable[..., jax.Array]] = {"blocked": _blocked, "dense": _dense, "cudnn": _cudnn}
    run = kernels[name]
    if softcap is not None:
        run = functools.partial(run, softcap=softcap)
    if branches:
        run = functools.partial(run, branches=True)
    if placement.sequence is None:
        out = run(q, k, v, segment_ids, window)
    else:
        out = _over_sequence(run, q, k, v, segment_ids, window, placement)
    return checkpoint_name(out, "attention")  # the name that splash gives to the residuals of its backward pass


def choose_kernel(
    kernel: str, platform: str, length: int, head_dim: int, dtype, softcap: float | None = None
) -> str:  # fmt: skip
    """The name of the implementation for "auto"; any other name is checked and returned.

    Raises:
        UserError: there is no kernel of this name, or it does not bound scores by a soft cap.
    """
    if kernel == "cudnn" and softcap is not None:
        raise UserError("the attention kernel cudnn has no soft cap on scores, which this model needs; use auto")
    if kernel not in ("auto", "blocked", "dense", "splash", "cudnn"):
        raise UserError(f"unknown attention kernel {kernel!r}; use auto, blocked, dense, splash or cudnn")
    if kernel != "auto":
        return kernel
    # Splash tiles sequences by 128 lanes. cuDNN's fused kernel takes 16-bit inputs and head sizes up to 256 only.
    if platform == "tpu" and length % 128 == 0 and head_dim % 64 == 0:
        return "splash"
    fused = jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 256 and softcap is None
    if platform == "gpu" and fused:
        return "cudnn"
    return "blocked"


def visible(
    segment_ids: jax.Array, queries: tuple[int, int], keys: tuple[int, int], window: int | None,
    first: jax.Array | None = None, branches: bool = False,
) -> jax.Array:  # fmt: skip
    """The attention mask, bool [B, queries, keys], for a span (start, stop) of queries and one of keys.

    With `first` (int32 scalar), the span of queries is relative to that position in the row.
    """
    i = jnp.arange(*queries)[:, None]
    own = segment_ids[:, slice(*queries)]
    if first is not None:
        i = first + i
        own = jax.lax.dynamic_slice_in_dim(segment_ids, first + queries[0], queries[1] - queries[0], axis=1)
    j = jnp.arange(*keys)[None, :]
    order = j <= i if window is None else (j <= i) & (i - j < window)
    of_keys = segment_ids[:, None, slice(*keys)]
    same = own[:, :, None] == of_keys
    return order & (same | (of_keys == (own % BRANCH)[:, :, None]) if branches else same)


def _over_sequence(run, q, k, v, segment_ids, window, placement: Placement):
    """`run` for each device's shard of the queries, with the keys and values of the whole sequence."""
    axis = placement.sequence
    assert axis is not None, "called only where the sequence is sharded"

    def local(q, k, v, segment_ids):
        first = jax.lax.axis_index(axis) * q.shape[1]
        return run(q, *_gathered(axis, k, v), segment_ids, window, first)

    spec = jax.sharding.PartitionSpec(placement.batch, axis, placement.tensor, None)
    rows = jax.sharding.PartitionSpec(placement.batch, None)
    mapped = jax.shard_map(local, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False)
    return mapped(q, k, v, segment_ids)


def _gathered(axis: str, *arrays: jax.Array) -> list[jax.Array]:
    """All-gathers the shards [B, S / parts, …] of a mesh axis along the sequence: [B, S, …]."""
    return [jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in arrays]


def _grouped_scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """[B, KV, G, Q, hd] × [B, KV, K, hd] → float32 [B, KV, G, Q, K]; groups become rows of one product."""
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


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, softcap: float | None = None
) -> jax.Array:  # fmt: skip
    """One softmax over the given keys; mask [B, Q, K]."""
    scores = jnp.where(mask[:, None, None], soft_cap(_grouped_scores(q, k), softcap), MASKED)
    p = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # Normalised after the product with v: this divides hd values for each query instead of K.
    total = p.sum(axis=-1, keepdims=True)
    return (_grouped_values(p.astype(v.dtype), v) / total).astype(v.dtype)


def _token_major(out: jax.Array) -> jax.Array:
    b, kv, g, s, hd = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(b, s, kv * g, hd)


def _dense(q, k, v, segment_ids, window, first=None, softcap=None, branches=False):
    mask = visible(segment_ids, (0, q.shape[1]), (0, k.shape[1]), window, first, branches)
    return _token_major(_attend(*_head_major(q, k, v), mask, softcap))


def _blocked(q, k, v, segment_ids, window, first=None, softcap=None, branches=False):
    """Queries in blocks, each with the keys from the start of its window to its own end: half the work of `dense`.

    For long rows the backward pass recomputes each block's scores, so that memory grows with S · block instead of S².
    The position of a shard of the sequence (`first`) is known only at run time, so its blocks use all keys, masked.
    """
    length, keys = q.shape[1], k.shape[1]
    block = max(64, -(-length // 16))
    q, k, v = _head_major(q, k, v)

    def one(q, k, v, segment_ids, first, queries, seen):
        mask = visible(segment_ids, queries, seen, window, first, branches)
        return _attend(q[:, :, :, slice(*queries)], k[:, :, slice(*seen)], v[:, :, slice(*seen)], mask, softcap)

    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = (0 if window is None else max(0, start - window + 1), stop) if first is None else (0, keys)
        span = functools.partial(one, queries=(start, stop), seen=seen)
        outputs.append((jax.checkpoint(span) if keys > 1024 else span)(q, k, v, segment_ids, first))
    return _token_major(jnp.concatenate(outputs, axis=3))


def _cudnn(q, k, v, segment_ids, window, first=None, branches=False):
    mask = visible(segment_ids, (0, q.shape[1]), (0, k.shape[1]), window, first, branches)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def _splash_kernel(
    heads: int, length: int, window: int | None, interpret: bool, order: np.ndarray | None = None, parts: int = 1,
    softcap: float | None = None,
):  # fmt: skip
    """The splash kernel for rows of `length` tokens.

    With `parts` > 1, the queries are sharded over that many devices; `order` int32 [length] gives the position in the
    row of each query where they are not in order.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    if order is not None:
        mask.q_sequence = order
    # The largest tile of 128·2ⁿ up to 512 that divides the row, or the contiguous queries of one device.
    block, own = math.gcd(length, 512), math.gcd(length // (parts if order is None else 2 * parts), 512)
    sizes = splash.BlockSizes(
        block_q=own, block_q_dkv=own, block_q_dq=own, block_kv=block, block_kv_compute=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_kv_dq=block,
    )  # fmt: skip
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=parts, interpret=interpret,
        residual_checkpoint_name="attention", attn_logits_soft_cap=softcap,
    )  # fmt: skip


def _run_splash(kernel, q, k, v, own_segments, segment_ids):
    """Runs a splash kernel on the rows and heads of one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * np.asarray(q.shape[-1] ** -0.5, q.dtype), k, v))
    segments = splash.SegmentIds(q=own_segments, kv=segment_ids)
    return jax.vmap(kernel)(q, k, v, segments).transpose(0, 2, 1, 3)


def _splash(q, k, v, segment_ids, window, placement: Placement, softcap=None, interpret=False):
    def local(q, k, v, segment_ids):
        kernel = _splash_kernel(q.shape[2], q.shape[1], window, interpret, softcap=softcap)
        return _run_splash(kernel, q, k, v, segment_ids, segment_ids)

    if placement.batch is None:
        return local(q, k, v, segment_ids)
    if placement.sequence is not None:
        return _splash_over_sequence(q, k, v, segment_ids, window, placement, softcap, interpret)
    spec = jax.sharding.PartitionSpec(placement.batch, None, placement.tensor, None)
    rows = jax.sharding.PartitionSpec(placement.batch, None)
    return jax.shard_map(local, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False)(
        q, k, v, segment_ids
    )


def _splash_over_sequence(q, k, v, segment_ids, window, placement: Placement, softcap, interpret):
    """Splash attention with a sharded sequence, balanced so that every device does the same work under a causal mask.

    The row is cut into twice as many chunks as there are devices; device d computes chunk d and the chunk as far from
    the end. Queries are exchanged before the kernel and its outputs after it. With a window all queries cost the same,
    so they stay where they are.
    """
    mesh, batch, axis = jax.sharding.get_abstract_mesh(), placement.batch, placement.sequence
    assert axis is not None, "called only where the sequence is sharded"
    length, parts = q.shape[1], mesh.shape[axis]
    balanced = window is None and length % (2 * parts * 128) == 0
    order = balanced_order(length, parts) if balanced else None
    kernel = _splash_kernel(
        q.shape[2] // mesh.shape[placement.tensor], length, window, interpret, order, parts, softcap
    )
    own_segments = segment_ids if order is None else segment_ids[:, order]

    def local(kernel, q, k, v, own_segments, segment_ids):
        q = _exchanged(q, axis, parts) if balanced else q
        k, v = _gathered(axis, k, v)
        out = _run_splash(kernel, q, k, v, own_segments, segment_ids)
        return _exchanged(out, axis, parts, back=True) if balanced else out

    partition = jax.sharding.PartitionSpec
    spec, rows = partition(batch, axis, placement.tensor, None), partition(batch, None)
    of_kernel = kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, partition(None, axis)))
    return jax.shard_map(
        local, in_specs=(of_kernel, spec, spec, spec, partition(batch, axis), rows), out_specs=spec,
        check_vma=False,
    )(kernel, q, k, v, own_segments, segment_ids)  # fmt: skip


def balanced_order(length: int, parts: int) -> np.ndarray:
    """int32 [length]: positions in the row of the queries of device 0, then of device 1, and so on.

    Of the two chunks of a device, one has an even and one an odd number, and the even one comes first. `_exchanged`
    therefore sends the even chunks by one permutation and the odd chunks by another.
    """
    pairs = [sorted((d, 2 * parts - 1 - d), key=lambda chunk: chunk % 2) for d in range(parts)]
    return np.arange(length, dtype=np.int32).reshape(2 * parts, -1)[np.array(pairs).reshape(-1)].reshape(-1)


def _exchanged(x: jax.Array, axis: str, parts: int, back: bool = False) -> jax.Array:
    """Exchanges the two chunks [B, S / parts, …] that a device holds for those that it computes; `back` reverses it."""
    chunks = []
    for odd, chunk in enumerate(jnp.split(x, 2, axis=1)):
        ways = [(d, min(2 * d + odd, 2 * parts - 1 - 2 * d - odd)) for d in range(parts)]
        chunks.append(jax.lax.ppermute(chunk, axis, [way[::-1] for way in ways] if back else ways))
    return jnp.concatenate(chunks, axis=1)
