"""Tokenised data read in place: OLMo's raw `.npy` shards, which are token ids without a header (spec olmo §12).

A spec of kind "tokens" names shards on disk or in a bucket, or lists of them. Nothing is copied: its cache is an index,
and a batch reads its windows as byte ranges. With the packing "files" (OLMo's) windows of S tokens are cut within each
file and the tail of a file is dropped; a window's last token has no target. With "concat" the files of a source are one
stream, cut as documents are elsewhere: windows overlap by one token and the last one is padded.

The index holds 16 bytes for each file that is listed, whatever the number of windows: window → file is a search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data import byte_ranges, filters, packing
from easylm_jax.data.assemble import parts_of
from easylm_jax.data.byte_ranges import Part
from easylm_jax.data.cache import Cache, Segment
from easylm_jax.data.tokenizer import Tokenizer
from models import reading
from models.errors import UserError

LISTS = (".txt", ".yaml", ".yml")
_SAMPLE = 64  # windows that the manifest's entropy is measured on
_CHUNK = 1 << 26  # bytes that `verify` reads at once


def dtype_of(vocab_size: int) -> np.dtype:
    """How ids are stored: 16 bits where the vocabulary allows it, else 32 (OLMo-core, `NumpyDatasetConfig`)."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def shards_of(source: Source) -> list[str]:
    """The files of a source in order, as often as they are listed.

    A list (.txt, or the `paths` of an OLMo configuration in .yaml) has a path on each line; text before a comma is a
    label, and `#` starts a comment. Paths that are not absolute are below `Source.base`, else beside the list.
    """
    if not source.path.lower().endswith(LISTS):
        found = byte_ranges.find(source.path)
        if not found:
            raise UserError(f"data: no shard at {source.path}; give a .npy file, a glob, a folder or a list of files")
        return found
    path = Path(source.path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data: cannot read the list of files {path}: {error}") from None
    base = source.base or str(path.parent)
    named = [name for line in lines if (name := _listed(line)) is not None]
    if not named:
        raise UserError(f"data: the list {path} names no .npy file")
    return [_below(base, name) for name in named]


def _listed(line: str) -> str | None:
    text = line.split("#")[0].strip().removeprefix("- ").strip().strip("'\"")
    text = text.rpartition(",")[2].strip()
    return text if text.endswith(".npy") else None


def _below(base: str, name: str) -> str:
    if byte_ranges.is_remote(name) or name.startswith("/"):
        return name
    return f"{base.rstrip('/')}/{name}"


def fingerprints(source: Source, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Name and size of every listed file, which stand for its content as in OLMo-core; sizes of remote files are taken
    from `known` where an index has them already."""
    files = shards_of(source)
    new = list(dict.fromkeys(f for f in files if not (byte_ranges.is_remote(f) and f in known)))
    size = dict(zip(new, byte_ranges.sizes(new), strict=True))
    return [
        {"path": file, "bytes": size[file] if file in size else known[file]["bytes"], "mtime_ns": 0, "sha256": ""}
        for file in files
    ]


@dataclasses.dataclass(frozen=True)
class _Files:
    """The listed files of one source as one stream of tokens. `tokens` int64 [files + 1]: first token of each file;
    `windows` int64 [files + 1]: first window of each; `skip`: windows of the source that are left out first."""

    names: tuple[str, ...]
    tokens: np.ndarray
    windows: np.ndarray
    skip: int
    rows: int


def _files(source: Source, facts: list[dict[str, Any]], spec: DataSpec, itemsize: int) -> _Files:
    facts = facts * int(source.fraction or 1)
    sizes = np.array([fact["bytes"] for fact in facts], np.int64) // itemsize
    tokens = np.concatenate([[0], np.cumsum(sizes)])
    if spec.packing == "files":
        windows = np.concatenate([[0], np.cumsum(sizes // spec.sequence_length)])
        count = int(windows[-1])
    else:
        windows, total = tokens, int(tokens[-1])
        count = max(1, -(-(total - 1) // spec.sequence_length)) if total > 1 else 0
    rows = max(0, count - source.skip)
    rows = rows if source.limit is None else min(rows, source.limit)
    return _Files(tuple(fact["path"] for fact in facts), tokens, windows, source.skip, rows)


def index(spec: DataSpec, tokenizer: Tokenizer, files: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Checks the shards and returns the entries of the manifest.

    Raises:
        UserError: a shard is not whole tokens, has a header, or holds ids outside the vocabulary (of a sample), or a
            source has no window.
    """
    dtype = dtype_of(tokenizer.vocab_size)
    for facts in files:
        _check_shards(facts, dtype)
    streams = [_files(source, facts, spec, dtype.itemsize) for source, facts in zip(spec.sources, files, strict=True)]
    described = []
    for listed, (source, stream) in enumerate(zip(spec.sources, streams, strict=True)):
        if not stream.rows:
            raise UserError(
                f"data: source {source.path} gives no window of {spec.sequence_length} tokens from "
                f"{len(stream.names):,} files; lower sequence_length or skip, or choose packing 'concat'"
            )
        tokens, trained = _tokens_in(spec, stream)
        total = stream.rows + stream.skip
        counts = {"read": total, "kept": stream.rows}
        fields = {**dataclasses.asdict(source), "listed": listed, "records": counts}
        described.append({**fields, "tokens": tokens, "trained_tokens": trained})
    mixed = len(streams) > 1 and (spec.temperature is not None or spec.sources[0].weight is not None)
    groups = [[i] for i in range(len(streams))] if mixed else [list(range(len(streams)))]
    rows = sum(stream.rows for stream in streams)
    tokens = sum(source["tokens"] for source in described)
    return {
        "layout": "next_token",
        "rows": rows,
        "tokens": tokens,
        "trained_tokens": sum(source["trained_tokens"] for source in described),
        "fill_rate": round(tokens / (rows * spec.sequence_length), 6),
        "unigram_entropy_nats": 0.0,  # measured below
        "blanked_windows": 0,  # the repetition filter applies when a window is read
        "shards": {"dtype": dtype.str, "spec": spec.to_dict()},
        "columns": {},
        "parts": parts_of(spec, list(spec.sources), groups, [sum(streams[i].rows for i in group) for group in groups]),
        "sources": described,
    }


def _tokens_in(spec: DataSpec, stream: _Files) -> tuple[int, int]:
    """Inputs and targets of a source's rows, before a document mask takes the targets across documents."""
    size = spec.sequence_length
    if spec.packing == "files":
        return stream.rows * size, stream.rows * (size - 1)
    first, last = stream.skip * size, (stream.skip + stream.rows) * size
    total = int(stream.tokens[-1])
    return min(last, total) - first, min(last, total - 1) - first


def _check_shards(facts: list[dict[str, Any]], dtype: np.dtype) -> None:
    for fact in facts:
        if fact["bytes"] % dtype.itemsize:
            raise UserError(
                f"data: shard {fact['path']} has {fact['bytes']:,} bytes, which are not whole tokens of "
                f"{8 * dtype.itemsize} bits; it is cut off, or of another vocabulary"
            )
    unique = list(dict.fromkeys(fact["path"] for fact in facts if fact["bytes"] >= 6))
    for path, start in zip(unique, byte_ranges.read([Part(path, 0, 6) for path in unique]), strict=True):
        if start == b"\x93NUMPY":
            raise UserError(f"data: shard {path} has a NumPy header; shards are token ids alone (array.tofile(path))")


class ShardCache(Cache):
    """The rows of shards, read where they lie. In all else it is a cache."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.rows = manifest["rows"]
        self.fingerprint = manifest["fingerprint"]
        self.sequence_length = manifest["sequence_length"]
        self.columns, self._extra, self._records = {}, (), None
        self._spec = DataSpec.from_dict(manifest["shards"]["spec"])
        self._dtype = np.dtype(manifest["shards"]["dtype"])
        self._files = [
            _files(source, facts["files"], self._spec, self._dtype.itemsize)
            for source, facts in zip(self._spec.sources, manifest["sources"], strict=True)
        ]
        self._first = np.concatenate([[0], np.cumsum([files.rows for files in self._files])])
        if self._first[-1] != self.rows:
            raise reading.Damaged(folder / "manifest.json", "its shards do not have its rows", "build it again")
        self._eos, self._vocab = manifest["tokenizer"]["eos_id"], manifest["tokenizer"]["vocab_size"]

    @property
    def _width(self) -> int:
        return self.sequence_length + (self._spec.packing == "concat")

    def _parts(self, row: int) -> Iterator[Part]:
        """Where the tokens of a row lie."""
        source = int(np.searchsorted(self._first, row, side="right")) - 1
        files = self._files[source]
        window = row - int(self._first[source]) + files.skip
        size, item = self.sequence_length, self._dtype.itemsize
        if self._spec.packing == "files":
            file = int(np.searchsorted(files.windows, window, side="right")) - 1
            first = (window - int(files.windows[file])) * size
            yield Part(files.names[file], first * item, (first + size) * item)
            return
        first, last = window * size, min(window * size + size + 1, int(files.tokens[-1]))
        file = int(np.searchsorted(files.tokens, first, side="right")) - 1
        while first < last:
            start, end = int(files.tokens[file]), min(int(files.tokens[file + 1]), last)
            if end > first:
                yield Part(files.names[file], (first - start) * item, (end - start) * item)
            first, file = end, file + 1

    def _windows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of rows, [n, width] padded, and how many each has, int64 [n]."""
        parts = [list(self._parts(int(row))) for row in rows]
        flat = [part for of_row in parts for part in of_row]
        read = iter(byte_ranges.read(flat))
        tokens = np.full((len(rows), self._width), self.manifest["tokenizer"]["pad_id"], self._dtype)
        filled = np.zeros(len(rows), np.int64)
        for number, of_row in enumerate(parts):
            for part in of_row:
                ids = np.frombuffer(next(read), self._dtype)
                if len(ids) and ids.max() >= self._vocab:
                    raise self._outside(part, ids)
                tokens[number, filled[number] : filled[number] + len(ids)] = ids
                filled[number] += len(ids)
        return tokens, filled

    def _outside(self, part: Part, ids: np.ndarray) -> UserError:
        at = int(np.argmax(ids >= self._vocab))
        return UserError(
            f"data: shard {part.file} has token {ids[at]} at {part.first // self._dtype.itemsize + at:,}, outside the "
            f"{self._vocab:,} of tokenizer {self.manifest['tokenizer']['spec']}; it was made with another one"
        )

    def _spans(self, tokens: np.ndarray, filled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, start and length of documents. Shards record no spans: a document ends with its EOS, which text is never
        encoded to. Without a document mask a row is one span."""
        if not self._spec.document_mask:
            return np.arange(len(filled)), np.zeros(len(filled), np.int64), filled
        inside = np.arange(tokens.shape[1]) < filled[:, None]
        begins = np.zeros_like(inside)
        begins[:, 0] = True
        begins[:, 1:] = tokens[:, :-1] == self._eos
        row, start = np.nonzero(begins & inside)
        end = np.where(np.append(row[1:] == row[:-1], False), np.append(start[1:], 0), filled[row])
        return row, start, end - start

    def _read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        tokens, filled = self._windows(rows)
        weights = None
        if self._spec.repetition_filter:
            blank = [filters.is_repetitive(ids[:count]) for ids, count in zip(tokens, filled, strict=True)]
            weights = np.ones(tokens.shape, np.uint8)
            weights[np.array(blank, bool)] = 0
        row, start, length = self._spans(tokens, filled)
        return packing.next_token_arrays(
            tokens, weights, row, start, length, sequence_length=self.sequence_length,
            document_mask=self._spec.document_mask, pad_id=self.manifest["tokenizer"]["pad_id"],
        )  # fmt: skip

    def documents(self, row: int) -> list[Segment]:
        tokens, filled = self._windows(np.array([row]))
        source = int(np.searchsorted(self._first, row, side="right")) - 1
        _, starts, lengths = self._spans(tokens, filled)
        return [Segment(int(a), int(n), source, row) for a, n in zip(starts, lengths, strict=True)]

    def entropy(self) -> float:
        """The unigram entropy in nats of a sample of evenly spaced windows, whose tokens are checked on the way."""
        rows = np.unique(np.linspace(0, self.rows - 1, min(self.rows, _SAMPLE)).astype(np.int64))
        batch = self._read(rows)
        counts = np.unique(batch["targets"][batch["loss_weights"] > 0], return_counts=True)[1]
        share = counts / max(1, int(counts.sum()))
        return abs(round(float(-(share * np.log(share)).sum()), 6))

    def verify(self) -> None:
        """Reads every shard and checks its size and all its tokens; `UserError` names the first that is wrong."""
        super().verify()
        seen: dict[str, int] = {}
        for source in self.manifest["sources"]:
            seen |= {fact["path"]: fact["bytes"] for fact in source["files"]}
        for (file, expected), size in zip(seen.items(), byte_ranges.sizes(list(seen)), strict=True):
            if size != expected:
                raise UserError(f"data: shard {file} has {size:,} bytes, the index {expected:,}; build it again")
            for first in range(0, size, _CHUNK):
                part = Part(file, first, min(first + _CHUNK, size))
                ids = np.frombuffer(byte_ranges.read([part])[0], self._dtype)
                if ids.max() >= self._vocab:
                    raise self._outside(part, ids)
