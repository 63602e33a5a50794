"""Reads and encodes the records of a cache's sources: all of them, or one builder's share.

A source is one or several streams of records: each of its files, or the whole source where it is a named set or has
`skip` or `limit`. A stream is divided into blocks of 512 records. Which blocks a builder encodes, and which records of
a block are sampled by `count` or `fraction`, follows from their numbers alone and is decided before anything is
tokenised; memory holds one block.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data.cache import left_out
from easylm_jax.data.examples import Counts, Encoder, Example
from easylm_jax.data.loader import permutation
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_streams
from models.errors import UserError

Progress = Callable[[int, int | None, str], None]
Records = Iterator[tuple[Any, str]]
BLOCK = 512  # records; part of the bytes of caches with `count` or `fraction`
_BATCH_CHARACTERS = 4_000_000


class Share(NamedTuple):
    """The share of one builder: `number` (from 0) of `builders`."""

    number: int
    builders: int

    def reads(self, stream: int, streams: int) -> bool:
        """Whether this builder reads a stream: whole files are shared out where there are enough of them."""
        return streams < self.builders or stream % self.builders == self.number

    def encodes(self, stream: int, block: int, streams: int) -> bool:
        """Whether this builder encodes a block."""
        return self.builder_of(stream, block, streams) == self.number

    def builder_of(self, stream: int, block: int, streams: int) -> int:
        """The number of the builder that encodes a block."""
        return (stream if streams >= self.builders else stream + block) % self.builders


class Times(NamedTuple):
    """How often a source's records are taken: all of them `passes` times, and with `rest` the sampled ones again."""

    passes: int
    rest: bool


class Sink(Protocol):
    """Takes what is encoded, in order."""

    def example(self, example: Example, source: int, sampled: bool) -> None: ...

    def block(self, source: int, stream: int, counts: Counts) -> None:
        """Called after each block that was encoded, with the counts of its source so far."""

    def stream(self, source: int, stream: int, records: int) -> None:
        """Called after each stream that was read."""

    def source(self, source: int, counts: Counts, times: Times, streams: int) -> None:
        """Called after each source."""


class NothingKept(UserError):
    """No record of a source is kept; `counts` says why."""

    def __init__(self, spec: DataSpec, source: Source, counts: Counts):
        reasons = ", ".join(f"{n:,} {why}" for why, n in left_out(dataclasses.asdict(counts)).items())
        taken = counts.read - counts.not_sampled
        why = f"all {taken:,} are left out: {reasons}" if taken else "it holds no records"
        if counts.overlong_dropped:
            why += f"; at most sequence_length {spec.sequence_length} tokens fit"
        if counts.read and not taken:
            why = f"fraction {source.fraction} of its {counts.read:,} records is none; raise it"
        first_bad = f"; the first bad one: {counts.first_bad}" if counts.first_bad else ""
        what = "no prompt" if spec.kind == "prompts" else "nothing to train on"
        super().__init__(f"data: source {source.path} gave {what} ({why}){first_bad}")
        self.source, self.counts = source, counts


class Sampling:
    """Which records of a source `count` or `fraction` takes.

    All records are taken `passes` times, and a share `rate` of them once more: in each block as many as make the total
    right to the nearest record, by a permutation of the block.
    """

    def __init__(self, seed: int, number: int, source: Source, records: Sequence[int]):
        """`records` has the number of records of each stream, where the source has a `count`."""
        self._seed, self._number, self._exact = seed, number, source.count is not None
        wanted = Fraction(1)
        if source.count is not None:
            wanted = Fraction(source.count, max(1, sum(records)))
        elif source.fraction is not None:
            wanted = Fraction(source.fraction)
        self.passes = math.floor(wanted)
        self.rate = wanted - self.passes
        self._before = np.concatenate([[0], np.cumsum(records)]).astype(np.int64)

    def of_block(self, stream: int, block: int, count: int) -> np.ndarray:
        """Which of the `count` records of a block are in the random part, bool [count]."""
        if not self.rate:
            return np.zeros(count, bool)
        first, offset = block * BLOCK, self._offset(stream)
        taken = math.floor((first + count) * self.rate + offset) - math.floor(first * self.rate + offset)
        chosen = np.zeros(count, bool)
        chosen[permutation(count, "sample", self._seed, self._number, stream, block)[:taken]] = True
        return chosen

    def _offset(self, stream: int) -> Fraction:
        """Where rounding begins in a stream: exactly after the streams before it, or at random, so that many small
        files give their share together."""
        if self._exact:
            return int(self._before[stream]) * self.rate
        if stream == 0:
            return Fraction(1, 2)
        digest = hashlib.sha256(repr(("sample", self._seed, self._number, stream)).encode()).digest()
        return Fraction(int.from_bytes(digest[:4], "little"), 1 << 32)


def sampling_of(seed: int, number: int, source: Source) -> Sampling:
    """The sampling of source `number`; with a `count` its records are read once to be counted."""
    if source.count is None:
        return Sampling(seed, number, source, ())
    return Sampling(seed, number, source, [sum(1 for _ in stream()) for stream in read_streams(source)])


def sampled_records(source: Source, seed: int) -> Records:
    """The records of a source as `count` or `fraction` takes them: its whole passes, then the sampled ones."""
    sampling = sampling_of(seed, 0, source)
    for turn in range(sampling.passes + bool(sampling.rate)):
        for stream, read in enumerate(read_streams(source)):
            for number, block in enumerate(_blocks(read())):
                chosen = sampling.of_block(stream, number, len(block))
                yield from (item for item, once in zip(block, chosen, strict=True) if turn < sampling.passes or once)


ALL = Share(0, 1)


def fill(
    spec: DataSpec, sources: Sequence[Source], encoder: Encoder, sink: Sink, progress: Progress, share: Share = ALL
) -> None:
    """Reads the sources and hands the share's encoded records to `sink`. `UserError` for a bad record."""
    done = 0
    for number, source in enumerate(sources):
        counts, sampling, streams = Counts(), sampling_of(spec.seed, number, source), read_streams(source)
        progress(done, None, "read")
        for stream, read in enumerate(streams):
            if not share.reads(stream, len(streams)):
                continue
            records = 0
            for index, block in enumerate(_blocks(read())):
                if share.encodes(stream, index, len(streams)):
                    again = sampling.of_block(stream, index, len(block))
                    _encode(block, records, again, sampling.passes, source, number, encoder, counts, sink)
                    sink.block(number, stream, counts)
                records += len(block)
                progress(done + counts.read, None, "read")
            sink.stream(number, stream, records)
        sink.source(number, counts, Times(sampling.passes, bool(sampling.rate)), len(streams))
        done += counts.read


def _encode(block, first, again, passes, source, number, encoder: Encoder, counts: Counts, sink: Sink) -> None:
    """Encodes the sampled records of a block; `first` is the number of its first record in the stream."""
    wanted = np.flatnonzero(again) if passes == 0 else np.arange(len(block))
    counts.read += len(block)
    counts.not_sampled += len(block) - len(wanted)
    try:
        for batch in _batches([(block[i], first + int(i)) for i in wanted]):
            for example in encoder.encode([item for item, _ in batch], source, counts, [n for _, n in batch]):
                sink.example(example, number, bool(again[example.document - first]))
    except BadRecord as error:
        raise UserError(f"data: {error}") from None


def _blocks(records: Records) -> Iterator[list[tuple[Any, str]]]:
    block: list[tuple[Any, str]] = []
    for item in records:
        block.append(item)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _batches(records: Iterable[tuple[tuple[Any, str], int]]) -> Iterator[list[tuple[tuple[Any, str], int]]]:
    """Batches of numbered records, limited in characters, to bound memory with long documents."""
    batch: list[tuple[tuple[Any, str], int]] = []
    size = 0
    for item in records:
        batch.append(item)
        size += _characters(item[0][0])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
