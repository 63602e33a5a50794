"""Builds the arrays of a cache: sources → token store → packing plan → columns, and the counts of the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data import filters, packing
from easylm_jax.data.cache import SEGMENT
from easylm_jax.data.examples import Counts, Encoder, Example
from easylm_jax.data.fill import NothingKept, Progress, Times, fill
from easylm_jax.data.pictures import PictureEncoder, id_limit
from easylm_jax.data.store import GrowingArray, TokenStore
from easylm_jax.data.tokenizer import Tokenizer
from models.errors import UserError

_CHUNK_TOKENS = 1 << 22


class _Whole:
    """Takes all encoded records of a build: documents into the store, the rest to the encoder."""

    def __init__(self, spec: DataSpec, sources: list[Source], store: TokenStore, encoder: Encoder):
        self.spec, self.sources, self.store, self.encoder = spec, sources, store, encoder
        self.counts: list[Counts] = []
        self.times: list[Times] = []
        self._before = 0  # records of the streams of this source that are read

    def example(self, example: Example, source: int, sampled: bool) -> None:
        placed = dataclasses.replace(example, document=self._before + example.document)
        self.store.add(placed.ids, placed.trained, placed.document, sampled)
        self.encoder.stored(placed, source)

    def block(self, source: int, stream: int, counts: Counts) -> None:
        pass

    def stream(self, source: int, stream: int, records: int) -> None:
        self._before += records

    def source(self, source: int, counts: Counts, times: Times, streams: int) -> None:
        if not counts.kept:
            raise NothingKept(self.spec, self.sources[source], counts)
        self.counts.append(counts)
        self.times.append(times)
        self.store.end_source()
        self._before = 0


def assemble(spec: DataSpec, tokenizer: Tokenizer, folder: Path, progress: Progress) -> dict[str, Any]:
    """Reads all sources, writes the arrays of a cache into `folder` and returns their entries of the manifest."""
    listed = expand_sources(spec.sources)
    sources = [source for _, source in listed]
    encoder, store = make_encoder(spec, tokenizer, folder), make_store(spec, tokenizer, folder).create()
    try:
        sink = _Whole(spec, sources, store, encoder)
        fill(spec, sources, encoder, sink, progress)
        store.close()
        return pack(listed, sink.times, encoder, store, sink.counts, folder, progress)
    finally:
        store.remove()
        encoder.close()


def make_store(spec: DataSpec, tokenizer: Tokenizer, folder: Path) -> TokenStore:
    """An empty store for the documents of a spec. Loss masks are stored where a token may be untrained: conversations,
    and windows that the repetition filter masks."""
    marked = spec.kind != "text" or (spec.repetition_filter and spec.packing == "concat")
    ids = tokenizer.vocab_size if spec.vision is None else id_limit(spec.vision, tokenizer)
    return TokenStore(folder, ids, marked, 2 if spec.kind == "preference" else 1)


def pack(
    listed: list[tuple[int, Source]], times: list[Times], encoder: Encoder, store: TokenStore, counts: list[Counts],
    folder: Path, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Packs the documents of a closed store into the arrays of a cache; returns their entries of the manifest."""
    spec = encoder.spec
    sources = [source for _, source in listed]
    mixed = len(sources) > 1 and (spec.temperature is not None or sources[0].weight is not None)
    groups = [[index] for index in range(len(sources))] if mixed else [list(range(len(sources)))]
    progress(0, None, "pack")
    plans = [_Planned(encoder, store, times, group) for group in groups]
    totals = _write(encoder, store, plans, len(sources), folder, progress)
    columns = {"tokens": "input and target ids" if encoder.layout == "next_token" else "ids, padded on the right"}
    if store.masks is not None and encoder.layout == "next_token":
        columns["loss_weights"] = "1 where trained"
    for name, (values, what) in encoder.columns([plan for group in plans for plan in group.kept]).items():
        np.save(folder / "columns" / f"{name}.npy", values)
        columns[name] = what
    described = [
        {**dataclasses.asdict(source), "listed": index, "records": dataclasses.asdict(count), **per_source}
        for (index, source), count, per_source in zip(listed, counts, totals.pop("per_source"), strict=True)
    ]
    parts = parts_of(spec, sources, groups, [group.rows for group in plans])
    rows = sum(group.rows for group in plans)
    facts = {"layout": encoder.layout, "rows": rows, **totals, **encoder.facts()}
    return {**facts, "columns": columns, "parts": parts, "sources": described}


class _Planned:
    """The plans of the rows of a group of sources that are packed together.

    Documents that are joined are planned in chunks, so that memory does not grow with their number; other packings sort
    all documents by length, which takes about 60 bytes for each. `rows` is known before the first plan; `kept` holds
    the plans where further columns follow from them.
    """

    def __init__(self, encoder: Encoder, store: TokenStore, times: list[Times], group: list[int]):
        self._spec, self._store, self._times, self._group = encoder.spec, store, times, group
        self.kept: list[packing.Plan] = []
        self.width = encoder.spec.sequence_length
        if encoder.spec.packing == "concat":
            self._total = sum(int(lengths.sum()) for _, lengths in self._chunks())
            self.rows, self.width = packing.concat_rows(self._total, self.width), self.width + 1
        else:
            units = np.concatenate([units for units, _ in self._chunks()])
            self.kept = [encoder.plan(store.lengths, units)]
            self.rows = self.kept[0].rows

    def __iter__(self) -> Iterator[packing.Plan]:
        if self._spec.packing != "concat":
            return iter(self.kept)
        return packing.concat_chunks(self._chunks(), self._total, self._spec.sequence_length)

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Units in reading order and the lengths of their first documents."""
        for source in self._group:
            for units in self._store.units(source, *self._times[source]):
                yield units, self._store.documents["length"][units * self._store.unit].astype(np.int64)


def make_encoder(spec: DataSpec, tokenizer: Tokenizer, folder: Path) -> Encoder:
    """The encoder for the spec's kind of data."""
    from easylm_jax.data.preference import PairEncoder
    from easylm_jax.data.prompts import PromptEncoder

    kinds = {"preference": PairEncoder, "prompts": PromptEncoder, "pictures": PictureEncoder}
    return kinds.get(spec.kind, Encoder)(spec, tokenizer, folder)


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
    encoder: Encoder, store: TokenStore, groups: list[_Planned], source_count: int, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Writes the columns and the table of segments, chunk by chunk, and counts tokens as training will use them."""
    spec, tokenizer = encoder.spec, encoder.tokenizer
    (folder / "columns").mkdir()
    rows, width = sum(group.rows for group in groups), groups[0].width
    new = np.lib.format.open_memmap
    tokens = new(folder / "columns" / "tokens.npy", "w+", store.dtype, (rows, width))
    marks = None
    if store.masks is not None and encoder.layout == "next_token":
        marks = new(folder / "columns" / "loss_weights.npy", "w+", np.uint8, (rows, width))
    segments = GrowingArray(folder / "segments.npy", SEGMENT)
    offsets = new(folder / "row_offsets.npy", "w+", np.int64, (rows + 1,))
    statistics = _Statistics(spec, tokenizer, source_count)
    row = segment = 0
    for plan in (plan for group in groups for plan in group):
        segments.append(_table(store, plan))
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
    segments.close()
    for written in (tokens, marks, offsets):
        if written is not None:
            written.flush()
    return statistics.summary(rows * spec.sequence_length)


def _table(store: TokenStore, plan: packing.Plan) -> np.ndarray:
    table = np.zeros(len(plan.row), SEGMENT)
    table["start"], table["length"] = plan.start, plan.length
    table["source"], table["document"] = store.sources_of(plan.document), store.documents["number"][plan.document]
    return table


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
    source = np.repeat(store.documents["start"][document].astype(np.int64) + plan.offset[part], length) + ticks
    shape = (last - first, plan.width)
    tokens = np.full(shape, pad_id, store.dtype)
    tokens.reshape(-1)[place] = store.tokens[source]
    owner = np.zeros(shape, np.int64)
    owner.reshape(-1)[place] = np.repeat(store.sources_of(document), length)
    marks = None
    if store.masks is not None:
        marks = np.zeros(shape, np.uint8)
        marks.reshape(-1)[place] = store.masks[source]
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
