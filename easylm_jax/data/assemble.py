"""The inside of a build: sources → token store → plan of rows → columns, with the counts of the manifest."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data import filters, packing
from easylm_jax.data.cache import SEGMENT
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


class Store:
    """Tokens (and trained marks) of all documents, appended to two flat files; lengths and numbers stay in memory."""

    def __init__(self, folder: Path, vocab_size: int, marks: bool, unit: int = 1):
        self.unit = unit  # so many documents that follow each other belong together
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self._paths = [folder / "store.tokens", folder / "store.marks"]
        self._files = [open(path, "wb") for path in self._paths]  # noqa: SIM115 - closed in `close` and `remove`
        self._marks = marks
        self._lengths, self._documents, self._sources = array.array("q"), array.array("q"), array.array("q")

    def add(self, ids: np.ndarray, trained: np.ndarray | None, source: int, document: int) -> None:
        self._files[0].write(ids.astype(self.dtype).tobytes())
        if self._marks:
            marks = np.ones(len(ids), np.uint8) if trained is None else trained
            self._files[1].write(marks.astype(np.uint8).tobytes())
        self._lengths.append(len(ids))
        self._documents.append(document)
        self._sources.append(source)

    def close(self) -> None:
        """Stop writing and map what was written."""
        for file in self._files:
            file.close()
        self.lengths = np.array(self._lengths, np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.documents, self.sources = np.array(self._documents, np.int64), np.array(self._sources, np.int64)
        self.tokens = np.memmap(self._paths[0], self.dtype, "r") if len(self.lengths) else np.zeros(0, self.dtype)
        self.marks = np.memmap(self._paths[1], np.uint8, "r") if self._marks and len(self.lengths) else None

    def remove(self) -> None:
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)


def assemble(spec: DataSpec, tokenizer: Tokenizer, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write the arrays of a cache into `folder` and return what the manifest says about them."""
    listed = expand_sources(spec.sources)
    sources = [source for _, source in listed]
    encoder = make_encoder(spec, tokenizer, folder)
    # Marks exist where some token may be no target: conversations, and windows that the repetition filter blanks.
    marked = spec.kind != "text" or (spec.repetition_filter and spec.packing == "concat")
    store = Store(folder, tokenizer.vocab_size, marked, encoder.unit)
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
    parts = _parts(spec, sources, groups, plans)
    rows = sum(plan.rows for plan in plans)
    facts = {"layout": encoder.layout, "rows": rows, **totals, **encoder.facts()}
    return {**facts, "columns": columns, "parts": parts, "sources": described}


def make_encoder(spec: DataSpec, tokenizer: Tokenizer, folder: Path) -> Encoder:
    """What the spec's kind of data does with its records."""
    from easylm_jax.data.preference import PairEncoder
    from easylm_jax.data.prompts import PromptEncoder

    return {"preference": PairEncoder, "prompts": PromptEncoder}.get(spec.kind, Encoder)(spec, tokenizer, folder)


def expand_sources(sources: Iterable[Source]) -> list[tuple[int, Source]]:
    """(index in the list, source), with a seqio mixture replaced by its tasks at the mixture's rates."""
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
            raise UserError(f"data: {source.path} is a mixture beside other sources; give every source a weight")
        for task, rate in rates.items():
            path = f"seqio:{task}" + (f":{split}" if split else "")
            share = (source.weight or 1.0) * rate / sum(rates.values())
            expanded.append((index, dataclasses.replace(source, path=path, weight=share)))
    return expanded


def _batches(records: Iterator[tuple[Any, str]]) -> Iterator[list[tuple[Any, str]]]:
    """Records in batches bounded in number and in characters, so that long documents do not pile up in memory."""
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


def _fill(store: Store, sources: list[Source], encoder: Encoder, progress: Progress) -> list[Counts]:
    """Read and encode all sources into the store. UserError for the first bad record or a source without documents."""
    all_counts, done = [], 0
    for index, source in enumerate(sources):
        counts = Counts()
        try:
            for batch in _batches(read_records(source)):
                for example in encoder.encode(batch, source, counts):
                    store.add(example.ids, example.trained, index, example.document)
                    encoder.stored(example, index)
                progress(done + counts.read, None, "read")
        except BadRecord as error:
            raise UserError(f"data: {error}") from None
        if not counts.kept:
            left_out = {name: n for name, n in dataclasses.asdict(counts).items() if isinstance(n, int) and n}
            why = f"all were left out: {left_out}" if counts.read else "it holds no records"
            example = f"; the first bad one: {counts.first_bad}" if counts.first_bad else ""
            raise UserError(f"data: source {source.path} gave nothing to train on ({why}){example}")
        done += counts.read
        all_counts.append(counts)
    return all_counts


def _chosen(spec: DataSpec, store: Store, sources: list[Source], index: int) -> np.ndarray:
    """The units of a source (documents, pairs); a count or fraction gives whole passes, then a random rest."""
    documents = np.flatnonzero(store.sources[:: store.unit] == index)
    source = sources[index]
    if source.count is None and source.fraction is None:
        return documents
    wanted = source.count if source.count is not None else round(source.fraction * len(documents))
    if wanted == 0:
        raise UserError(f"data: fraction {source.fraction} of the {len(documents)} documents of {source.path} is none")
    passes, rest = divmod(wanted, len(documents))
    sampled = np.sort(permutation(len(documents), "resample", spec.seed, index)[:rest].astype(np.int64))
    return np.concatenate([np.tile(documents, passes), documents[sampled]])


def _parts(spec: DataSpec, sources: list[Source], groups: list[list[int]], plans: list[packing.Plan]) -> list[dict]:
    """Row ranges that are drawn from at given rates; a single one where rows are simply shuffled together."""
    power = 1.0 / (spec.temperature or 1.0)
    raw = []
    for group, plan in zip(groups, plans, strict=True):
        weight = sources[group[0]].weight
        raw.append((plan.rows if weight is None or len(groups) == 1 else weight) ** power)
    parts, first = [], 0
    for group, plan, rate in zip(groups, plans, raw, strict=True):
        names = [sources[index].path for index in group]
        parts.append({"sources": names, "first_row": first, "rows": plan.rows, "rate": rate / sum(raw)})
        first += plan.rows
    return parts


def _write(
    encoder: Encoder, store: Store, plans: list[packing.Plan], source_count: int, progress: Progress
) -> dict[str, Any]:
    """Write the columns and the table of segments, row chunk by row chunk, and count what training will see."""
    spec, tokenizer, folder = encoder.spec, encoder.tokenizer, encoder.folder
    (folder / "columns").mkdir()
    rows, width = sum(plan.rows for plan in plans), plans[0].width
    new = np.lib.format.open_memmap
    tokens = new(folder / "columns" / "tokens.npy", "w+", store.dtype, (rows, width))
    marks = None
    if store.marks is not None and encoder.layout == "next_token":
        marks = new(folder / "columns" / "loss_weights.npy", "w+", np.uint8, (rows, width))
    segments = new(folder / "segments.npy", "w+", SEGMENT, (sum(len(plan.row) for plan in plans),))
    offsets = new(folder / "row_offsets.npy", "w+", np.int64, (rows + 1,))
    tally = _Tally(spec, tokenizer, source_count)
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
                tally.blank_repetitive(chunk)
            tally.add(chunk)
            tokens[row + first : row + last] = chunk.tokens
            if marks is not None:
                marks[row + first : row + last] = chunk.marks
            progress(row + last, rows, "write")
        row, segment = row + plan.rows, segment + len(plan.row)
    for written in (tokens, marks, segments, offsets):
        if written is not None:
            written.flush()
    return tally.summary(rows * spec.sequence_length)


@dataclasses.dataclass
class _Chunk:
    """Some rows in memory, with their stretches (rows counted from the first of the chunk)."""

    tokens: np.ndarray
    marks: np.ndarray | None
    owner: np.ndarray
    row: np.ndarray
    start: np.ndarray
    length: np.ndarray


def _gather(store: Store, plan: packing.Plan, part: slice, first: int, last: int, pad_id: int) -> _Chunk:
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


class _Tally:
    """Counts over the batch arrays themselves, so the manifest says what training sees."""

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer, source_count: int):
        self.spec, self.pad_id = spec, tokenizer.pad_id
        self.histogram = np.zeros(tokenizer.vocab_size, np.int64)
        self.tokens = np.zeros(source_count, np.int64)
        self.trained = np.zeros(source_count, np.int64)
        self.blanked = 0

    def blank_repetitive(self, chunk: _Chunk) -> None:
        """Take the loss off whole windows that repeat a short unit, as OLMo 2 does while training."""
        filled = np.zeros(len(chunk.tokens), np.int64)
        np.maximum.at(filled, chunk.row, chunk.start + chunk.length)
        for index, tokens in enumerate(chunk.tokens):
            if filters.is_repetitive(tokens[: filled[index]]):
                chunk.marks[index] = 0
                self.blanked += 1

    def add(self, chunk: _Chunk) -> None:
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
