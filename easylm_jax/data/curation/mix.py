"""`easylm data mix`: one file of rows from several sources, by counts, fractions or rates (spec tulu3 §2.6).

Rows are drawn without replacement; a source of which more rows are wanted than it has is taken whole as often as it
fits, and the rest is drawn. Which rows are drawn depends on the seed, the order of the sources and their sizes alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from easylm_jax.data.curation.job import written_below
from easylm_jax.data.curation.rows import files_of, lines_of
from easylm_jax.runtime import files as writing
from easylm_jax.runtime.monitor import counting
from models.errors import UserError

Kind = Literal["counts", "fractions", "rates"]
KINDS: tuple[Kind, ...] = ("counts", "fractions", "rates")
_BUCKET_BYTES = 128 << 20  # rows that are shuffled in memory


def mix(
    sources: Sequence[str], out: Path, amounts: Sequence[float], kind: Kind, *,
    rows: int | None = None, shuffle: bool = False, seed: int = 42,
) -> dict[str, Any]:  # fmt: skip
    """Writes the file `out`; returns how many rows of each source it has.

    Args:
        sources: files, globs or folders; each is one source.
        out: the JSONL file.
        amounts: of each source: rows ("counts"), a multiple of its rows ("fractions"), or its rate among `rows` rows
            ("rates").
        kind: what the amounts are.
        rows: rows in all, for rates; None: as many as the source that is used up first allows.
        shuffle: whether rows are in random order; otherwise they are in the order of the sources.
        seed: of the drawing and the order.
    """
    if len(amounts) != len(sources):
        raise UserError(f"mix: {len(amounts)} {kind} for {len(sources)} sources; give one for each")
    if any(amount < 0 or not math.isfinite(amount) for amount in amounts) or not any(amounts):
        raise UserError(f"mix: {kind} must be at least 0, and one above 0")
    files = [files_of([source]) for source in sources]
    sizes = [sum(1 for file in group for _ in lines_of(file)) for group in files]
    wanted = wanted_rows(sizes, amounts, kind, rows)
    for source, size, count in zip(sources, sizes, wanted, strict=True):
        if count and not size:
            raise UserError(f"mix: {source} has no rows, and {count} are wanted")

    def lines() -> Iterator[bytes]:
        for number, (group, size, count) in enumerate(zip(files, sizes, wanted, strict=True)):
            copies = iter(copies_of(size, count, [seed, number]).tolist() if size else [])
            for file in group:
                for line, _ in lines_of(file):
                    for _ in range(next(copies)):
                        yield line + b"\n"

    with written_below(out.parent), counting("mix", sum(wanted), "rows", enabled=True) as progress:
        out.parent.mkdir(parents=True, exist_ok=True)
        shuffled = _shuffled(lines(), sum(wanted), _bytes_of(files, sizes, wanted), seed, out.parent)
        with progress.phase("writing"), writing.atomic_write(out) as file:
            for done, line in enumerate(shuffled if shuffle else lines(), 1):
                file.write(line)
                if done % 1000 == 0:
                    progress.update(done, {})
    return {"rows": sum(wanted), "sources": [
        {"source": source, "rows": size, "taken": count}
        for source, size, count in zip(sources, sizes, wanted, strict=True)
    ]}  # fmt: skip


def wanted_rows(sizes: Sequence[int], amounts: Sequence[float], kind: str, rows: int | None = None) -> list[int]:
    """The rows to take of each source; for rates they sum to `rows`, by largest remainders."""
    if kind == "counts":
        if any(amount != int(amount) for amount in amounts):
            raise UserError("mix: counts must be whole numbers; a share of a source is a fraction")
        return [int(amount) for amount in amounts]
    if kind == "fractions":
        return [round(size * amount) for size, amount in zip(sizes, amounts, strict=True)]
    total = sum(amounts)
    if rows is None:
        rows = min(math.floor(size * total / amount) for size, amount in zip(sizes, amounts, strict=True) if amount)
    exact = [rows * amount / total for amount in amounts]
    counts = [math.floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: rows - sum(counts)]:
        counts[i] += 1
    return counts


def copies_of(size: int, wanted: int, seed: Sequence[int]) -> np.ndarray:
    """int64 [size]: how often each row of a source is taken."""
    whole, rest = divmod(wanted, size)
    copies = np.full(size, whole, np.int64)
    copies[np.random.Generator(np.random.PCG64(list(seed))).permutation(size)[:rest]] += 1
    return copies


def _bytes_of(files: Sequence[Sequence[Path]], sizes: Sequence[int], wanted: Sequence[int]) -> int:
    """About the bytes of the mixture; compressed files count four times."""
    total = 0.0
    for group, size, count in zip(files, sizes, wanted, strict=True):
        own = sum(file.stat().st_size * (4 if file.suffix in (".gz", ".zst", ".parquet") else 1) for file in group)
        total += own * count / max(1, size)
    return int(total)


def _shuffled(lines: Iterator[bytes], count: int, size: int, seed: int, folder: Path) -> Iterator[bytes]:
    """The lines in random order. They go to buckets on the disk, each of which is shuffled in memory."""
    random = np.random.Generator(np.random.PCG64([seed, 2**31]))
    buckets = max(1, min(512, -(-size // _BUCKET_BYTES)))
    choice = random.integers(0, buckets, count, np.int32)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".mix-"))
        open_files = [stack.enter_context(open(os.path.join(temporary, str(i)), "w+b")) for i in range(buckets)]
        for line, bucket in zip(lines, choice.tolist(), strict=True):
            open_files[bucket].write(line)
        for file in open_files:
            file.seek(0)
            held = file.readlines()
            for i in random.permutation(len(held)).tolist():
                yield held[i]
