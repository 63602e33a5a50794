"""MinHash signatures of word n-grams, and locality-sensitive hashing over bands (Broder 1997; Indyk, Motwani 1998).

Two rows with Jaccard similarity s agree in one MinHash with probability s, so they share a band of r of them with
probability s^r, and at least one of b bands with probability 1 - (1 - s^r)^b (`candidate_probability`). Rows that share
a band are candidates; their similarity is then computed exactly from the n-grams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

HASHES = 128  # MinHashes of a row, at most
MISS = 1e-4  # probability at most with which a pair at the threshold is no candidate
_CACHE = 1 << 19  # words whose hashes are kept
_ROWS = 2048  # n-grams hashed at a time


def bands_for(threshold: float, hashes: int = HASHES, miss: float = MISS) -> tuple[int, int]:
    """(bands, rows of a band) with the most rows that miss a pair at `threshold` with probability `miss` at most."""
    best = (hashes, 1)
    for rows in range(1, hashes + 1):
        bands = hashes // rows
        if 1 - candidate_probability(threshold, bands, rows) <= miss:
            best = (bands, rows)
    return best


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """1 - (1 - s^r)^b."""
    return 1 - (1 - similarity**rows) ** bands


class Signer:
    """Makes the n-grams of texts and their band keys; the same on every machine and in every process.

    Args:
        n: words of an n-gram.
        bands, rows: of the signature.
    """

    def __init__(self, n: int, bands: int, rows: int):
        self.n, self.bands, self.rows = n, bands, rows
        random = np.random.Generator(np.random.PCG64(20240707))
        self._a = random.integers(0, 2**31, bands * rows, np.uint32) * np.uint32(2) + np.uint32(1)
        self._c = random.integers(0, 2**32, bands * rows, np.uint32)
        self._mix = random.integers(0, 2**63, (2, max(n, rows)), np.uint64) * np.uint64(2) + np.uint64(1)
        self._hashes: dict[str, int] = {}

    def word_hashes(self, words: Sequence[str]) -> np.ndarray:
        """uint64 [words]."""
        known = self._hashes
        if len(known) > _CACHE:
            known.clear()
        try:
            return np.array([known[word] for word in words], np.uint64)
        except KeyError:
            for word in words:
                if word not in known:
                    known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return np.array([known[word] for word in words], np.uint64)

    def shingles(self, words: Sequence[str]) -> np.ndarray:
        """uint32, sorted and distinct: hashes of the n-grams. A text of fewer words is one n-gram."""
        hashed = self.word_hashes(words)
        n = min(self.n, len(hashed))
        if n == 0:
            return np.zeros(0, np.uint32)
        count = len(hashed) - n + 1
        total = np.full(count, np.uint64(n))
        for k in range(n):
            total = (total ^ hashed[k : k + count]) * self._mix[0, k]
            total ^= total >> np.uint64(31)
        return np.unique((total >> np.uint64(32)).astype(np.uint32))

    def band_keys(self, shingles: np.ndarray) -> np.ndarray:
        """uint64 [bands] of a row with at least one n-gram."""
        least = np.full(len(self._a), np.iinfo(np.uint32).max, np.uint32)
        for begin in range(0, len(shingles), _ROWS):
            hashed = shingles[begin : begin + _ROWS, None] * self._a
            hashed += self._c
            np.minimum(least, hashed.min(axis=0), out=least)
        grouped = least.reshape(self.bands, self.rows).astype(np.uint64)
        keys = np.arange(self.bands, dtype=np.uint64)
        for k in range(self.rows):
            keys = (keys ^ grouped[:, k]) * self._mix[1, k]
            keys ^= keys >> np.uint64(29)
        return keys


def jaccard(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """(size of the intersection, size of the union) of two sorted arrays of distinct values."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both, len(a) + len(b) - both
