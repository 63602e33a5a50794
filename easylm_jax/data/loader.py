"""Batches by step: `batch_at(step)` is a pure function of (cache, seed, step).

Resuming therefore needs no replay, and every host computes the same global order and reads only its own rows.
Permutations are the sorting order of raw PCG64 words, which does not depend on the version of NumPy.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from easylm_jax.data.cache import Cache
from models.errors import UserError

_BLOCK = 4096  # rows over which a mixture's rates hold exactly (within one row)
_SCALE = 1 << 40  # rates as integers, so that counts are exact at any step


class Loader:
    """The order of a cache's rows.

    One part (no weights): epoch e is a permutation of all rows, a pure function of (fingerprint, seed, e). With
    `drop_last` an epoch has rows // batch_rows steps and leaves out its last few rows; without, epochs form one stream
    and a batch may span two of them.

    Several parts (a mixture with rates): the stream is divided into blocks of a few thousand rows. Each block has every
    source at its rate (to within one row) in shuffled order, and each source is reshuffled in each of its own epochs. A
    small source with a high rate is therefore repeated before a large one is used up. One nominal epoch has as many
    steps as all rows would fill.

    `epochs` limits the number of steps (`steps`; None without a limit). The order does not depend on the number of
    hosts.
    """

    def __init__(
        self,
        cache: Cache,
        batch_rows: int,
        seed: int,
        epochs: float | None = None,
        shuffle: bool = True,
        drop_last: bool = True,
    ):
        if batch_rows < 1:
            raise UserError(f"loader: batch_rows {batch_rows} must be at least 1")
        self.cache, self.batch_rows, self.seed, self.shuffle = cache, batch_rows, seed, shuffle
        self._parts = cache.manifest["parts"]
        self._mixed = len(self._parts) > 1
        self._stream = self._mixed or not drop_last
        if not self._stream and batch_rows > cache.rows:
            raise UserError(
                f"loader: a batch of {batch_rows} rows is more than the {cache.rows} rows of cache {cache.folder}; "
                "lower the batch or add data"
            )
        self.steps_per_epoch: int = max(1, cache.rows // batch_rows)
        self.steps: int | None = None if epochs is None else int(epochs * self.steps_per_epoch)
        state = (cache.fingerprint, batch_rows, seed, shuffle, self._stream)
        self.fingerprint: str = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
        self._order = functools.lru_cache(maxsize=2 * len(self._parts))(self._make_order)
        self._block = functools.lru_cache(maxsize=2)(self._make_block)
        self._bounds = self._rate_bounds() if self._mixed else None

    def batch_at(self, step: int, rows: slice | np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The arrays of global batch `step` (from 0), or of its `rows` (a slice or indices) for this host.

        Raises `IndexError` for a step after the last epoch.
        """
        return self.cache.read(self.rows_at(step, rows))

    def rows_at(self, step: int, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """Rows of the cache in global batch `step`, int64 [n]."""
        if step < 0 or (self.steps is not None and step >= self.steps):
            raise IndexError(f"step {step} is outside the loader's {self.steps} steps")
        wanted = np.arange(self.batch_rows)[rows if rows is not None else slice(None)]
        if self._mixed:
            return np.array([self._mixture_row(step * self.batch_rows + int(i)) for i in wanted], np.int64)
        count = self.cache.rows
        if self._stream:
            places = step * self.batch_rows + wanted
            return np.array([self._order(0, int(place // count))[place % count] for place in places], np.int64)
        epoch, at = divmod(step, self.steps_per_epoch)
        return self._order(0, epoch)[at * self.batch_rows + wanted].astype(np.int64)

    def digest(self, step: int) -> str:
        """A short hash of a global batch, to compare runs."""
        batch, hashed = self.batch_at(step), hashlib.sha256()
        for name in sorted(batch):
            hashed.update(f"{name}{batch[name].dtype}{batch[name].shape}".encode())
            hashed.update(np.ascontiguousarray(batch[name]).tobytes())
        return hashed.hexdigest()[:12]

    def _make_order(self, part: int, epoch: int) -> np.ndarray:
        count = self._parts[part]["rows"]
        if not self.shuffle:
            return np.arange(count, dtype=np.uint32)
        if self.cache.manifest["spec"].get("order") == "olmo":
            return olmo_order(count, self.seed + epoch)
        return permutation(count, self.cache.fingerprint, self.seed, part, epoch)

    def _rate_bounds(self) -> list[int]:
        """Cumulative rates in units of 1 / _SCALE, from 0 to _SCALE."""
        rates = np.array([part["rate"] for part in self._parts], np.float64)
        bounds = [0, *(round(float(c) * _SCALE) for c in np.cumsum(rates / rates.sum()))]
        bounds[-1] = _SCALE
        smallest = min(b - a for a, b in zip(bounds, bounds[1:], strict=False))
        if smallest <= 0:
            raise UserError(f"loader: cache {self.cache.folder} mixes a source at a rate too small to be drawn")
        # Every block must have at least two rows of every source, so that no count decreases by rounding.
        self._block_rows = max(_BLOCK, -(-4 * _SCALE // smallest))
        return bounds

    def _drawn(self, block: int) -> list[int]:
        """Rows sampled from each source before `block`, as exact integers."""
        assert self._bounds is not None, "only mixtures have bounds"
        edges = [block * self._block_rows * bound // _SCALE for bound in self._bounds]
        return [b - a for a, b in zip(edges, edges[1:], strict=False)]

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position of a block: its source, and the number of rows of that source sampled before it."""
        before, after = self._drawn(block), self._drawn(block + 1)
        counts = np.array(after) - np.array(before)
        sources = np.repeat(np.arange(len(counts)), counts)
        drawn = np.concatenate([np.arange(a, b) for a, b in zip(before, after, strict=True)])
        order = permutation(self._block_rows, self.cache.fingerprint, self.seed, len(self._parts), block)
        shuffled = sources[order]
        # Ranks follow positions, so that each source is read in the order of its own epoch.
        ranked = np.empty(self._block_rows, np.int64)
        ranked[np.argsort(shuffled, kind="stable")] = drawn
        return shuffled, ranked

    def _mixture_row(self, place: int) -> int:
        sources, drawn = self._block(place // self._block_rows)
        at = place % self._block_rows
        part = int(sources[at])
        epoch, index = divmod(int(drawn[at]), self._parts[part]["rows"])
        return self._parts[part]["first_row"] + int(self._order(part, epoch)[index])


def olmo_order(count: int, seed: int) -> np.ndarray:
    """The order of OLMo's trainer (spec olmo §12): NumPy's shuffle of 0 .. count-1, seeded by the run's seed + epoch.

    Other versions of NumPy give the same order as long as they do not change their shuffle.
    """
    order = np.arange(count, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed)).shuffle(order)
    return order


def permutation(count: int, fingerprint: str, *numbers: int) -> np.ndarray:
    """A permutation of 0 .. count-1 that is a pure function of its arguments (uint32, or int64 above 2^32)."""
    digest = hashlib.sha256(repr((fingerprint, numbers)).encode()).digest()
    words = np.frombuffer(digest, "<u4").tolist()
    keys = np.random.PCG64(np.random.SeedSequence(words)).random_raw(count)
    order = np.argsort(keys, kind="stable")
    return order.astype(np.uint32) if count <= 1 << 32 else order
