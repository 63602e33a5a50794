"""Builds the arrays of a cache: sources → token store → packing plan → columns, and the counts of the manifest."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data import filters, packing
from easylm_jax.data.cache import SEGMENT, left_out
from easylm_jax.data.examples import Counts, Encoder
from easylm_jax.data.loader import permutation
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.data.tokenizer import Tokenizer
from models.errors import UserError

Progress = Callable[[int, int | None, str], None]
_BATCH_RECORDS = 512
_BATCH_CHARACTERS = 4_000_000
_CHUNK_TOKENS = 1 << 22


class NothingKept(UserError):
    """No record of a source is kept; `counts` says why."""

    def __init__(self, spec: DataSpec, source: Source, counts: Counts):
        reasons = ", ".join(f"{n:,} {why}" for why, n in left_out(dataclasses.asdict(counts)).items())
        why = f"all {counts.read:,} are left out: {reasons}" if counts.read else "it holds no records"
        if counts.overlong_dropped:
            why += f"; at most sequence_length {spec.sequence_length} tokens fit"
        first_bad = f"; the first bad one: {counts.first_bad}" if counts.first_bad else ""
        what = "no prompt" if spec.kind == "prompts" else "nothing to train on"
        super().__init__(f"data: source {source.path} gave {what} ({why}){first_bad}")
        self.source, self.counts = source, counts


class TokenStore:
    """Tokens and loss masks of all documents in two flat files on disk; lengths and indices stay in memory.

    `unit` consecutive documents belong together: 2 for the two sides of a pair, else 1.
    """

    def __init__(self, folder: Path, vocab_size: int, marks: bool, unit: int = 1):
        self.unit = unit
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self._paths = [folder / "store.tokens", folder / "store.marks"]
        self._files = [open(path, "wb") for path in self._paths]  # noqa: SIM115 - closed in `close` and `remove`
        self._marks = marks
        self._lengths, self._documents, self._sources = array.array("q"), array.array("q"), array.array("q")

    def add(self, ids: np.ndarray, trained: np.ndarray | None, source: int, document: int) -> None:
        """Appends one document: ids int [n], loss mask [n] (None: all trained), index of its source and record."""
        self._files[0].write(ids.astype(self.dtype).tobytes())
        if self._marks:
            marks = np.ones(len(ids), np.uint8) if trained is None else trained
            self._files[1].write(marks.astype(np.uint8).tobytes())
        self._lengths.append(len(ids))
        self._documents.append(document)
        self._sources.append(source)

    def close(self) -> None:
        """Finishes writing and memory-maps the files."""
        for file in self._files:
            file.close()
        self.lengths = np.array(self._lengths, np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.documents, self.sources = np.array(self._documents, np.int64), np.array(self._sources, np.int64)
        self.tokens = np.memmap(self._paths[0], self.dtype, "r") if len(self.lengths) else np.zeros(0, self.dtype)
        self.marks = np.memmap(self._paths[1], np.uint8, "r") if self._marks and len(self.lengths) else None

    def remove(self) -> None:
        """Closes and deletes the files."""
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)


def assemble(spec: DataSpec, tokenizer: Tokenizer, folder: Path, progress: Progress) -> dict[str, Any]:
    """Writes the arrays of a cache into `folder` and returns their entries of the manifest."""
    listed = expand_sources(spec.sources)
    sources = [source for _, source in listed]
    encoder = make_encoder(spec, tokenizer, folder)
    # Loss masks are stored where a token may be untrained: conversations, and windows that the repetition filter masks.
    marked = spec.kind != "text" or (spec.repetition_filter and spec.packing == "concat")
    store = TokenStore(folder, tokenizer.vocab_size, marked, encoder.unit)
    try:
        counts = _fill(store, sources, encoder, progress)
        store.close()
        mixed = len(sources) > 1 and (spec.temperature is not None or sources[0].weight is not None)
        groups = [[index] for index in range(len(sources))] if mixed else [list(range(len(sources)))]
        progress(0, None, "pack")
        plans = [
            encoder.plan(store.lengths, np.concatenate([_chosen(spec, store, sources, index) for index in group]))
            for group in groups
        ]
        totals = _write(encoder, store, plans, len(sources), progress)
        columns = {"tokens": "input and target ids" if encoder.layout == "next_token" else "ids, padded on the right"}
        if marked and encoder.layout == "next_token":
            columns["loss_weights"] = "1 where trained"
        for name, (values, what) in encoder.columns(plans).items():
            np.save(folder / "columns" / f"{name}.npy", values)
            columns[name] = what
    finally:
        store.remove()
        encoder.close()
    described = [
        {**dataclasses.asdict(source), "listed": index, "records": dataclasses.asdict(count), **per_source}
        for (index, source), count, per_source in zip(listed, counts, totals.pop("per_source"), strict=True)
    ]
    parts = parts_of(spec, sources, groups, [plan.rows for plan in plans])
    rows = sum(plan.rows for plan in plans)
    facts = {"layout": encoder.layout, "rows": rows, **totals, **encoder.facts()}
    return {**facts, "columns": columns, "parts": parts, "sources": described}


def make_encoder(spec: DataSpec, tokenizer: Tokenizer, folder: Path) -> Encoder:
    """The encoder for the spec's kind of data."""
    from easylm_jax.data.preference import PairEncoder
    from easylm_jax.data.prompts import PromptEncoder

    return {"preference": PairEncoder, "prompts": PromptEncoder}.get(spec.kind, Encoder)(spec, tokenizer, folder)


def expand_sources(sources: Iterable[Source]) -> list[tuple[int, Source]]:
    """(index in `sources`, source), with a seqio mixture replaced by its tasks at the mixture's rates."""
    sources = list(sources)
    expanded: list[tuple[int, Source]] = []
    for index, source in enumerate(sources):
        rates: dict[str, float] = {}
        if source.path.startswith("seqio:"):
            from easylm_jax.data.seqio_read import mixture_rates

            name, _, split = source.path.removeprefix("seqio:").partition(":")
            rates = mixture_rates(name, source.module)
        if not rates:
            expanded.append((index, source))
            continue
        if source.weight is None and len(sources) > 1:
            raise UserError(f"data: {source.path} is a mixture next to other sources; give every source a weight")
        for task, rate in rates.items():
            path = f"seqio:{task}" + (f":{split}" if split else "")
            share = (source.weight or 1.0) * rate / sum(rates.values())
            expanded.append((index, dataclasses.replace(source, path=path, weight=share)))
    return expanded


def _batches(records: Iterator[tuple[Any, str]]) -> Iterator[list[tuple[Any, str]]]:
    """Batches of records, limited in number and in characters, to bound memory with long documents."""
    batch: list[tuple[Any, str]] = []
    size = 0
    for item in records:
        batch.append(item)
        size += _characters(item[0])
        if len(batch) >= _BATCH_RECORDS or size >= _BATCH_CHARACTERS:
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


def _fill(store: TokenStore, sources: list[Source], encoder: Encoder, progress: Progress) -> list[Counts]:
    """Reads and encodes all sources into the store. `UserError` for a bad record or a source without documents."""
    all_counts, done = [], 0
    for index, source in enumerate(sources):
        counts = Counts()
        progress(done, None, "read")
        try:
            for batch in _batches(read_records(source)):
                for example in encoder.encode(batch, source, counts):
                    store.add(example.ids, example.trained, index, example.document)
                    encoder.stored(example, index)
                progress(done + counts.read, None, "read")
        except BadRecord as error:
            raise UserError(f"data: {error}") from None
        if not counts.kept:
            raise NothingKept(encoder.spec, source, counts)
        done += counts.read
        all_counts.append(counts)
    return all_counts


def _chosen(spec: DataSpec, store: TokenStore, sources: list[Source], index: int) -> np.ndarray:
    """Units (documents or pairs) of a source; a count or fraction takes whole passes and a random part of one."""
    documents = np.flatnonzero(store.sources[:: store.unit] == index)
    source = sources[index]
    if source.count is None and source.fraction is None:
        return documents
    wanted = source.count if source.count is not None else round((source.fraction or 0.0) * len(documents))
    if wanted == 0:
        raise UserError(
            f"data: fraction {source.fraction} of {len(documents)} documents of {source.path} is none; raise it"
        )
    passes, rest = divmod(wanted, len(documents))
    sampled = np.sort(permutation(len(documents), "resample", spec.seed, index)[:rest].astype(np.int64))
    return np.concatenate([np.tile(documents, passes), documents[sampled]])


def parts_of(spec: DataSpec, sources: list[Source], groups: list[list[int]], rows: list[int]) -> list[dict]:
    """Ranges of rows that are sampled at given rates; a single one where all rows are shuffled together. `rows` has
    the number of rows of each group of sources."""
    power = 1.0 / (spec.temperature or 1.0)
    raw = []
    for group, count in zip(groups, rows, strict=True):
        weight = sources[group[0]].weight
        raw.append((count if weight is None or len(groups) == 1 else weight) ** power)
    parts, first = [], 0
    for group, count, rate in zip(groups, rows, raw, strict=True):
        names = [sources[index].path for index in group]
        parts.append({"sources": names, "first_row": first, "rows": count, "rate": rate / sum(raw)})
        first += count
    return parts


def _write(
    encoder: Encoder, store: TokenStore, plans: list[packing.Plan], source_count: int, progress: Progress
) -> dict[str, Any]:
    """Writes the columns and the table of segments, chunk by chunk, and counts tokens as training will use them."""
    spec, tokenizer, folder = encoder.spec, encoder.tokenizer, encoder.folder
    assert folder is not None, "a build has a folder"
    (folder / "columns").mkdir()
    rows, width = sum(plan.rows for plan in plans), plans[0].width
    new = np.lib.format.open_memmap
    tokens = new(folder / "columns" / "tokens.npy", "w+", store.dtype, (rows, width))
    marks = None
    if store.marks is not None and encoder.layout == "next_token":
        marks = new(folder / "columns" / "loss_weights.npy", "w+", np.uint8, (rows, width))
    segments = new(folder / "segments.npy", "w+", SEGMENT, (sum(len(plan.row) for plan in plans),))
    offsets = new(folder / "row_offsets.npy", "w+", np.int64, (rows + 1,))
    statistics = _Statistics(spec, tokenizer, source_count)
    row = segment = 0
    for plan in plans:
        table = segments[segment : segment + len(plan.row)]
        table["start"], table["length"] = plan.start, plan.length
        table["source"], table["document"] = store.sources[plan.document], store.documents[plan.document]
        inside = plan.row_offsets()
        offsets[row : row + plan.rows + 1] = segment + inside
        step = max(1, _CHUNK_TOKENS // width)
        for first in range(0, plan.rows, step):
            last = min(first + step, plan.rows)
            part = slice(int(inside[first]), int(inside[last]))
            chunk = _gather(store, plan, part, first, last, tokenizer.pad_id)
            if spec.repetition_filter and spec.packing == "concat":
                statistics.blank_repetitive(chunk)
            statistics.add(chunk)
            tokens[row + first : row + last] = chunk.tokens
            if marks is not None:
                marks[row + first : row + last] = chunk.marks
            progress(row + last, rows, "write")
        row, segment = row + plan.rows, segment + len(plan.row)
    for written in (tokens, marks, segments, offsets):
        if written is not None:
            written.flush()
    return statistics.summary(rows * spec.sequence_length)


@dataclasses.dataclass
class _Chunk:
    """Some rows in memory with their segments; `row` is relative to the first row of the chunk."""

    tokens: np.ndarray
    marks: np.ndarray | None
    owner: np.ndarray
    row: np.ndarray
    start: np.ndarray
    length: np.ndarray


def _gather(store: TokenStore, plan: packing.Plan, part: slice, first: int, last: int, pad_id: int) -> _Chunk:
    row, start, length = plan.row[part] - first, plan.start[part], plan.length[part]
    document = plan.document[part]
    ticks = packing.within(length)
    place = np.repeat(row * plan.width + start, length) + ticks
    source = np.repeat(store.starts[document] + plan.offset[part], length) + ticks
    shape = (last - first, plan.width)
    tokens = np.full(shape, pad_id, store.dtype)
    tokens.reshape(-1)[place] = store.tokens[source]
    owner = np.zeros(shape, np.int64)
    owner.reshape(-1)[place] = np.repeat(store.sources[document], length)
    marks = None
    if store.marks is not None:
        marks = np.zeros(shape, np.uint8)
        marks.reshape(-1)[place] = store.marks[source]
    return _Chunk(tokens, marks, owner, row, start, length)


class _Statistics:
    """Statistics of the batch arrays, so that the manifest counts tokens as training uses them."""

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer, source_count: int):
        self.spec, self.pad_id = spec, tokenizer.pad_id
        self.histogram = np.zeros(tokenizer.vocab_size, np.int64)
        self.tokens = np.zeros(source_count, np.int64)
        self.trained = np.zeros(source_count, np.int64)
        self.blanked = 0

    def blank_repetitive(self, chunk: _Chunk) -> None:
        """Masks the loss of windows that repeat a short unit, as OLMo 2 does in training (arXiv 2501.00656, §3.1)."""
        filled = np.zeros(len(chunk.tokens), np.int64)
        np.maximum.at(filled, chunk.row, chunk.start + chunk.length)
        assert chunk.marks is not None, "loss masks are stored where the filter applies"
        for index, tokens in enumerate(chunk.tokens):
            if filters.is_repetitive(tokens[: filled[index]]):
                chunk.marks[index] = 0
                self.blanked += 1

    def add(self, chunk: _Chunk) -> None:
        """Adds the tokens and targets of a chunk."""
        size, count = self.spec.sequence_length, len(self.tokens)
        arrays = packing.next_token_arrays(
            chunk.tokens,
            chunk.marks,
            chunk.row,
            chunk.start,
            chunk.length,
            sequence_length=size,
            document_mask=self.spec.document_mask,
            pad_id=self.pad_id,
        )
        trained = arrays["loss_weights"] > 0
        self.histogram += np.bincount(arrays["targets"][trained], minlength=len(self.histogram))
        self.tokens += np.bincount(chunk.owner[:, :size][arrays["segment_ids"] > 0], minlength=count)
        width = chunk.tokens.shape[1]
        self.trained += np.bincount(chunk.owner[:, 1 : size + 1][trained[:, : width - 1]], minlength=count)

    def summary(self, places: int) -> dict[str, Any]:
        """The manifest's entries; `places` is the number of token positions in all rows."""
        trained = int(self.trained.sum())
        share = self.histogram[self.histogram > 0] / max(trained, 1)
        tokens = int(self.tokens.sum())
        return {
            "tokens": tokens,
            "trained_tokens": trained,
            "fill_rate": round(tokens / places, 6),
            "unigram_entropy_nats": abs(round(float((share * np.log(share)).sum()), 6)),
            "blanked_windows": self.blanked,
            "per_source": [
                {"tokens": int(a), "trained_tokens": int(b)} for a, b in zip(self.tokens, self.trained, strict=True)
            ],
        }
