"""Attention of one new token per row over its cached keys and values: a Pallas kernel for TPUs.

The cache of all layers is one operand [L, B, KV, C, hd], which is not copied. The index of the layer is a prefetched
scalar, so that only blocks of this layer are fetched, and only those with columns that a row attends to. The softmax
is online and in float32.

Performance: every cached byte is read once, and each 128 × 128 tile enters a matrix unit once. The static schedule of
one grid step (8 heads × 1,024 columns in bfloat16, 4 MiB) is about 1,500 bundles on v5e and v5p, while the fetch takes
5,300 cycles of a v5p core and 7,700 of a v5e. The kernel is therefore memory-bound, with one query per key head as
well as with a group. The queries of all heads of a row are the rows of one matrix, so that the softmax fills whole
registers; the product of one head sets the queries of other heads to zero, which costs nothing in a memory-bound
kernel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from models.config import Placement
from models.layers import soft_cap

MASKED = -1e30  # finite: a fully masked block later gets the weight exp(MASKED − m) = 0, where −inf would give NaN
_BLOCK_BYTES = 2 * 2**20  # of keys, and as many of values; both are double-buffered in VMEM, within its default 16 MiB
_MOST_QUERIES = 64  # rows of one product; more would take longer than the fetch of the tile


def fits_kernel(platform: str, head_dim: int, columns: int, dtype, kernel: str = "auto") -> bool:
    """Whether the kernel is used: on a TPU, for head sizes and columns that are multiples of 128.

    It is not used where `kernel` names an implementation of `models/attention.py` without a kernel ("blocked",
    "dense").
    """
    if platform != "tpu" or kernel not in ("auto", "splash"):
        return False
    return head_dim % 128 == 0 and columns % 128 == 0 and jnp.dtype(dtype).itemsize in (2, 4)


def decode_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    layer: jax.Array,
    counts: jax.Array,
    clock: jax.Array,
    *,
    window: int | None = None,
    placement: Placement = Placement(),  # noqa: B008 - frozen
    softcap: float | None = None,
    block: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q kᵀ / √hd) v of one query per row over columns clock − count … clock of one layer of the cache.

    Args:
        q: [B, H, hd].
        keys, values: [L, B, KV, C, hd], H a multiple of KV.
        layer: int32 scalar, index of the layer.
        clock: int32 scalar, the column of the new token, the same for all rows.
        counts: int32 [B], columns before `clock` that belong to the row.
        window: keys that a query attends to, its own included; None for all.
        placement: the mesh axes that rows and heads are sharded over.
        softcap: bounds the scores s to c · tanh(s / c); None for no bound.
        block: columns per fetch; left out, as many as make 2 MiB of keys.
        interpret: run the kernel in Pallas's interpreter, on any platform.

    Returns:
        [B, H, hd] in q's type.
    """
    reach = counts if window is None else jnp.minimum(counts, window - 1)
    first = jnp.maximum(clock - reach, 0).astype(jnp.int32)
    layer, clock = (jnp.reshape(jnp.asarray(x, jnp.int32), (1,)) for x in (layer, clock))
    run = functools.partial(_local, block=block, interpret=interpret, softcap=softcap)
    if placement.batch is None:
        return run(q, keys, values, first, layer, clock)
    spec = jax.sharding.PartitionSpec
    rows, tensor = placement.batch, placement.tensor
    heads, cache, one = spec(rows, tensor, None), spec(None, rows, tensor, None, None), spec()
    mapped = jax.shard_map(run, in_specs=(heads, cache, cache, spec(rows), one, one), out_specs=heads, check_vma=False)
    return mapped(q, keys, values, first, layer, clock)


def _tiles(rows: int, heads: int, group: int, columns: int, row_bytes: int, block: int | None) -> tuple[int, int, int]:
    """(rows, heads, columns) of one block.

    With few heads, a block takes several rows: a grid step costs a third of a microsecond, in which half a megabyte
    could be fetched.
    """
    most = max(1, min(heads, _MOST_QUERIES // group, _BLOCK_BYTES // (128 * row_bytes)))
    # A block of heads must be whole tiles of 8 queries.
    h = next((n for n in range(most, 0, -1) if heads % n == 0 and (n == heads or n * group % 8 == 0)), heads)
    if block is None:
        block = max(128, min(2048, _BLOCK_BYTES // (h * row_bytes)) // 128 * 128)
    block = min(block, columns)
    most = max(1, min(8, _BLOCK_BYTES // (h * block * row_bytes)))
    return next(n for n in range(most, 0, -1) if rows % n == 0), h, block


def _local(q, keys, values, first, layer, clock, *, block: int | None, interpret: bool, softcap: float | None):
    b, count, hd = q.shape
    _, _, kv, columns, _ = keys.shape
    group, size = count // kv, jnp.dtype(keys.dtype).itemsize
    rows, heads, block = _tiles(b, kv, group, columns, hd * size, block)

    def cached(i, h, c, first_ref, layer_ref, clock_ref):
        # Outside the columns that the rows attend to, the index stays at the last block, so nothing is fetched.
        low = _least(first_ref, i * rows, rows)
        return layer_ref[0], i, h, jnp.clip(c, jax.lax.div(low, block), jax.lax.div(clock_ref[0], block)), 0

    at = lambda i, h, c, *_: (i, h, 0)  # noqa: E731
    mine = pl.BlockSpec((rows, heads * group, hd), at)
    part = pl.BlockSpec((1, rows, heads, block, hd), cached)
    carried = [pltpu.VMEM((rows, heads * group, n), jnp.float32) for n in (128, 128, hd)]
    kernel = functools.partial(_kernel, group=group, block=block, ragged=columns % block != 0, softcap=softcap)
    scores = b * count * columns
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3, grid=(b // rows, kv // heads, -(-columns // block)),
            in_specs=[mine, part, part], out_specs=mine, scratch_shapes=carried,
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * scores * hd, transcendentals=scores,
            bytes_accessed=2 * b * kv * columns * hd * size + 2 * q.size * jnp.dtype(q.dtype).itemsize,
        ),
        name="decode_attention", interpret=interpret,
    )(first, layer, clock, q * jnp.asarray(hd**-0.5, q.dtype), keys, values)  # fmt: skip


def _least(ref, start, count: int):
    """The minimum of `count` scalars."""
    return functools.reduce(jnp.minimum, [ref[start + r] for r in range(count)])


def _kernel(
    first_ref, layer_ref, clock_ref, q_ref, k_ref, v_ref, out_ref, m_ref, total_ref, sum_ref,
    *, group: int, block: int, ragged: bool, softcap: float | None,
):  # fmt: skip
    rows, heads = q_ref.shape[0], k_ref.shape[2]
    start, c, clock = pl.program_id(0) * rows, pl.program_id(2), clock_ref[0]

    @pl.when(c == 0)
    def _():
        m_ref[...] = jnp.full_like(m_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when((c * block <= clock) & ((c + 1) * block > _least(first_ref, start, rows)))
    def _():
        column = c * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
        head = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (heads * group, 1), 0), jnp.int32(group))
        written = None
        if ragged:  # memory after the last column is undefined, and 0 · NaN is not 0
            written = c * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0) <= clock
        for r in range(rows):
            seen = (column >= first_ref[start + r]) & (column <= clock)
            _row(r, seen, written, head, q_ref, k_ref, v_ref, m_ref, total_ref, sum_ref, softcap)

    @pl.when(c == pl.num_programs(2) - 1)
    def _():
        out_ref[...] = (sum_ref[...] / total_ref[...][..., :1]).astype(out_ref.dtype)


def _row(r: int, seen, written, head, q_ref, k_ref, v_ref, m_ref, total_ref, sum_ref, softcap) -> None:
    """Online softmax of one row over a block.

    Keeps the running maximum of the scores (`m`), the sum of weights (`total`) and the weighted sum of values (`sum`).
    """
    heads, q = k_ref.shape[2], q_ref[r]
    # Set explicitly: with a default precision of "highest" the compiler rejects 16-bit products.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision)
    scores = jnp.zeros((q.shape[0], seen.shape[1]), jnp.float32)
    for h in range(heads):
        own = q if heads == 1 else jnp.where(head == h, q, jnp.zeros_like(q))
        scores += product(own, k_ref[0, r, h], (((1,), (1,)), ((), ())))
    scores = jnp.where(seen, soft_cap(scores, softcap), MASKED)
    old = m_ref[r]
    m = jnp.maximum(old, scores.max(axis=1, keepdims=True))
    keep, p = jnp.exp(old - m), jnp.exp(scores - m[:, :1])
    m_ref[r] = m
    total_ref[r] = total_ref[r] * keep + p.sum(axis=1, keepdims=True)
    p, sums = p.astype(v_ref.dtype), sum_ref[r] * keep[:, :1]
    for h in range(heads):
        v = v_ref[0, r, h]
        if written is not None:
            v = jnp.where(written, v, jnp.zeros_like(v))
        part = product(p, v, (((1,), (0,)), ((), ())))
        sums += part if heads == 1 else jnp.where(head == h, part, 0.0)
    sum_ref[r] = sums
