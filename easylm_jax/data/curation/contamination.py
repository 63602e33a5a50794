"""Which test rows occur in training rows: an exact index of n-grams of words (spec tulu3 §7.2).

A word of a test row is covered by a training row if it lies in n consecutive words that both have. The share of a test
row that a training row holds is its covered words over its words; n-grams do not cross the turns of a conversation.
Equal hashes are compared word by word, so that no share is a matter of chance, and every training row is compared with
every test row: there is no cut to the best hits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from easylm_jax.data.curation.texts import words

_POSTINGS = 1 << 20  # (training row, place in a test row) pairs that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Index:
    """The n-grams of the test rows.

    Attributes:
        n: words of an n-gram.
        vocabulary: word → id, from 1; 0 is any other word.
        lengths: int64 [rows], words of each test row.
        needed: int64 [rows], covered words from which on a test row counts as contained; a row without n-grams can
            reach no number.
        hashes: uint64 [grams], sorted, without repetition.
        grams: int32 [grams, n], their words.
        first: int64 [grams + 1], where the places of each n-gram start in `places`.
        places: int64, words of all test rows before the n-gram.
        row_of: int64 [words], the test row of a place.
        seed: of the hash.
    """

    n: int
    vocabulary: dict[str, int]
    lengths: np.ndarray
    needed: np.ndarray
    hashes: np.ndarray
    grams: np.ndarray
    first: np.ndarray
    places: np.ndarray
    row_of: np.ndarray
    seed: int

    def save(self, folder: Path) -> None:
        """Writes the index, for worker processes to load."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                  if field.name not in ("n", "vocabulary", "seed")}  # fmt: skip
        np.savez(folder / "index.npz", scalars=np.array([self.n, self.seed]), **arrays)
        (folder / "vocabulary.txt").write_text("\n".join(self.vocabulary), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Index:
        """Reads what `save` wrote in this job."""
        with np.load(folder / "index.npz") as file:
            arrays = {name: file[name] for name in file.files}
        n, seed = arrays.pop("scalars").tolist()
        text = (folder / "vocabulary.txt").read_text(encoding="utf-8")
        vocabulary = {word: number for number, word in enumerate(text.split("\n"), 1)} if text else {}
        return Index(n=n, seed=seed, vocabulary=vocabulary, **arrays)


class Hits(NamedTuple):
    """The pairs of a training row and a test row that share an n-gram, by training row and then by test row.

    `row` and `test` are int64 indices, `covered` int64 words of the test row.
    """

    row: np.ndarray
    test: np.ndarray
    covered: np.ndarray


def build_index(rows: Iterable[Sequence[str]], n: int, share: float) -> Index:
    """The index of test rows, each given as the texts that a model is asked."""
    vocabulary: dict[str, int] = {}
    ids: list[int] = []
    ends: list[int] = []  # of each segment
    lengths: list[int] = []
    for texts in rows:
        before = len(ids)
        for text in texts:
            ids.extend(vocabulary.setdefault(word, len(vocabulary) + 1) for word in words(text))
            ends.append(len(ids))
        lengths.append(len(ids) - before)
    tokens = np.array(ids, np.int32)
    starts = np.zeros(len(tokens), bool)  # words that begin an n-gram: its last word is of the same segment
    begin = 0
    for end in ends:
        starts[begin : max(begin, end - n + 1)] = True
        begin = end
    places = np.flatnonzero(starts)
    windows = _windows(tokens, n)[places] if len(places) else np.zeros((0, n), np.int32)
    hashes, first, order, grams, seed = _group(windows)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    wanted = Fraction(str(share))
    has_grams = np.zeros(len(lengths), bool)
    has_grams[row_of[places]] = True
    needed = [max(1, math.ceil(wanted * length)) for length in lengths]
    return Index(
        n=n, vocabulary=vocabulary, lengths=np.array(lengths, np.int64),
        needed=np.where(has_grams, np.array(needed, np.int64), np.iinfo(np.int64).max), hashes=hashes, grams=grams,
        first=first, places=places[order].astype(np.int64), row_of=row_of.astype(np.int64), seed=seed,
    )  # fmt: skip


def _group(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Equal n-grams together: hashes, first of each group, the order, one n-gram of each group, and the seed."""
    for seed in range(100):
        hashed = hash_windows(windows, seed)
        order = np.argsort(hashed, kind="stable")
        hashes, first = np.unique(hashed[order], return_index=True)
        grams = windows[order][first]
        if (grams[np.searchsorted(hashes, hashed)] == windows).all():
            return hashes, np.append(first, len(order)).astype(np.int64), order, grams, seed
    raise AssertionError("a hundred hashes of 64 bits collided")


def _windows(tokens: np.ndarray, n: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(tokens, n) if len(tokens) >= n else np.zeros((0, n), np.int32)


def hash_windows(windows: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [rows]: a hash of each row of int32 [rows, n]."""
    multipliers = np.random.Generator(np.random.PCG64(seed)).integers(0, 2**63, windows.shape[1], np.uint64) * 2 + 1
    hashed = np.zeros(len(windows), np.uint64)
    for column, multiplier in enumerate(multipliers):
        hashed = (hashed ^ windows[:, column].astype(np.uint64)) * multiplier
        hashed ^= hashed >> np.uint64(29)
    return hashed


def find(index: Index, rows: Sequence[Sequence[str]]) -> Hits:
    """The test rows in training rows, each given as its texts."""
    ids: list[int] = []
    sizes: list[int] = []
    known = index.vocabulary.get
    for texts in rows:
        before = len(ids)
        for text in texts:
            ids.extend([known(word, 0) for word in words(text)])
            ids.append(0)  # no n-gram goes from one text into the next
        sizes.append(len(ids) - before)
    tokens = np.array(ids, np.int32)
    empty = Hits(*(np.zeros(0, np.int64) for _ in Hits._fields))
    if len(tokens) < index.n or not len(index.hashes):
        return empty
    unknown = np.cumsum(np.concatenate([[0], tokens == 0]))
    at = np.flatnonzero(unknown[index.n :] == unknown[: -index.n])  # windows of known words alone
    windows = _windows(tokens, index.n)[at]
    hashed = hash_windows(windows, index.seed)
    gram = np.minimum(np.searchsorted(index.hashes, hashed), len(index.hashes) - 1)
    same = index.hashes[gram] == hashed
    same[same] = (index.grams[gram[same]] == windows[same]).all(axis=1)
    if not same.any():
        return empty
    row = np.repeat(np.arange(len(rows)), sizes)[at[same]]
    pairs = np.unique(row.astype(np.int64) * len(index.hashes) + gram[same])
    row, gram = np.divmod(pairs, len(index.hashes))
    counts = np.diff(index.first)[gram]
    parts = [_cover(index, row[piece], gram[piece], counts[piece]) for piece in _pieces(row, counts)]
    return Hits(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _pieces(row: np.ndarray, counts: np.ndarray) -> Iterable[slice]:
    """Slices of whole rows with about `_POSTINGS` places each."""
    ends = np.append(np.flatnonzero(np.diff(row)) + 1, len(row))
    total, begin = np.concatenate([[0], np.cumsum(counts)]), 0
    for i, end in enumerate(ends):
        if i == len(ends) - 1 or total[ends[i + 1]] - total[begin] > _POSTINGS:
            yield slice(begin, int(end))
            begin = int(end)


def _cover(index: Index, row: np.ndarray, gram: np.ndarray, counts: np.ndarray) -> Hits:
    """The covered words of each test row, from distinct (training row, n-gram) pairs sorted by row."""
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    places = index.places[np.repeat(index.first[gram], counts) + offsets]
    stride = len(index.row_of) + index.n
    key = np.sort(np.repeat(row, counts) * stride + places)
    # An n-gram covers n words, or as many as there are up to the next one that is found. The next one in another text
    # is at least n words on.
    new = np.append(np.minimum(np.diff(key), index.n), index.n)
    row, places = np.divmod(key, stride)
    test = index.row_of[places]
    begin = np.flatnonzero(np.append(True, (np.diff(row) != 0) | (np.diff(test) != 0)))
    return Hits(row[begin], test[begin], np.add.reduceat(new, begin))
