"""Packs documents into rows, and converts rows to batch arrays.

Packing uses lengths alone and returns a `Plan`: which span of which document is at which position of which row. The
loss mask of a batch follows from these spans and not from token ids.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np


@dataclasses.dataclass
class Plan:
    """Spans of documents in rows, ordered by row and position. The arrays are int64 [n].

    `row`, `start` (position in the row), `document` (index into the packed lengths), `offset` (first token within the
    document) and `length`. `rows` is the number of rows, `width` the number of tokens stored for each row.
    """

    row: np.ndarray
    start: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    rows: int
    width: int

    def row_offsets(self) -> np.ndarray:
        """Index of the first span of each row, and the end: int64 [rows + 1]."""
        return np.searchsorted(self.row, np.arange(self.rows + 1))


def concat(lengths: np.ndarray, sequence_length: int) -> Plan:
    """Concatenates all documents and splits them into windows of `sequence_length` + 1 tokens that overlap by one.

    The last token of a window is the first of the next: a target in the first and an input in the second, so that every
    token but the very first is a target exactly once. The last window is padded, not dropped.
    """
    chunk = (np.arange(len(lengths), dtype=np.int64), np.asarray(lengths, np.int64))
    return next(concat_chunks([chunk], int(chunk[1].sum()), sequence_length))


def concat_rows(total: int, sequence_length: int) -> int:
    """The number of windows of `total` concatenated tokens."""
    return max(1, -(-(total - 1) // sequence_length)) if total else 0


def concat_chunks(chunks: Iterable[tuple[np.ndarray, np.ndarray]], total: int, sequence_length: int) -> Iterator[Plan]:
    """`concat` of documents that come in chunks of (numbers, lengths), int64 [n] each, with `total` tokens together.

    Yields a plan of the rows that each chunk completes, with rows counted from 0 and the documents' own numbers, so
    that memory holds one chunk.
    """
    size, rows = sequence_length, concat_rows(total, sequence_length)
    numbers = lengths = np.zeros(0, np.int64)
    base = done = end_of_all = 0  # the first token of the pending documents, rows planned, tokens seen
    for new_numbers, new_lengths in chunks:
        numbers, lengths = np.concatenate([numbers, new_numbers]), np.concatenate([lengths, new_lengths])
        end_of_all += int(new_lengths.sum())
        ready = rows if end_of_all == total else (end_of_all - 1) // size
        if ready > done or not total:
            yield _windows(numbers, lengths, base, done, ready, total, size)
            done = ready
        used = int(np.searchsorted(base + np.cumsum(lengths), done * size, side="right"))
        base += int(lengths[:used].sum())
        numbers, lengths = numbers[used:], lengths[used:]


def _windows(numbers, lengths, base: int, row_first: int, row_last: int, total: int, size: int) -> Plan:
    """The plan of windows `row_first` to `row_last` (exclusive) of documents whose first token is token `base`."""
    ends = base + np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    first = np.arange(row_first, row_last, dtype=np.int64) * size
    last = np.minimum(first + size + 1, total)
    document_first = np.searchsorted(ends, first, side="right")
    document_last = np.searchsorted(ends, last - 1, side="right")
    counts = document_last - document_first + 1
    row = np.repeat(np.arange(len(first), dtype=np.int64), counts)
    document = np.repeat(document_first, counts) + within(counts)
    begin = np.maximum(first[row], starts[document])
    end = np.minimum(last[row], ends[document])
    place, offset = begin - first[row], begin - starts[document]
    return Plan(row, place, numbers[document], offset, end - begin, len(first), size + 1)


def best_fit(
    lengths: np.ndarray, sequence_length: int, most: int | None = None, *, extra: np.ndarray | None = None,
    room: int | None = None,
) -> Plan:  # fmt: skip
    """Best-fit decreasing: longest documents first, each into the fullest row with enough room.

    `most` limits the documents of a row. With `room`, the `extra` int64 [n] of a row's documents (crops of pictures)
    add up to at most so much. Documents are not split (all `lengths` must be at most `sequence_length`).
    Ties are resolved by document order, so that the plan is deterministic. O(n log sequence_length).
    """
    if room is not None and extra is not None:
        return _best_fit_of_two(lengths, sequence_length, extra, room)
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), np.int64)
    start_of = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[int]] = {}
    rooms: list[int] = []  # free tokens of open rows, each value once, sorted
    rows = 0
    inside: list[int] = []  # number of documents in each row
    for document in order.tolist():
        length = int(lengths[document])
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            row, room, rows = rows, sequence_length, rows + 1
            inside.append(0)
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        row_of[document], start_of[document] = row, sequence_length - room
        inside[row] += 1
        left = room - length
        if left and inside[row] != most:
            if left not in open_rows:
                open_rows[left] = []
                bisect.insort(rooms, left)
            open_rows[left].append(row)
    return _whole(row_of, start_of, lengths, rows, sequence_length)


def _best_fit_of_two(lengths: np.ndarray, sequence_length: int, extra: np.ndarray, room: int) -> Plan:
    """`best_fit` with two bounds: of the fullest rows that have tokens enough, the first with room for the rest.

    Looks through the open rows from the fullest on, which costs at most as many looks as there are open rows; rows
    without room for the smallest document are closed.
    """
    order = np.lexsort((-extra, -lengths))
    least, least_extra = int(lengths.min(initial=0)), int(extra.min(initial=0))
    row_of, start_of = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    open_rows: list[tuple[int, int, int]] = []  # free tokens, number, free extra; sorted
    rows = 0
    for document in order.tolist():
        length, more = int(lengths[document]), int(extra[document])
        at = bisect.bisect_left(open_rows, (length, -1, 0))
        at = next((i for i in range(at, len(open_rows)) if open_rows[i][2] >= more), -1)
        free, row, left = open_rows.pop(at) if at >= 0 else (sequence_length, rows, room)
        rows += at < 0
        row_of[document], start_of[document] = row, sequence_length - free
        if free - length >= max(1, least) and left - more >= least_extra:
            bisect.insort(open_rows, (free - length, row, left - more))
    return _whole(row_of, start_of, lengths, rows, sequence_length)


def one_each(lengths: np.ndarray, sequence_length: int) -> Plan:
    """One document per row, in order."""
    count = len(lengths)
    return _whole(np.arange(count, dtype=np.int64), np.zeros(count, np.int64), lengths, count, sequence_length)


def _whole(row: np.ndarray, start: np.ndarray, lengths: np.ndarray, rows: int, width: int) -> Plan:
    document = np.lexsort((start, row))
    zeros = np.zeros(len(lengths), np.int64)
    return Plan(row[document], start[document], document, zeros, lengths[document].astype(np.int64), rows, width)


PACKERS = {"concat": concat, "best_fit": best_fit, "none": one_each}


def within(counts: np.ndarray) -> np.ndarray:
    """0 … c−1 for each c of `counts`, concatenated: int64 [Σ counts]."""
    total = int(counts.sum())
    return np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)


def next_token_arrays(
    tokens: np.ndarray,
    loss_weights: np.ndarray | None,
    row: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    *,
    sequence_length: int,
    document_mask: bool,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """The batch arrays of next-token training, each [rows, S].

    Args:
        tokens: [rows, S], or [rows, S + 1] for windows that overlap by one.
        loss_weights: of each token as a target, in the shape of `tokens`; None: all 1.
        row, start, length: spans of documents, int64 [n], ordered by row.
        document_mask: without it, a row is one segment and positions continue through the whole row.

    A target has loss weight only where it is in the same span as its input.
    """
    rows, width = tokens.shape
    size = sequence_length
    flat = np.repeat(row * width + start, length) + within(length)
    segments = np.zeros((rows, width), np.int32)
    positions = np.zeros((rows, width), np.int32)
    if document_mask:
        first_of_row = np.searchsorted(row, row)
        number = np.arange(len(row)) - first_of_row + 1
        segments.reshape(-1)[flat] = np.repeat(number, length)
        positions.reshape(-1)[flat] = within(length)
    else:
        segments.reshape(-1)[flat] = 1
        positions = np.where(segments > 0, np.arange(width, dtype=np.int32), 0).astype(np.int32)
    following = np.zeros((rows, size), np.int32)
    following[:, : width - 1] = segments[:, 1 : size + 1]
    here = segments[:, :size]
    targeted = (here == following) & (here > 0)
    targets = np.full((rows, size), pad_id, np.int32)
    targets[:, : width - 1] = tokens[:, 1 : size + 1]
    weights = targeted.astype(np.float32)
    if loss_weights is not None:
        weights[:, : width - 1] *= loss_weights[:, 1 : size + 1]
    return {
        "tokens": np.ascontiguousarray(tokens[:, :size], dtype=np.int32),
        "targets": np.where(targeted, targets, np.int32(pad_id)),
        "segment_ids": np.ascontiguousarray(here),
        "positions": np.ascontiguousarray(positions[:, :size]),
        "loss_weights": weights,
    }
