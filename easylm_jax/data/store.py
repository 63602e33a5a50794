"""Encoded documents on disk, between reading and packing; memory holds none of them.

A store is a few flat files in a folder. Its documents are those of source 0, then of source 1, and so on; `unit`
consecutive documents belong together (2 for the two sides of a pair).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK_UNITS = 1 << 18
DOCUMENT = np.dtype([("start", "<u8"), ("length", "<u4"), ("number", "<u8"), ("sampled", "u1")])


def store_dtype(vocab_size: int) -> np.dtype:
    """How ids are stored: 16 bits where the vocabulary allows it, else 32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenStore:
    """Tokens, loss masks and a table of documents (start, length, number of the record, whether it was sampled)."""

    def __init__(self, folder: Path, vocab_size: int, marks: bool, unit: int = 1):
        self.unit, self.dtype = unit, store_dtype(vocab_size)
        self._paths = [folder / f"store.{name}" for name in ("tokens", "marks", "documents")]
        self._files: list[Any] = []
        self._has_marks = marks
        self._end = self._count = 0
        self.ends: list[int] = []  # of each source, in documents
        self.tokens: Any = None
        self.marks: Any = None
        self.documents: Any = None  # of `DOCUMENT`

    def create(self) -> TokenStore:
        """Creates the files, to be filled."""
        self._files = [open(path, "wb") for path in self._paths]  # noqa: SIM115 - closed in `close` and `remove`
        return self

    def add(self, ids: np.ndarray, trained: np.ndarray | None, number: int, sampled: bool) -> None:
        """Appends one document: ids int [n], loss mask [n] (None: all trained), number of its record in the source, and
        whether it is in the random part of its source."""
        self._files[0].write(ids.astype(self.dtype).tobytes())
        if self._has_marks:
            marks = np.ones(len(ids), np.uint8) if trained is None else trained
            self._files[1].write(marks.astype(np.uint8).tobytes())
        self._files[2].write(np.array((self._end, len(ids), number, sampled), DOCUMENT).tobytes())
        self._end, self._count = self._end + len(ids), self._count + 1

    def append(self, other: TokenStore, first: int, last: int, add_to_number: int) -> None:
        """Appends documents `first` to `last` (exclusive) of a closed store."""
        table = np.array(other.documents[first:last])
        if not len(table):
            return
        begin, end = int(table["start"][0]), int(table["start"][-1] + table["length"][-1])
        self._files[0].write(other.tokens[begin:end].tobytes())
        if self._has_marks:
            self._files[1].write(other.marks[begin:end].tobytes())
        table["start"] = table["start"].astype(np.int64) - begin + self._end
        table["number"] += np.uint64(add_to_number)
        self._files[2].write(table.tobytes())
        self._end, self._count = self._end + end - begin, self._count + len(table)

    def end_source(self) -> None:
        """Called after the last document of each source."""
        self.ends.append(self._count)

    def close(self) -> None:
        """Finishes writing and memory-maps the files."""
        for file in self._files:
            file.close()
        self.open()

    def open(self) -> TokenStore:
        """Memory-maps the files, which exist."""
        tokens, marks, documents = (
            np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
            for path, dtype in zip(self._paths, (self.dtype, np.dtype(np.uint8), DOCUMENT), strict=True)
        )
        self.tokens, self.marks, self.documents = tokens, marks, documents
        return self

    @property
    def masks(self) -> np.ndarray | None:
        """The loss masks, where they are stored."""
        return self.marks if self._has_marks else None

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return self.documents["length"].astype(np.int64)

    def sources_of(self, documents: np.ndarray) -> np.ndarray:
        """The index of the source of each document, int64."""
        return np.searchsorted(self.ends, documents, side="right")

    def units(self, source: int, passes: int, rest: bool) -> Iterator[np.ndarray]:
        """Units (documents or pairs) of a source in chunks: `passes` times all of them, then the sampled ones."""
        first = self.ends[source - 1] // self.unit if source else 0
        last = self.ends[source] // self.unit
        for turn in range(passes + rest):
            for begin in range(first, last, _CHUNK_UNITS):
                chunk = np.arange(begin, min(begin + _CHUNK_UNITS, last), dtype=np.int64)
                if turn == passes:
                    chunk = chunk[self.documents["sampled"][chunk * self.unit] > 0]
                yield chunk

    def remove(self) -> None:
        """Closes and deletes the files."""
        for file in self._files:
            file.close()
        for path in self._paths:
            path.unlink(missing_ok=True)


class GrowingArray:
    """A `.npy` file whose first axis is not known before the end; the bytes are those that `np.save` would write."""

    def __init__(self, path: Path, dtype: np.dtype):
        self._path, self._dtype, self._count = path, dtype, 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed in `close`
        self._header()

    def append(self, values: np.ndarray) -> None:
        """Adds values [n] at the end."""
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self._count += len(values)

    def close(self) -> None:
        """Writes the final header, which has room for any length."""
        if not self._file.closed:
            self._file.seek(0)
            self._header()
            self._file.close()

    def _header(self) -> None:
        described: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, {**described, "shape": (self._count,)})
