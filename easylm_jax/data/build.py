"""Builds a packed cache: encodes records in batches to a token store on disk, packs by length, writes the columns.

The build happens in a hidden folder that is renamed at the end, so that a cache is either complete or absent. Memory
holds a few numbers for each document, but not its tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from easylm_jax.config.base import Stage, Validation
from easylm_jax.config.data import ADDED_LATER, DataSpec
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import cache as cache_files
from easylm_jax.data import shards, tokenizer_template
from easylm_jax.data.cache import Cache
from easylm_jax.data.opening import open_cache
from easylm_jax.data.sources import file_fingerprint, read_records, source_files
from easylm_jax.data.tokenizer import Tokenizer, load_tokenizer
from easylm_jax.runtime import monitor
from easylm_jax.runtime.locks import Locked, locked
from easylm_jax.runtime.packages import version_of
from easylm_jax.runtime.processes import log_once
from models import reading
from models.errors import UserError

Progress = Callable[[int, int | None, str], None]


def build_cache(
    spec: DataSpec,
    folder: str | Path,
    progress: Progress | None = None,
    *,
    build: bool = True,
    timeout: float = 24 * 3600,
) -> Cache:
    """The cache of `spec` in `folder/<first digits of its key>`, built if it does not exist.

    The key is a hash of the sources' content (for `hf:`, `tfds:` and `seqio:` names: of the name), the tokenizer's
    content, every field of the spec and the cache version; an existing cache with this key is opened at once.
    `progress(done, total or None, phase)` is called with documents read ("read") and rows written ("write").

    Any number of processes may call this at once: one builds under a lock, the others wait up to `timeout` seconds
    and open the result. `build=False` only waits (for hosts that share the folder).

    Raises:
        UserError: the sources or their records are unusable, or the cache cannot be written.
    """
    root = Path(folder)
    tokenizer, files, key = inputs_of(spec, root)
    final = root / key[:16]
    if finished(final, key):
        return open_cache(final)
    if not build:
        return _wait_for(final, key, timeout)
    make_root(root)
    with contextlib.ExitStack() as held:
        try:
            has_lock = held.enter_context(locked(root / f".lock-{key[:16]}", timeout))
        except Locked as other:
            raise UserError(f"cache: {other.owner} has been building for over {timeout:.0f} s; stop it first") from None
        if finished(final, key):  # another process built it while this one waited
            return open_cache(final)
        mine = f".building-{key[:16]}-{socket.gethostname()}-"
        # Left by killed builds on this host: whoever holds the lock is the only one that builds here.
        for stale in root.glob(f"{mine}*") if has_lock else ():
            if stale.name.removeprefix(mine).isdecimal():  # not those of a host whose name begins as this one's
                shutil.rmtree(stale, ignore_errors=True)
        work = root / f"{mine}{os.getpid()}"
        try:
            _build(spec, tokenizer, files, key, work, progress or (lambda done, total, phase: None))
            publish(work, final, key)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return open_cache(final)


def inputs_of(spec: DataSpec, root: Path) -> tuple[Tokenizer, list[list[dict[str, Any]]], str]:
    """The tokenizer of a spec, the facts of the files of each of its sources, and the key of its cache."""
    tokenizer, known = load_tokenizer(spec.tokenizer), _known_files(root)
    files = [_fingerprints(spec, source, known) for source in spec.sources]
    if spec.add_bos and tokenizer.bos_id is None:
        raise UserError(f"data: add_bos is set but tokenizer {tokenizer.spec} has no start token")
    return tokenizer, files, cache_key(spec, tokenizer, files)


def cache_key(spec: DataSpec, tokenizer: Tokenizer, files: list[list[dict[str, Any]]]) -> str:
    """SHA-256 of everything that decides the bytes of the cache; paths of files and of the tokenizer are not part."""
    described = spec.to_dict()
    described["tokenizer"] = tokenizer.hash
    if spec.template == tokenizer_template.NAME:  # its text, which the tokenizer's hash does not cover
        described["template"] = tokenizer_template.tokenizer_template(tokenizer).source
    _drop_defaults(described, ADDED_LATER["spec"])
    for source, facts in zip(described["sources"], files, strict=True):
        del source["streaming"], source["base"]
        _drop_defaults(source, ADDED_LATER["source"])
        if facts:
            source["path"] = [[Path(fact["path"]).name, fact["bytes"], fact["sha256"]] for fact in facts]
    described_all: dict[str, Any] = {"version": cache_files.VERSION, "spec": described}
    if any(source.count is not None or source.fraction is not None for source in spec.sources):
        described_all["sampling"] = 2  # of records before they are encoded; caches made before sampled documents
    text = json.dumps(described_all, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _drop_defaults(described: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:  # the default of all these fields is None
        if described[name] is None:
            del described[name]


def _fingerprints(spec: DataSpec, source: Any, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    if spec.kind == "tokens":
        return shards.fingerprints(source, known)
    try:
        return [file_fingerprint(path, known.get(str(path.absolute()))) for path in source_files(source)]
    except OSError as error:
        raise UserError(f"data: cannot read {error.filename}: {error.strerror}") from None


def _known_files(root: Path) -> dict[str, dict[str, Any]]:
    """Checksums recorded by caches already below `root`, so that unchanged files are not read again."""
    known: dict[str, dict[str, Any]] = {}
    for path in root.glob("*/manifest.json"):
        with contextlib.suppress(UserError):  # of a damaged cache, which is reported where it is used
            for source in cache_files.read_manifest(path.parent)["sources"]:
                files = source["files"] if reading.fault(list[_SourceFile], source["files"]) is None else []
                known.update({facts["path"]: facts for facts in files})
    return known


class _SourceFile(TypedDict):
    path: str
    bytes: int
    mtime_ns: int
    sha256: str


def finished(final: Path, key: str) -> bool:
    """Whether the cache of a key is there, complete."""
    return (final / "manifest.json").exists() and cache_files.read_manifest(final)["fingerprint"] == key


def make_root(root: Path) -> None:
    """Makes the folder of caches."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache: cannot make the folder {root}: {error.strerror}") from None


def publish(work: Path, final: Path, key: str) -> None:
    """Renames a finished build to its place."""
    try:
        cache_files.publish(work, final)
    except OSError:
        # Where locks do not work across hosts, another host may have finished first: same key, same bytes.
        if not finished(final, key):
            raise UserError(f"cache: {final} exists but is not a cache; move it away and build again") from None


def _wait_for(final: Path, key: str, timeout: float) -> Cache:
    deadline = time.monotonic() + timeout
    while not finished(final, key):
        if time.monotonic() > deadline:
            raise UserError(f"cache: {final} did not appear within {timeout:.0f} s; is its builder running?")
        time.sleep(0.5)
    return open_cache(final)


def _build(spec: DataSpec, tokenizer: Tokenizer, files: list, key: str, work: Path, progress: Progress) -> None:
    from easylm_jax.data import assemble

    try:
        work.mkdir()
        if spec.kind == "tokens":
            facts = shards.index(spec, tokenizer, files)
        else:
            facts = assemble.assemble(spec, tokenizer, work, progress)
        for source in facts["sources"]:
            source["files"] = files[source["listed"]]
        manifest = manifest_of(spec, tokenizer, key, facts)
        if spec.kind == "tokens":
            manifest["unigram_entropy_nats"] = shards.ShardCache(work, manifest).entropy()
        cache_files.finish(work, manifest)
    except OSError as error:
        raise UserError(f"cache: cannot write below {work.parent}: {error.strerror or error}") from None


def manifest_of(spec: DataSpec, tokenizer: Tokenizer, key: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a cache with the entries `facts` of its arrays."""
    fields = dataclasses.asdict(spec)
    del fields["sources"]
    return {
        "version": cache_files.VERSION,
        "fingerprint": key,
        "sequence_length": spec.sequence_length,
        "document_mask": spec.document_mask,
        **facts,
        "tokenizer": tokenizer.describe(),
        "spec": fields,
        "versions": {name: version_of(name) for name in ("numpy", "sentencepiece", "tokenizers", "pyarrow")},
    }


def stage_cache(workspace: Workspace, spec: DataSpec, what: str = "data") -> Cache:
    """The packed cache of a stage's data; one of the processes that share the folder builds it if needed.

    Records that are left out are reported in a line, which calls the data `what`.
    """
    with shown_progress(f"{what}: cache") as progress:
        cache = build_cache(workspace.data(spec), workspace.out / "cache", progress)
    if cache.left_out:
        log_once(f"{what}: {describe_left_out(cache)}")
    return cache


def held_out_cache(workspace: Workspace, stage: Stage, validation: Validation | None) -> Cache | None:
    """The packed cache of a stage's held-out data; None for a stage without validation."""
    return None if validation is None else stage_cache(workspace, validation.data, f"{stage.name}: held-out data")


def describe_left_out(cache: Cache) -> str:
    """How many records of a cache were left out and why, as text."""
    reasons = [
        f"{count:,} {reason}" + (f" (above {cache.sequence_length:,} tokens)" if reason == "too long" else "")
        for reason, count in cache.left_out.items()
    ]
    noun = "prompts" if cache.manifest["layout"] == "prompts" else "records"
    return f"{sum(cache.left_out.values()):,} of {cache.records_read:,} {noun} are left out: {', '.join(reasons)}"


def first_records(spec: DataSpec, limit: int) -> DataSpec:
    """The spec with its sources cut to their first `limit` records together, in reading order.

    Records that the spec leaves out, such as prompts that are too long, are among the `limit`.
    """
    sources = []
    for index, source in enumerate(spec.sources):
        if limit <= 0:
            break
        cut = dataclasses.replace(source, limit=min(limit, source.limit or limit))
        sources.append(cut)
        if index < len(spec.sources) - 1:  # how many the next may still give
            limit -= sum(1 for _ in read_records(cut))
    return dataclasses.replace(spec, sources=tuple(sources))


_PHASES = {"read": ("records", "reading"), "pack": (None, "packing"), "write": ("rows", "writing")}


@contextlib.contextmanager
def shown_progress(what: str, enabled: bool | None = None) -> Iterator[Progress]:
    """A progress callback of `build_cache` that shows each phase with its counts (see `monitor.counting`)."""
    with contextlib.ExitStack() as current:
        shown: list[tuple[str, monitor.Progress]] = []

        def progress(done: int, total: int | None, phase: str) -> None:
            if not shown or shown[-1][0] != phase:
                current.close()
                unit, word = _PHASES[phase]
                shown.append((phase, current.enter_context(monitor.counting(what, total, unit, enabled=enabled))))
                current.enter_context(shown[-1][1].phase(word))
            shown[-1][1].update(done, {})

        yield progress
