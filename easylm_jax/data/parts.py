"""A cache built by many: each builder encodes its share into a part, and a merge packs all parts.

    <root>/.parts-<key>/2-of-8/    store.*, notes.jsonl, blocks.npy, part.json

The merged cache has the bytes that one builder would have written. Builders need not know each other and may run
anywhere, as long as their parts end in one folder; a builder that is run again returns at once if its part is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data import build
from easylm_jax.data import cache as cache_files
from easylm_jax.data.assemble import expand_sources, make_encoder, make_store, pack
from easylm_jax.data.cache import Cache
from easylm_jax.data.examples import Counts, Encoder, Example
from easylm_jax.data.fill import BLOCK, NothingKept, Progress, Share, Times, fill
from easylm_jax.data.opening import open_cache
from easylm_jax.data.store import GrowingArray, TokenStore
from easylm_jax.data.tokenizer import Tokenizer, load_tokenizer
from easylm_jax.runtime.files import write_sealed_json
from easylm_jax.runtime.locks import Locked, locked
from models import reading
from models.durable import sync_tree
from models.errors import UserError

_MEND = "delete the folder and build the part again"
_BLOCK = np.dtype([("source", "<u4"), ("stream", "<u4"), ("documents", "<u4")])
_NO_TOKENS = np.zeros(0, np.int32)


class _SourceFacts(TypedDict):
    counts: dict[str, Any]
    first_bad: list[int] | None
    times: list[Any]
    streams: int
    records: list[list[int]]


class _Part(TypedDict):
    """`part.json`. `listed`: (index, fields) of each source, with the tasks of mixtures; `files`: of the sources."""

    version: int
    fingerprint: str
    builder: int
    builders: int
    spec: dict[str, Any]
    tokenizer: str
    listed: list[list[Any]]
    files: list[list[dict[str, Any]]]
    sources: list[_SourceFacts]
    checksums: dict[str, str]


def build_part(spec: DataSpec, folder: str | Path, share: Share, progress: Progress | None = None) -> Path | Cache:
    """Encodes one builder's share of the sources; returns the folder of the part, or the cache if it exists already.

    Raises:
        UserError: the sources or their records are unusable, the part cannot be written, or another process builds it.
    """
    if spec.kind == "tokens":
        raise UserError("data: shards are read in place; their index is built by one process in seconds")
    root = Path(folder)
    tokenizer, files, key = build.inputs_of(spec, root)
    final = root / key[:16]
    if build.finished(final, key):
        return open_cache(final)
    parts, name = _folder_of(root, key), f"{share.number}-of-{share.builders}"
    build.make_root(parts)
    if (parts / name / "part.json").exists():
        return parts / name
    with contextlib.ExitStack() as held:
        try:
            has_lock = held.enter_context(locked(parts / f".lock-{name}"))
        except Locked as other:
            raise UserError(f"cache: shard {name} is being built by {other.owner}") from None
        mine = f".building-{name}-{socket.gethostname()}-"
        for stale in parts.glob(f"{mine}*") if has_lock else ():  # of a builder that was killed on this host
            shutil.rmtree(stale, ignore_errors=True)
        work = parts / f"{mine}{os.getpid()}"
        try:
            work.mkdir()
            _encode_part(spec, tokenizer, files, key, share, work, progress or (lambda done, total, phase: None))
            sync_tree(work)
            work.rename(parts / name)
        except OSError as error:
            raise UserError(f"cache: cannot write below {parts}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return parts / name


def _folder_of(root: Path, key: str) -> Path:
    return root / f".parts-{key[:16]}"


class _PartSink:
    """Takes the encoded records of one builder."""

    def __init__(self, store: TokenStore, folder: Path):
        self.sources: list[dict[str, Any]] = []
        self._store, self._blocks = store, GrowingArray(folder / "blocks.npy", _BLOCK)
        self._notes = open(folder / "notes.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - closed in `close`
        self._documents = 0
        self._first_bad: list[int] | None = None
        self._records: list[list[int]] = []

    def example(self, example: Example, source: int, sampled: bool) -> None:
        self._store.add(example.ids, example.trained, example.document, sampled)
        self._documents += 1
        if example.note is not None:
            self._notes.write(json.dumps(example.note, default=str) + "\n")

    def block(self, source: int, stream: int, counts: Counts) -> None:
        self._blocks.append(np.array([(source, stream, self._documents)], _BLOCK))
        self._documents = 0
        if counts.first_bad is not None and self._first_bad is None:
            self._first_bad = [stream, counts.read]

    def stream(self, source: int, stream: int, records: int) -> None:
        self._records.append([stream, records])

    def source(self, source: int, counts: Counts, times: Times, streams: int) -> None:
        self._store.end_source()
        facts = {"counts": dataclasses.asdict(counts), "first_bad": self._first_bad, "times": list(times)}
        self.sources.append({**facts, "streams": streams, "records": self._records})
        self._first_bad, self._records = None, []

    def close(self) -> None:
        self._blocks.close()
        self._notes.close()


def _encode_part(spec, tokenizer: Tokenizer, files, key: str, share: Share, work: Path, progress: Progress) -> None:
    listed = expand_sources(spec.sources)
    scratch = work / "scratch"  # where encoders open files of their own, which a part has no use for
    scratch.mkdir()
    encoder, store = make_encoder(spec, tokenizer, scratch), make_store(spec, tokenizer, work).create()
    sink = _PartSink(store, work)
    try:
        fill(spec, [source for _, source in listed], encoder, sink, progress, share)
    finally:
        encoder.close()
        sink.close()
    store.close()
    shutil.rmtree(scratch)
    facts = {
        "version": cache_files.VERSION, "fingerprint": key, "builder": share.number, "builders": share.builders,
        "spec": spec.to_dict(), "tokenizer": tokenizer.hash, "files": files, "sources": sink.sources,
        "listed": [[index, dataclasses.asdict(source)] for index, source in listed],
    }  # fmt: skip
    facts["checksums"] = {path.name: cache_files.digest_of(path) for path in sorted(work.iterdir())}
    write_sealed_json(work / "part.json", facts)


def merge(folder: str | Path, spec: DataSpec | None = None, progress: Progress | None = None) -> list[Cache]:
    """Merges the parts below a folder of caches: those of `spec`, or of every cache that has parts there.

    Raises:
        UserError: there are no parts, some are missing, or they do not fit each other.
    """
    root = Path(folder)
    if spec is not None:
        key = build.inputs_of(spec, root)[2]
        if build.finished(root / key[:16], key):
            return [open_cache(root / key[:16])]
        found = [_folder_of(root, key)]
    else:
        found = sorted(root.glob(".parts-*"))
    if not found or not any(path.is_dir() for path in found):
        raise UserError(f"cache: {root} holds no parts; build them with `easylm data build … --shard I/N`")
    return [_merge(root, parts, progress or (lambda done, total, phase: None)) for parts in found]


def _merge(root: Path, folder: Path, progress: Progress) -> Cache:
    parts = _complete(folder)
    facts = parts[0].facts
    key = facts["fingerprint"]
    final, spec = root / key[:16], DataSpec.from_dict(facts["spec"])
    tokenizer = load_tokenizer(spec.tokenizer)
    if tokenizer.hash != facts["tokenizer"]:
        raise UserError(f"cache: tokenizer {tokenizer.spec} has changed since the parts of {folder} were built")
    work = root / f".building-{key[:16]}-{socket.gethostname()}-{os.getpid()}"
    try:
        if not build.finished(final, key):
            work.mkdir()
            entries = _assemble(spec, tokenizer, parts, work, progress)
            for source in entries["sources"]:
                source["files"] = facts["files"][source["listed"]]
            cache_files.finish(work, build.manifest_of(spec, tokenizer, key, entries))
            build.publish(work, final, key)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cache: cannot write below {root}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return open_cache(final)


class _Opened:
    """A part that is read while it is merged."""

    def __init__(self, folder: Path):
        facts, _ = reading.read_sealed(folder / "part.json", _Part, mend=_MEND)
        self.folder, self.facts = folder, facts
        for name, digest in facts["checksums"].items():
            path = reading.inside(folder, name, folder / "part.json", mend=_MEND)
            if not path.is_file() or cache_files.digest_of(path) != digest:
                raise reading.Damaged(path, "it is missing or fails its checksum", _MEND)
        self._blocks = iter(reading.read_array(folder / "blocks.npy", mend=_MEND))
        self._done = 0

    def start(self, store: TokenStore) -> None:
        """`store` is one on the part's folder."""
        self.store = store.open()
        self.notes = self._read_notes()

    def next_block(self, source: int, stream: int) -> tuple[int, int]:
        """The range of documents of the part's next block, which must be of this stream."""
        block = next(self._blocks, None)
        if block is None or (block["source"], block["stream"]) != (source, stream):
            raise reading.Damaged(self.folder / "blocks.npy", "its blocks are not those of the sources", _MEND)
        first, self._done = self._done, self._done + int(block["documents"])
        return first, self._done

    def _read_notes(self) -> Iterator[Any]:
        with open(self.folder / "notes.jsonl", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)  # deeper than a record may be


def _complete(folder: Path) -> list[_Opened]:
    """The parts of a folder in order; `UserError` where one is missing."""
    parts = [_Opened(path.parent) for path in sorted(folder.glob("*-of-*/part.json"))]
    if not parts:
        raise UserError(f"cache: {folder} holds no finished part; build them with `easylm data build … --shard I/N`")
    builders = {part.facts["builders"] for part in parts}
    if len(builders) > 1:
        several = " and ".join(str(count) for count in sorted(builders))
        raise UserError(f"cache: {folder} has parts of {several} builders; delete those of one number")
    count = builders.pop()
    missing = sorted(set(range(count)) - {part.facts["builder"] for part in parts})
    if missing:
        names = ", ".join(f"--shard {number}/{count}" for number in missing)
        raise UserError(f"cache: {folder} lacks {len(missing)} of {count} parts; build {names}")
    return sorted(parts, key=lambda part: part.facts["builder"])


def _assemble(spec, tokenizer: Tokenizer, parts: list[_Opened], work: Path, progress: Progress) -> dict[str, Any]:
    """Joins the parts in the order of one builder, and packs them."""
    listed = [(index, Source(**fields)) for index, fields in parts[0].facts["listed"]]
    encoder, store = make_encoder(spec, tokenizer, work), make_store(spec, tokenizer, work).create()
    for part in parts:
        part.start(make_store(spec, tokenizer, part.folder))
    counts, share = [], Share(0, len(parts))
    try:
        for number, (_, source) in enumerate(listed):
            of_source = [part.facts["sources"][number] for part in parts]
            counts.append(_summed(of_source))
            if not counts[-1].kept:
                raise NothingKept(spec, source, counts[-1])
            streams, before = of_source[0]["streams"], 0
            records = {stream: count for facts in of_source for stream, count in facts["records"]}
            for stream in range(streams):
                for block in range(-(-records[stream] // BLOCK)):
                    _copy(parts[share.builder_of(stream, block, streams)], number, stream, before, store, encoder)
                before += records[stream]
                progress(before, None, "read")
            store.end_source()
        store.close()
        times = [Times(*facts["times"]) for facts in parts[0].facts["sources"]]
        return pack(listed, times, encoder, store, counts, work, progress)
    finally:
        store.remove()
        encoder.close()


def _copy(part: _Opened, source: int, stream: int, before: int, store: TokenStore, encoder: Encoder) -> None:
    """Appends the part's next block; `before` is the number of records of the source before this stream."""
    first, last = part.next_block(source, stream)
    store.append(part.store, first, last, before)
    if encoder.has_notes:
        for number in part.store.documents["number"][first : last : encoder.unit]:
            encoder.stored(Example(_NO_TOKENS, None, before + int(number), next(part.notes)), source)


def _summed(of_source: list[_SourceFacts]) -> Counts:
    """The counts of a source over all builders; the first bad record is that of the first stream that has one."""
    summed = Counts()
    for name, value in dataclasses.asdict(summed).items():
        if isinstance(value, int):
            setattr(summed, name, sum(facts["counts"][name] for facts in of_source))
    bad = [facts for facts in of_source if facts["first_bad"] is not None]
    if bad:
        summed.first_bad = min(bad, key=lambda facts: facts["first_bad"] or [])["counts"]["first_bad"]
    return summed
