"""`easylm data dedup`: of rows that say the same or nearly the same, the first stays.

1. Each row: the hash of its text, its n-grams and its band keys (worker processes).
2. Rows of equal text are one group; rows that share a band and whose n-grams have at least the threshold's Jaccard
   similarity are joined into one group, also over others.
3. Of each group the row that is read first is kept.

Memory holds a few numbers for each row; the n-grams stay on the disk and are read for the pairs that are compared.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.data.curation.job import DecideBlocks, Job
from easylm_jax.data.curation.minhash import HASHES, Signer, bands_for, candidate_probability, jaccard
from easylm_jax.data.curation.rows import Block, files_of, record_of
from easylm_jax.data.curation.texts import whole_text
from easylm_jax.runtime import files as writing
from easylm_jax.runtime.monitor import counting

_KEY_BYTES = 256 << 20  # band keys that are in memory at a time
_COMPARISONS = 10_000  # of the rows that share one band; more are not made, and counted
_OPEN_BLOCKS = 64  # blocks whose n-grams are in memory


def dedup(
    paths: Sequence[str], out: Path, report: Path | None = None, *, threshold: float = 0.8, ngram: int = 5,
    column: str | None = None, exact_only: bool = False, hashes: int = HASHES, workers: int = 1,
    decide: DecideBlocks | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the kept rows of every file below `out`; returns the summary.

    Args:
        paths: files, globs or folders.
        out: folder of the kept rows.
        report: a JSON file for the summary.
        threshold: Jaccard similarity of word n-grams, case-folded, from which on rows are duplicates.
        ngram: words of an n-gram.
        column: the column that is compared; None: all text of a row.
        exact_only: compare whole texts alone (case-folded, spaces as one).
        hashes: MinHashes of a row, at most.
        workers: worker processes.
        decide: makes the decisions otherwise (`scale.on`).
    """
    bands, rows = bands_for(threshold, hashes)
    settings = {"threshold": threshold, "ngram": ngram, "column": column, "exact_only": exact_only,
                "bands": bands, "rows": rows}  # fmt: skip
    job = Job("dedup", files_of(paths), out, settings, workers=workers)
    with job.opened() as finished:
        if finished is None:
            arguments = {"ngram": ngram, "bands": 0 if exact_only else bands, "rows": rows, "column": column}
            count = (decide or Job.decide)(job, "easylm_jax.data.curation.dedup:signer", arguments)
            finished = _finish(job, count, settings)
        if report is not None:
            writing.write_json(report, finished)
    return finished


def signer(ngram: int, bands: int, rows: int, column: str | None) -> Callable[[Block], dict[str, np.ndarray]]:
    """Makes of each row of a block: `exact`, the hash of its text (0 for none); `sizes`, its number of n-grams;
    `shingles`, the n-grams of all rows one after another; `keys` [bands, rows]."""
    sign = Signer(ngram, bands, rows)

    def make(block: Block) -> dict[str, np.ndarray]:
        exact = np.zeros(len(block.lines), np.uint64)
        keys = np.zeros((bands, len(block.lines)), np.uint64)
        shingles: list[np.ndarray] = []
        for i, (line, place) in enumerate(zip(block.lines, block.places, strict=True)):
            words = whole_text(record_of(line, place), place, column).casefold().split()
            if words:
                digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
                exact[i] = max(1, int.from_bytes(digest, "little"))
            shingles.append(sign.shingles(words) if bands else np.zeros(0, np.uint32))
            if len(shingles[-1]):
                keys[:, i] = sign.band_keys(shingles[-1])
        return {
            "exact": exact, "sizes": np.array([len(s) for s in shingles], np.int64), "keys": keys,
            "shingles": np.concatenate(shingles) if shingles else np.zeros(0, np.uint32),
        }  # fmt: skip

    return make


class Groups:
    """Rows in groups (union-find); the least row of a group stands for it."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def find(self, row: int) -> int:
        """The first row of the group of a row."""
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(self, a: int, b: int) -> None:
        """Makes one group of two."""
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)

    def first(self) -> np.ndarray:
        """int64 [rows]: the first row of the group of each row."""
        return np.array([self.find(row) for row in range(len(self._parent))], np.int64)


class _Shingles:
    """The n-grams of single rows, read from the parts of a job; the blocks that were read last stay in memory."""

    def __init__(self, job: Job, sizes: Sequence[np.ndarray]):
        self._job, self._sizes = job, sizes
        self._ends = np.cumsum([len(each) for each in sizes])
        self._blocks: collections.OrderedDict[int, tuple[np.ndarray, np.ndarray]] = collections.OrderedDict()

    def of(self, row: int) -> np.ndarray:
        """The sorted n-grams of a row."""
        block = int(np.searchsorted(self._ends, row, side="right"))
        if block not in self._blocks:
            part = next(self._job.parts_of([block], "shingles"))
            self._blocks[block] = (part["shingles"], np.concatenate([[0], np.cumsum(self._sizes[block])]))
            if len(self._blocks) > _OPEN_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(block)
        shingles, first = self._blocks[block]
        i = row - int(self._ends[block]) + len(self._sizes[block])
        return shingles[first[i] : first[i + 1]]


def _finish(job: Job, count: int, settings: dict[str, Any]) -> dict[str, Any]:
    exact, sizes = [], []
    for part in job.parts(count, "exact", "sizes"):
        exact.append(part["exact"])
        sizes.append(part["sizes"])
    hashes = np.concatenate(exact) if exact else np.zeros(0, np.uint64)
    groups = Groups(len(hashes))
    _join_equal(groups, hashes)
    same = groups.first()
    cut = compared = 0
    if not settings["exact_only"] and len(hashes):
        compared, cut = _join_near(job, groups, same, sizes, count, settings)
    first = groups.first()
    numbers = np.cumsum([0, *(len(each) for each in sizes)])

    def parts() -> Iterator[dict[str, np.ndarray]]:
        for block in range(count):
            own = np.arange(numbers[block], numbers[block + 1])
            yield {"keep": first[own] == own, "first": first[own], "exact": same[own] != own}

    def removed(part: dict[str, np.ndarray], i: int) -> dict[str, Any]:
        return {"reason": "same text" if part["exact"][i] else "near duplicate", "group": int(part["first"][i])}

    kept = job.write_kept(parts(), removed)
    index = np.arange(len(first))
    sizes_of_groups = np.bincount(first, minlength=len(first)) if len(first) else np.zeros(0, np.int64)
    return job.finish(kept, {
        "settings": settings, "rows": len(first), "kept": int((first == index).sum()),
        "removed_exact": int((same != index).sum()), "removed_near": int(((first != index) & (same == index)).sum()),
        "without_text": int((hashes == 0).sum()), "groups": int((sizes_of_groups > 1).sum()),
        "largest_group": int(sizes_of_groups.max()) if len(first) else 0,
        "comparisons": compared, "bands_cut": cut, "miss_at_threshold": 1 - candidate_probability(
            settings["threshold"], settings["bands"], settings["rows"]),
        "files": [{"file": str(file), "kept_as": name, "kept": kept[name]}
                  for file, name in zip(job.files, job.names, strict=True)],
    })  # fmt: skip


def _join_equal(groups: Groups, hashes: np.ndarray) -> None:
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero((hashes[order][1:] == hashes[order][:-1]) & (hashes[order][1:] != 0))
    for i in equal.tolist():
        groups.join(int(order[i]), int(order[i + 1]))


def _join_near(
    job: Job, groups: Groups, same: np.ndarray, sizes: list[np.ndarray], count: int, settings: dict[str, Any]
) -> tuple[int, int]:
    """Joins rows that share a band and are similar; returns the pairs compared and the runs that were cut."""
    total, bands = len(same), settings["bands"]
    threshold = Fraction(str(settings["threshold"]))
    shingles = _Shingles(job, sizes)
    has = (np.concatenate(sizes) > 0) & (same == np.arange(total))  # of equal texts the first stands for all
    at_once = max(1, _KEY_BYTES // (8 * total))
    compared = cut = 0
    with counting("dedup", bands, "bands", enabled=True) as progress, progress.phase("comparing"):
        for begin in range(0, bands, at_once):
            chosen = slice(begin, min(bands, begin + at_once))
            keys = np.concatenate([part["keys"][chosen] for part in job.parts(count, "keys")], axis=1)
            for band, own in enumerate(keys, begin):
                for run in _runs(own, has):
                    made, whole = _join_run(groups, run, shingles, threshold)
                    compared, cut = compared + made, cut + (not whole)
                progress.update(band + 1, {})
    return compared, cut


def _runs(keys: np.ndarray, has: np.ndarray) -> Iterator[list[int]]:
    """The rows of equal keys, in order, where there are at least two."""
    rows = np.flatnonzero(has)
    order = rows[np.argsort(keys[rows], kind="stable")]
    ordered = keys[order]
    edges = np.flatnonzero(np.diff(ordered)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(order)]])
    for i in np.flatnonzero(ends - starts > 1).tolist():
        yield order[starts[i] : ends[i]].tolist()


def _join_run(groups: Groups, run: list[int], shingles: _Shingles, threshold: Fraction) -> tuple[int, bool]:
    """Compares the rows of a run that are not of one group yet; returns the comparisons, and whether all were made."""
    made = 0
    for k, row in enumerate(run):
        for other in run[:k]:
            if groups.find(row) == groups.find(other):
                continue
            if made == _COMPARISONS:
                return made, False
            made += 1
            both, union = jaccard(shingles.of(row), shingles.of(other))
            if both >= threshold * union:
                groups.join(row, other)
    return made, True
