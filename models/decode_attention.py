"""Attention of one new token a row over its cached keys and values: a Pallas kernel for TPUs.

The cache of all layers is one operand [L, B, KV, C, hd] that stays where it lies; the layer's number is prefetched, so
that only its blocks are fetched, and of those only what holds columns that a row can see. Softmax is online and in
float32.

What limits it: every cached byte is read once and each 128 × 128 tile of it enters a matrix unit once. The static
schedule of one step of the grid (8 heads × 1,024 columns in bfloat16, 4 MiB) is about 1,500 bundles on v5e and v5p, of
which the fetch takes 5,300 cycles of a v5p core and 7,700 of a v5e; so the fetch is the limit, for one query a head as
well as for a group. The queries of all heads of a row are therefore kept as the rows of one matrix, so that softmax
works on full registers: each head's product is taken with the other heads' queries set to zero, which costs nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from models.config import Placement

MASKED = -1e30  # finite: a block in which a row sees nothing is weighed by exp(MASKED − m) = 0 later, never inf − inf
_BLOCK_BYTES = 2 * 2**20  # of keys, and as much of values; both twice in fast memory, within the default 16 MiB
_MOST_QUERIES = 64  # of one matrix: more would take longer than the tile that they are multiplied with


def fits_kernel(platform: str, head_dim: int, columns: int, dtype, kernel: str = "auto") -> bool:
    """Whether the kernel is used: on a TPU, where head sizes fill lanes and columns fill tiles, unless `kernel` names
    an attention of `models/attention.py` that is none ("blocked", "dense")."""
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
    block: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q kᵀ / √hd) v of one query a row over columns clock − count … clock of one layer of the cache.

    Args:
        q: [B, H, hd].
        keys, values: [L, B, KV, C, hd], H a multiple of KV.
        layer, clock: int32 scalars.
        counts: int32 [B], how many columns before the clock are the row's.
        window: keys a query sees, its own included; None for all.
        placement: the mesh axes that rows and heads are split over.
        block: columns that are fetched at once; left out, as many as make 2 MiB of keys.
        interpret: run it as plain operations, on any platform.

    Returns:
        [B, H, hd] in q's type.
    """
    reach = counts if window is None else jnp.minimum(counts, window - 1)
    first = jnp.maximum(clock - reach, 0).astype(jnp.int32)
    layer, clock = (jnp.reshape(jnp.asarray(x, jnp.int32), (1,)) for x in (layer, clock))
    run = functools.partial(_local, block=block, interpret=interpret)
    if placement.batch is None:
        return run(q, keys, values, first, layer, clock)
    spec = jax.sharding.PartitionSpec
    rows, tensor = placement.batch, placement.tensor
    heads, cache, one = spec(rows, tensor, None), spec(None, rows, tensor, None, None), spec()
    mapped = jax.shard_map(run, in_specs=(heads, cache, cache, spec(rows), one, one), out_specs=heads, check_vma=False)
    return mapped(q, keys, values, first, layer, clock)


def _tiles(rows: int, heads: int, group: int, columns: int, row_bytes: int, block: int | None) -> tuple[int, int, int]:
    """(rows, heads, columns) of one block. Few heads leave room for several rows: a step of the grid costs a third of
    a microsecond, in which half a megabyte could be fetched."""
    most = max(1, min(heads, _MOST_QUERIES // group, _BLOCK_BYTES // (128 * row_bytes)))
    # What is cut off the heads must be whole tiles of 8 queries.
    h = next((n for n in range(most, 0, -1) if heads % n == 0 and (n == heads or n * group % 8 == 0)), heads)
    if block is None:
        block = max(128, min(2048, _BLOCK_BYTES // (h * row_bytes)) // 128 * 128)
    block = min(block, columns)
    most = max(1, min(8, _BLOCK_BYTES // (h * block * row_bytes)))
    return next(n for n in range(most, 0, -1) if rows % n == 0), h, block


def _local(q, keys, values, first, layer, clock, *, block: int | None, interpret: bool):
    b, count, hd = q.shape
    _, _, kv, columns, _ = keys.shape
    group, size = count // kv, jnp.dtype(keys.dtype).itemsize
    rows, heads, block = _tiles(b, kv, group, columns, hd * size, block)

    def cached(i, h, c, first_ref, layer_ref, clock_ref):
        # Outside what the rows see, the block that is there already: nothing is fetched.
        low = _least(first_ref, i * rows, rows)
        return layer_ref[0], i, h, jnp.clip(c, jax.lax.div(low, block), jax.lax.div(clock_ref[0], block)), 0

    at = lambda i, h, c, *_: (i, h, 0)  # noqa: E731
    mine = pl.BlockSpec((rows, heads * group, hd), at)
    part = pl.BlockSpec((1, rows, heads, block, hd), cached)
    carried = [pltpu.VMEM((rows, heads * group, n), jnp.float32) for n in (128, 128, hd)]
    kernel = functools.partial(_kernel, group=group, block=block, ragged=columns % block != 0)
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
    """The least of `count` scalars."""
    return functools.reduce(jnp.minimum, [ref[start + r] for r in range(count)])


def _kernel(
    first_ref, layer_ref, clock_ref, q_ref, k_ref, v_ref, out_ref, m_ref, total_ref, sum_ref,
    *, group: int, block: int, ragged: bool,
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
        if ragged:  # behind the last column lies anything, and 0 · NaN is not 0
            written = c * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0) <= clock
        for r in range(rows):
            seen = (column >= first_ref[start + r]) & (column <= clock)
            _row(r, seen, written, head, q_ref, k_ref, v_ref, m_ref, total_ref, sum_ref)

    @pl.when(c == pl.num_programs(2) - 1)
    def _():
        out_ref[...] = (sum_ref[...] / total_ref[...][..., :1]).astype(out_ref.dtype)


def _row(r: int, seen, written, head, q_ref, k_ref, v_ref, m_ref, total_ref, sum_ref) -> None:
    """One row's online softmax over a block: `m` largest score so far, `total` of the weights, `sum` of values."""
    heads, q = k_ref.shape[2], q_ref[r]
    # Said outright: under a default of "highest" the compiler refuses 16-bit products.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision)
    scores = jnp.zeros((q.shape[0], seen.shape[1]), jnp.float32)
    for h in range(heads):
        own = q if heads == 1 else jnp.where(head == h, q, jnp.zeros_like(q))
        scores += product(own, k_ref[0, r, h], (((1,), (1,)), ((), ())))
    scores = jnp.where(seen, scores, MASKED)
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
