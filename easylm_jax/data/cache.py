"""The packed cache on disk: a folder of memory-mapped columns and a manifest in JSON.

    <root>/<key>/manifest.json        its spec, sources, counts and checksums
    <root>/<key>/columns/NAME.npy     one array [rows, ...] for each field of a row
    <root>/<key>/segments.npy         spans of documents: start, length, source, document; ordered by row
    <root>/<key>/row_offsets.npy      index of the first segment of each row, int64 [rows + 1]
    <root>/<key>/records.jsonl        prompts only: columns of their records, with record_offsets.npy (see `prompts`)
    <root>/<key>/extra/               columns computed later from the finished cache (see `columns`)

A column is an array whose first axis is the row; kinds of data with more than tokens (preference pairs, images) add
columns. With the layout "next_token" in the manifest, the columns `tokens` and `loss_weights` are converted to the five
arrays of next-token training. All other columns, and all columns of the layout "prompts", are in the batch unchanged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict

import numpy as np

from easylm_jax.data import packing
from easylm_jax.runtime.files import write_sealed_json
from models import reading
from models.durable import sync, sync_tree
from models.errors import UserError

VERSION = 1  # part of every key; raise it when the same inputs would give other bytes
MEND = "delete the folder and build the cache again"
DIGITS = 4300  # of a whole number in a record, which is kept whatever its size: as many as Python reads
_PADDING_VALUES = {
    "pair_index": -1,
    "prompt_index": -1,
    "pictures": -1,
    "pooling": -1,
    "places": -1,
}  # in padding rows; 0 in all other columns
# Why a record is left out: the manifest's count, and how a person calls it.
_LEFT_OUT = {
    "overlong_dropped": "too long", "empty": "empty", "repetitive_dropped": "repetitive",
    "untrained_dropped": "without a trained token", "identical_dropped": "identical responses", "bad": "bad",
}  # fmt: skip
SEGMENT = np.dtype([("start", "<u4"), ("length", "<u4"), ("source", "<u4"), ("document", "<u8")])


def left_out(counts: Mapping[str, Any]) -> dict[str, int]:
    """The number of records that a source's counts (`examples.Counts`) leave out, by reason as text."""
    return {reason: counts[name] for name, reason in _LEFT_OUT.items() if counts.get(name)}


class _Counted(TypedDict):
    kept: int
    read: int


class _Source(TypedDict):
    path: str
    tokens: int
    records: _Counted
    files: list[Any]


class Shards(TypedDict):
    dtype: str
    spec: dict[str, Any]


class _Part(TypedDict):
    first_row: int
    rows: int
    rate: float


class _TokenizerFacts(TypedDict):
    spec: str
    hash: str
    vocab_size: int
    pad_id: int


class _Kind(TypedDict):
    kind: str


class _FileFacts(TypedDict):
    bytes: int
    sha256: str


class ManifestFile(TypedDict):
    """What is read of the manifest of a cache."""

    version: int
    fingerprint: str
    sequence_length: int
    document_mask: bool
    layout: Literal["next_token", "prompts"]
    rows: int
    tokens: int
    trained_tokens: int
    fill_rate: float
    unigram_entropy_nats: float
    blanked_windows: int
    columns: dict[str, str]
    parts: list[_Part]
    sources: list[_Source]
    tokenizer: _TokenizerFacts
    spec: _Kind
    files: dict[str, _FileFacts]
    pairs: NotRequired[int]
    pairs_per_row: NotRequired[int]
    prompts: NotRequired[int]
    shards: NotRequired[Shards]


class _PromptLine(TypedDict):
    source: int
    record: int
    messages: list[dict[str, str]]
    columns: dict[str, Any]
    images: NotRequired[list[dict[str, Any]]]


class BatchColumns(Protocol):
    """Arrays computed from a cache that are added to its batches (`columns.ColumnStore`)."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray]: ...

    def check(self, cache: Cache) -> None: ...

    def gather(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


class Segment(NamedTuple):
    """A span of one document in a row: first position, length, index of the source, index of the record in it."""

    start: int
    length: int
    source: int
    document: int


class Cache:
    """A complete cache, read through memory maps. `rows` is its size, `fingerprint` its key."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.rows: int = manifest["rows"]
        self.fingerprint: str = manifest["fingerprint"]
        self.sequence_length: int = manifest["sequence_length"]
        self.columns = {name: self._map(f"columns/{name}.npy") for name in manifest["columns"]}
        self.segments = self._map("segments.npy")
        self.row_offsets = self._map("row_offsets.npy")
        self._extra: tuple[BatchColumns, ...] = ()
        self._records: tuple[np.ndarray, np.ndarray] | None = None
        for name, column in self.columns.items():
            if column.shape[:1] != (self.rows,) or column.dtype.kind not in "iuf":
                shape = f"{column.dtype} of shape {column.shape}"
                raise UserError(f"cache {folder}: column {name} is {shape}, the manifest says {self.rows} rows; {MEND}")
        if self.segments.dtype != SEGMENT or self.segments.ndim != 1 or self.row_offsets.shape != (self.rows + 1,):
            raise UserError(f"cache {folder}: segments.npy and row_offsets.npy are not of {self.rows} rows; {MEND}")

    def _map(self, name: str) -> np.ndarray:
        return reading.read_array(self.folder / name, mend=MEND)

    def _damaged(self, why: str) -> UserError:
        return UserError(f"cache {self.folder} is damaged ({why}); `easylm data stats --verify` names the file; {MEND}")

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The batch arrays of the given rows (int [n]), each [n, ...]."""
        rows = np.asarray(rows, np.int64)
        batch = self._read(rows)
        for store in self._extra:
            batch.update(store.gather(batch))
        return batch

    def with_columns(self, store: BatchColumns) -> Cache:
        """The same cache, in the same order, with the columns of `store` in every batch.

        Raises:
            UserError: the store belongs to another cache, or the cache already has a column of one of its names.
        """
        store.check(self)
        taken = {*self.columns, *(name for other in self._extra for name in other.arrays)} & set(store.arrays)
        if taken:
            raise UserError(f"cache {self.folder}: there is already a column {min(taken)}")
        wider = type(self)(self.folder, self.manifest)
        wider._extra = (*self._extra, store)
        return wider

    @property
    def records_read(self) -> int:
        """The number of records that were read from all sources, with those that were left out."""
        return sum(source["records"]["read"] for source in self.manifest["sources"])

    @property
    def left_out(self) -> dict[str, int]:
        """The number of records that were read but are in no row, by reason ("too long", "empty", …)."""
        sums: dict[str, int] = {}
        for source in self.manifest["sources"]:
            for reason, count in left_out(source["records"]).items():
                sums[reason] = sums.get(reason, 0) + count
        return sums

    def record(self, number: int) -> dict[str, Any]:
        """The record of prompt `number` (as in `prompt_index`): the kept columns, and `_messages` (the conversation
        without a response), `_source` (path), `_record` (index in the source) and, where prompts may have pictures,
        `_images` (their files and sizes).

        Raises:
            IndexError: there is no such prompt.
            UserError: the cache holds no prompts.
        """
        if self.manifest["layout"] != "prompts":
            raise UserError(f"cache {self.folder} holds no prompts (kind {self.manifest['spec']['kind']!r})")
        if self._records is None:
            offsets = self._map("record_offsets.npy")
            if offsets.ndim != 1 or not len(offsets) or offsets.dtype != np.int64:
                raise self._damaged("record_offsets.npy")
            try:
                self._records = np.memmap(self.folder / "records.jsonl", np.uint8, "r"), offsets
            except (OSError, ValueError) as error:
                raise self._damaged(f"records.jsonl: {error}") from None
        text, offsets = self._records
        if not 0 <= number < len(offsets) - 1:
            raise IndexError(f"prompt {number} is outside the {len(offsets) - 1} prompts of cache {self.folder}")
        begin, end = int(offsets[number]), int(offsets[number + 1])
        if not 0 <= begin <= end <= len(text):
            raise self._damaged("record_offsets.npy")
        line = reading.parse_json(
            text[begin:end].tobytes(), _PromptLine, self.folder / "records.jsonl", mend=MEND, digits=DIGITS
        )
        if not 0 <= line["source"] < len(self.manifest["sources"]):
            raise self._damaged(f"records.jsonl: there is no source {line['source']}")
        path = self.manifest["sources"][line["source"]]["path"]
        seen = {"_images": line["images"]} if "images" in line else {}
        return {**line["columns"], "_messages": line["messages"], "_source": path, "_record": line["record"], **seen}

    def _read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        batch = {name: np.array(column[rows]) for name, column in self.columns.items()}
        limit = self.manifest.get("id_limit", self.manifest["tokenizer"]["vocab_size"])
        if batch["tokens"].size and not 0 <= batch["tokens"].max() < limit:
            raise self._damaged(f"there is no token {batch['tokens'].max()}")
        if self.manifest["layout"] != "next_token":
            self._check_prompts(batch)
            return {**batch, "tokens": batch["tokens"].astype(np.int32)}
        begin = self.row_offsets[rows]
        counts = self.row_offsets[rows + 1] - begin
        if (begin < 0).any() or (counts < 0).any() or (begin + counts > len(self.segments)).any():
            raise self._damaged("row_offsets.npy")
        chosen = self.segments[np.repeat(begin, counts) + packing.within(counts)]
        ends = chosen["start"].astype(np.int64) + chosen["length"]
        if (ends > batch["tokens"].shape[1]).any() or (chosen["source"] >= len(self.manifest["sources"])).any():
            raise self._damaged("segments.npy")
        arrays = packing.next_token_arrays(
            batch.pop("tokens"),
            batch.pop("loss_weights", None),
            np.repeat(np.arange(len(rows), dtype=np.int64), counts),
            chosen["start"].astype(np.int64),
            chosen["length"].astype(np.int64),
            sequence_length=self.sequence_length,
            document_mask=self.manifest["document_mask"],
            pad_id=self.manifest["tokenizer"]["pad_id"],
        )
        return {**arrays, **batch}

    def _check_prompts(self, batch: Mapping[str, np.ndarray]) -> None:
        lengths, numbers = batch.get("lengths"), batch.get("prompt_index")
        if lengths is None or numbers is None:
            raise self._damaged("it has no lengths and prompt_index")
        if (lengths < 0).any() or (lengths > batch["tokens"].shape[1]).any():
            raise self._damaged("lengths.npy")
        if (numbers < 0).any() or (numbers >= self.manifest.get("prompts", 0)).any():
            raise self._damaged("prompt_index.npy")

    def documents(self, row: int) -> list[Segment]:
        """The segments of one row, in order."""
        begin, end = self.row_offsets[row], self.row_offsets[row + 1]
        return [Segment(*map(int, segment)) for segment in self.segments[begin:end]]

    def in_order(self, batch_rows: int, rows: slice | np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Batches of all rows once, in order, for evaluation.

        The last batch is padded with rows of zeros, which have no segment and no loss weight (indices of pairs and
        prompts are -1). `rows` selects a host's part of each batch, as in `Loader.batch_at`.
        """
        for first in range(0, self.rows, batch_rows):
            present = np.arange(first, min(first + batch_rows, self.rows))
            batch = self.read(present)
            missing = batch_rows - len(present)
            if missing:
                empty = {
                    name: np.full((missing, *a.shape[1:]), _PADDING_VALUES.get(name, 0), a.dtype)
                    for name, a in batch.items()
                }
                batch = {name: np.concatenate([a, empty[name]]) for name, a in batch.items()}
            yield batch if rows is None else {name: array[rows] for name, array in batch.items()}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises `UserError` unless the cache was made with `tokenizer` (compared by content, not by path)."""
        made_with = self.manifest["tokenizer"]
        if tokenizer.hash != made_with["hash"]:
            raise UserError(
                f"cache {self.folder} was made with tokenizer {made_with['spec']} ({made_with['vocab_size']} tokens, "
                f"{made_with['hash'][:12]}), not with {tokenizer.spec} ({tokenizer.vocab_size} tokens, "
                f"{tokenizer.hash[:12]}); build it again with the tokenizer you train with"
            )

    def verify(self) -> None:
        """Compares every file with its checksum in the manifest; `UserError` names the first that differs."""
        for name, facts in self.manifest["files"].items():
            if digest_of(self.folder / name) != facts["sha256"]:
                raise UserError(f"cache {self.folder}: {name} fails its checksum; delete the folder and rebuild")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache; `UserError` when it is damaged or of another format."""
    path = folder / "manifest.json"
    manifest, is_sealed = reading.read_sealed(path, _Version, mend=MEND)
    if manifest["version"] != VERSION:
        raise UserError(
            f"cache {folder} has format {manifest['version']}, this code reads format {VERSION}; build it again"
        )
    found = reading.fault(ManifestFile, manifest)
    odd = next((name for name in manifest["columns"] if not re.fullmatch(r"\w+", name)), None) if not found else None
    if found or odd is not None or manifest["rows"] < 0:
        raise reading.Damaged(path, found or (f"column {odd!r}" if odd is not None else "rows below 0"), MEND)
    unlisted = [f"columns/{name}.npy" for name in manifest["columns"] if f"columns/{name}.npy" not in manifest["files"]]
    if unlisted:
        raise reading.Damaged(path, f"{unlisted[0]} has no checksum", MEND)
    return manifest


class _Version(TypedDict):
    version: int


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Adds the checksums of all files to `manifest` and writes it. This is the last step of a build."""
    paths = (path for path in folder.rglob("*") if path.suffix in (".npy", ".jsonl"))
    names = sorted(str(path.relative_to(folder)) for path in paths)
    manifest["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest_of(folder / name)} for name in names
    }
    write_sealed_json(folder / "manifest.json", manifest)
    sync_tree(folder)  # the rename that follows must not reach the disk before the data


def publish(work: Path, final: Path) -> None:
    """Renames the folder of a finished build; `OSError` when there is one already."""
    work.rename(final)
    sync(final.parent)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
