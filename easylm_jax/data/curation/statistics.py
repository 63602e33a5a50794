"""`easylm data stats FILE…`: what rows hold; and measures of coverage and diversity (spec sdsd §8, T4 and T5)."""

from __future__ import annotations

import collections
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.data.curation import texts
from easylm_jax.data.curation.job import Job
from easylm_jax.data.curation.quality import DEFAULT, parse_rules, row_of
from easylm_jax.data.curation.rows import Block, files_of, record_of


def row_statistics(paths: Sequence[str], workers: int = 1) -> dict[str, Any]:
    """Counts of columns, turns, words, bytes and equal texts, and of rows that the usual rules would leave out."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job("stats", files_of(paths), Path(folder), {}, workers=workers)
        with job.opened():
            count = job.decide("easylm_jax.data.curation.statistics:counter", {})
            return _sum(job, count)


def counter() -> Callable[[Block], dict[str, np.ndarray]]:
    """Counts of a block: `words`, `turns`, `bytes` and `exact` (a hash) of each row, and `named`, counts as JSON."""
    import hashlib

    rules = parse_rules(",".join(DEFAULT))

    def count(block: Block) -> dict[str, np.ndarray]:
        words, turns, exact = [], [], []
        named: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for line, place in zip(block.lines, block.places, strict=True):
            record = record_of(line, place)
            row = row_of(record, place)
            conversation = texts.conversation_of(record)
            split = row.all.casefold().split()
            words.append(len(split))
            turns.append(len(conversation) if conversation else 0)
            exact.append(int.from_bytes(hashlib.blake2b(" ".join(split).encode(), digest_size=8).digest(), "little"))
            named["columns"].update(record.keys())
            named["roles"].update(role for role, _ in conversation or ())
            named["rules"].update(filter(None, (rule(row) for rule in rules)))
            for column in ("dataset", "source"):
                if isinstance(record.get(column), str):
                    named[column][record[column][:100]] += 1
        return {
            "words": np.array(words, np.int32), "turns": np.array(turns, np.int32), "exact": np.array(exact, np.uint64),
            "bytes": np.array([len(line) for line in block.lines], np.int32),
            "named": np.frombuffer(json.dumps(named).encode(), np.uint8),
        }  # fmt: skip

    return count


def _sum(job: Job, count: int) -> dict[str, Any]:
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("words", "turns", "bytes", "exact")}
    named: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for part in job.parts(count):
        for name, values in arrays.items():
            values.append(part[name])
        for name, counts in json.loads(part["named"].tobytes()).items():
            named[name].update(counts)
    whole = {name: np.concatenate(values) if values else np.zeros(0, np.int64) for name, values in arrays.items()}
    rows = len(whole["words"])
    return {
        "files": [str(file) for file in job.files], "rows": rows, "bytes": int(whole["bytes"].sum()),
        "words": described(whole["words"]), "turns": described(whole["turns"]),
        "same_text": rows - len(np.unique(whole["exact"])),
        **{name: dict(counts.most_common(50)) for name, counts in named.items()},
    }  # fmt: skip


def described(values: np.ndarray) -> dict[str, float]:
    """Sum, mean, median, 90th percentile and extremes of counts, or of shares."""
    if not len(values):
        return {"sum": 0}
    plain = int if values.dtype.kind in "iu" else float
    middle = {"mean": float(values.mean()), "median": float(np.median(values)), "p90": float(np.percentile(values, 90))}
    return {"sum": plain(values.sum()), **middle, "min": plain(values.min()), "max": plain(values.max())}


def stats_text(summary: Mapping[str, Any]) -> str:
    """The counts as lines."""
    lines = [
        f"{summary['rows']:,} rows, {summary['bytes']:,} bytes; {summary['same_text']:,} have an earlier row's text"
    ]
    for name in ("words", "turns"):
        of = summary[name]
        if of.get("max"):
            lines.append(f"{name}: {of['sum']:,}; of a row {of['mean']:.1f} on average, median {of['median']:.0f}, "
                         f"90 % up to {of['p90']:.0f}, {of['min']:,} to {of['max']:,}")  # fmt: skip
    titles = {"roles": "turns by role", "rules": "rows that rules of `easylm data filter` would leave out"}
    for name in ("columns", "roles", "dataset", "source", "rules"):
        if summary.get(name):
            lines.append(f"{titles.get(name, name)}: " + ", ".join(f"{key} {n:,}" for key, n in summary[name].items()))
    return "\n".join(lines)


def entropy(counts: Iterable[int]) -> float:
    """Entropy of shares, in bits."""
    values = [count for count in counts if count > 0]
    total = sum(values)
    return max(0.0, -sum(n / total * math.log2(n / total) for n in values)) if total else 0.0


def gini(counts: Iterable[int]) -> float:
    """The Gini coefficient of counts: 0 when all are equal, (n - 1) / n when one has all."""
    values = np.sort(np.fromiter(counts, np.float64))
    if not len(values) or not values.sum():
        return 0.0
    ranks = np.arange(1, len(values) + 1)
    return float((2 * ranks - len(values) - 1) @ values / (len(values) * values.sum()))


def distinct(word_lists: Iterable[Sequence[str]], n: int) -> float:
    """Distinct-n: different n-grams over all n-grams (Li et al. 2016)."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for words in word_lists:
        grams = list(zip(*(words[i:] for i in range(n)), strict=False))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def self_bleu(word_lists: Sequence[Sequence[str]], order: int = 4) -> float:
    """Mean BLEU of each text against all others (Zhu et al. 2018): high where texts resemble each other.

    Modified precisions of orders 1 to `order`, add-one smoothed above 1, and the brevity penalty to the closest length.
    """
    if len(word_lists) < 2:
        return 0.0
    grams = [[collections.Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, order + 1)]
             for words in word_lists]  # fmt: skip
    best: list[dict[tuple[str, ...], list[tuple[int, int]]]] = [{} for _ in range(order)]
    for text, per_order in enumerate(grams):  # the two largest counts of each n-gram, so that a text leaves itself out
        for n, counts in enumerate(per_order):
            for gram, count in counts.items():
                top = best[n].setdefault(gram, [])
                top.append((count, text))
                top.sort(reverse=True)
                del top[2:]
    lengths = [len(words) for words in word_lists]
    scores = []
    for text, per_order in enumerate(grams):
        log_precision = 0.0
        for n, counts in enumerate(per_order):
            clipped = sum(min(count, next((c for c, other in best[n][gram] if other != text), 0))
                          for gram, count in counts.items())  # fmt: skip
            smooth = 1 if n else 0
            total = sum(counts.values()) + smooth
            precision = (clipped + smooth) / total if total else 0.0
            log_precision += math.log(precision) / order if precision > 0 else -math.inf
        closest = min((abs(length - lengths[text]), length) for i, length in enumerate(lengths) if i != text)[1]
        brevity = 1.0 if lengths[text] >= closest or not lengths[text] else math.exp(1 - closest / lengths[text])
        scores.append(brevity * math.exp(log_precision))
    return float(np.mean(scores))
