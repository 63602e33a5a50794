"""Products of rows with the matrix of their group: what the experts of a mixture compute.

Rows are sorted by group, and groups may have any size, so that no row is dropped and none is computed for an expert
that did not get it.

| backend | used on | method |
|---|---|---|
| `blocks` | CPU and GPU | a loop over blocks of rows, each one product with the matrix of one group |
| `megablox` | TPU | JAX's Pallas kernels `gmm` and `tgmm` (megablox, arXiv 2211.15841), forward and both gradients |

`jax.lax.ragged_dot` is not used: outside of TPUs it multiplies every row with every matrix, and on a TPU its gradient
with respect to the matrices does (64 times the FLOPs for 64 experts).
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Backend = Literal["blocks", "megablox"]


def backend_for(platform: str) -> Backend:
    """The backend of a platform: "cpu", "gpu" or "tpu"."""
    return "megablox" if platform == "tpu" else "blocks"


def grouped_matmul(
    x: jax.Array, kernels: jax.Array, sizes: jax.Array, *, backend: Backend, interpret: bool = False,
    whole: bool = False,
) -> jax.Array:  # fmt: skip
    """x[i] @ kernels[group of row i] for rows that are sorted by group.

    Args:
        x: [M, K]; the first `sizes[0]` rows belong to group 0, the next `sizes[1]` to group 1, and so on.
        kernels: [E, K, N], one matrix for each group, in the type of x.
        sizes: int32 [E], rows of each group; their sum is at most M.
        backend: a name of the table above.
        interpret: run a Pallas kernel without a TPU, for tests.
        whole: every row is of a group, so that no pass over the result is needed to write the rows of none.

    Returns:
        [M, N] in the type of x; rows of no group are 0. Products are summed in float32. Differentiable in `x` and
        `kernels`.
    """
    return _grouped(x, kernels, sizes, backend, interpret, whole)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _grouped(x, kernels, sizes, backend, interpret, whole):
    return _rows(x, kernels, sizes, backend, interpret, whole, transpose=False)


def _grouped_forward(x, kernels, sizes, backend, interpret, whole):
    return _grouped(x, kernels, sizes, backend, interpret, whole), (x, kernels, sizes)


def _grouped_backward(backend, interpret, whole, saved, gradient):
    x, kernels, sizes = saved
    d_x = _rows(gradient, kernels, sizes, backend, interpret, whole, transpose=True)
    d_kernels = (_blocks_outer if backend == "blocks" else _megablox_outer)(x, gradient, sizes, interpret)
    return d_x, d_kernels.astype(kernels.dtype), np.zeros(sizes.shape, jax.dtypes.float0)


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _rows(x, kernels, sizes, backend: Backend, interpret: bool, whole: bool, transpose: bool) -> jax.Array:
    """Every row times the matrix (or its transpose) of its group; rows of no group are 0."""
    y = (_blocks_rows if backend == "blocks" else _megablox_rows)(x, kernels, sizes, transpose, interpret)
    if whole:
        return y
    return jnp.where(jnp.arange(len(x))[:, None] < sizes.sum(), y, jnp.zeros((), y.dtype))


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


def block_rows(rows: int, groups: int) -> int:
    """Rows of a block: the power of two next to the mean size of a group, from 8 to 256."""
    mean = max(1, rows // groups)
    return min(256, max(8, 1 << (mean - 1).bit_length()))


def _blocks(sizes: jax.Array, rows: int, block: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """How sorted rows are cut into blocks: group, first row and end of the group of each block [B], and their number.

    B is the largest number of blocks that `rows` rows can need; only as many as returned are used.
    """
    counts = -(-sizes // block)
    last = jnp.cumsum(counts)
    ends = jnp.cumsum(sizes)
    index = jnp.arange(rows // block + min(len(sizes), rows))
    group = jnp.minimum(jnp.searchsorted(last, index, side="right", method="compare_all"), len(sizes) - 1)
    first = (ends - sizes)[group] + (index - (last - counts)[group]) * block
    return group, first, ends[group], last[-1]


def _padded(x: jax.Array, block: int) -> jax.Array:
    """x with the rows of one more block, so that the last block does not reach beyond the end."""
    return jnp.pad(x, ((0, block), (0, 0)))


def _blocks_rows(x, kernels, sizes, transpose: bool, interpret: bool) -> jax.Array:
    """A block that reaches beyond its group writes into rows of the next group, whose own blocks follow it."""
    block = block_rows(len(x), len(kernels))
    group, first, _, count = _blocks(sizes, len(x), block)
    padded = _padded(x, block)
    width = kernels.shape[1 if transpose else 2]
    contract = (((1,), (1 if transpose else 0,)), ((), ()))

    def one(i, y):
        part = jax.lax.dynamic_slice_in_dim(padded, first[i], block)
        kernel = jax.lax.dynamic_index_in_dim(kernels, group[i], keepdims=False)
        product = jax.lax.dot_general(part, kernel, contract, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(y, product.astype(y.dtype), first[i], axis=0)

    return jax.lax.fori_loop(0, count, one, jnp.zeros((len(padded), width), x.dtype))[: len(x)]


def _blocks_outer(x, gradient, sizes, interpret: bool) -> jax.Array:
    """float32 [E, K, N]: for each group, the sum of the outer products of its rows of `x` and `gradient`."""
    block = block_rows(len(x), len(sizes))
    group, first, end, count = _blocks(sizes, len(x), block)
    x, gradient = _padded(x, block), _padded(gradient, block)
    contract = (((0,), (0,)), ((), ()))

    def one(i, total):
        left, right = (jax.lax.dynamic_slice_in_dim(rows, first[i], block) for rows in (x, gradient))
        own = (first[i] + jnp.arange(block) < end[i])[:, None]
        product = jax.lax.dot_general(left, jnp.where(own, right, 0), contract, preferred_element_type=jnp.float32)
        so_far = jax.lax.dynamic_index_in_dim(total, group[i], keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total, so_far + product, group[i], axis=0)

    zeros = jnp.zeros((len(sizes), x.shape[1], gradient.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, count, one, zeros)


# ---------------------------------------------------------------------------------------------------------------------
# Megablox


def _tile(x: jax.Array, columns: int) -> tuple[int, int, int]:
    """Tiles along M, K and N. Those of a product fit twice (the next ones are loaded meanwhile) in 16 MiB of VMEM."""
    most = 1024 if x.dtype.itemsize == 2 else 512
    rows = 512 if len(x) >= 8192 else 128
    return rows, min(most, x.shape[1]), min(most, columns)


def _whole_tiles(x: jax.Array, tile: int) -> jax.Array:
    """x with rows of zeros at the end: the kernels need a multiple of their tile."""
    return jnp.pad(x, ((0, -len(x) % tile), (0, 0)))


def _kernels() -> Any:
    import importlib

    # The package replaces the name of this module by that of a function with a gradient of its own.
    return importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")


def _megablox_rows(x, kernels, sizes, transpose: bool, interpret: bool) -> jax.Array:
    """Rows of no group are not written; `_rows` replaces them."""
    tiles = _tile(x, kernels.shape[1 if transpose else 2])
    y = _kernels().gmm(
        _whole_tiles(x, tiles[0]), kernels, sizes, x.dtype, tiles, transpose_rhs=transpose, interpret=interpret
    )
    return y[: len(x)]


def _megablox_outer(x, gradient, sizes, interpret: bool) -> jax.Array:
    tiles = _tile(x, gradient.shape[1])
    x, gradient = (_whole_tiles(rows, tiles[0]) for rows in (x, gradient))
    return _kernels().tgmm(x.swapaxes(0, 1), gradient, sizes, x.dtype, tiles, interpret=interpret)
