"""The packed cache: built once, keyed by all its inputs, whole or absent, and honest in its manifest."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from data_kit import chat_spec, conversations, corpus, hf_tokenizer, sentencepiece, text_spec, write_jsonl

from easylm_jax.data import DataSpec, Source, build_cache, load_tokenizer, open_cache
from easylm_jax.data.templates import render, tokenize
from models.errors import UserError
from models.reading import sealed

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece(tmp_path_factory.mktemp("tokenizer"))


def everything(cache):
    return cache.read(np.arange(cache.rows))


def by_document(cache):
    """{(source, record): ids} joined from all rows (concat: inputs only)."""
    found: dict = {}
    for row in range(cache.rows):
        tokens = cache.read(np.array([row]))["tokens"][0]
        for segment in cache.documents(row):
            ids = tokens[segment.start : min(segment.start + segment.length, len(tokens))]
            found.setdefault((segment.source, segment.document), []).extend(ids.tolist())
    return found


@pytest.mark.parametrize("packing", ["concat", "best_fit", "none"])
def test_rows_hold_every_document_and_its_end_token(packing, tmp_path, tokenizer):
    spec = text_spec(tmp_path, tokenizer, packing=packing, sequence_length=32 if packing == "concat" else 512)
    cache = build_cache(spec, tmp_path / "cache")
    vocabulary = load_tokenizer(tokenizer)
    expected = {(0, i): [*vocabulary.encode(text), vocabulary.eos_id] for i, text in enumerate(corpus())}
    assert by_document(cache) == expected
    assert cache.manifest["tokens"] == sum(map(len, expected.values()))


def test_conversations_carry_the_marks_of_their_template(tmp_path, tokenizer):
    cache = build_cache(chat_spec(tmp_path, tokenizer), tmp_path / "cache")
    encoded = tokenize([render("tulu", turns) for turns in conversations()], load_tokenizer(tokenizer))
    seen = set()
    for row in range(cache.rows):
        batch = {name: array[0] for name, array in cache.read(np.array([row])).items()}
        for s in cache.documents(row):
            ids, trained = encoded[s.document]
            part = slice(s.start, s.start + s.length)
            assert batch["tokens"][part].tolist() == ids.tolist()
            assert batch["loss_weights"][part].tolist() == [*trained[1:].tolist(), 0]
            seen.add(s.document)
    assert seen == set(range(len(encoded)))


def test_the_manifest_counts_what_training_sees(tmp_path, tokenizer):
    spec = chat_spec(tmp_path, tokenizer)
    cache = build_cache(spec, tmp_path / "cache")
    batch, facts = everything(cache), cache.manifest
    trained = batch["targets"][batch["loss_weights"] > 0]
    share = np.bincount(trained) / len(trained)
    share = share[share > 0]
    assert facts["trained_tokens"] == len(trained) > 0
    assert facts["tokens"] == (batch["segment_ids"] > 0).sum()
    assert facts["fill_rate"] == pytest.approx(facts["tokens"] / batch["tokens"].size, abs=1e-6)
    assert facts["unigram_entropy_nats"] == pytest.approx(-(share * np.log(share)).sum(), abs=1e-6)
    (source,) = facts["sources"]
    assert source["records"]["read"] == source["records"]["kept"] == len(conversations())
    assert source["tokens"] == facts["tokens"] and source["trained_tokens"] == facts["trained_tokens"]
    assert facts["tokenizer"]["hash"] == load_tokenizer(tokenizer).hash
    assert facts["spec"]["template"] == "tulu"


def test_a_second_build_reads_nothing_and_returns_the_same_cache(tmp_path, tokenizer, monkeypatch):
    spec = text_spec(tmp_path, tokenizer)
    first = build_cache(spec, tmp_path / "cache")
    monkeypatch.setattr("easylm_jax.data.assemble.assemble", None)  # calling it would fail
    hashed = []
    monkeypatch.setattr("hashlib.file_digest", lambda *_: hashed.append(1))
    again = build_cache(spec, tmp_path / "cache")
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)
    assert hashed == []  # sizes and times agree with the manifest, so no file is read again


def test_two_builds_in_two_places_give_the_same_bytes(tmp_path, tokenizer):
    spec = chat_spec(tmp_path, tokenizer)
    a, b = (build_cache(spec, tmp_path / name) for name in ("a", "b"))
    assert a.fingerprint == b.fingerprint
    files = sorted(path.relative_to(a.folder) for path in a.folder.rglob("*") if path.is_file())
    assert {"manifest.json", "segments.npy", "row_offsets.npy"} <= {str(path) for path in files}
    for path in files:
        assert (a.folder / path).read_bytes() == (b.folder / path).read_bytes(), path


def test_moving_the_sources_and_the_tokenizer_keeps_the_key(tmp_path, tokenizer):
    (tmp_path / "other").mkdir()
    one = build_cache(text_spec(tmp_path, tokenizer), tmp_path / "cache")
    moved = sentencepiece(tmp_path / "other")
    assert build_cache(text_spec(tmp_path / "other", moved), tmp_path / "cache").folder == one.folder


CHANGES = {
    "sequence_length": {"sequence_length": 64},
    "packing": {"packing": "none"},
    "template": {"template": "olmo"},
    "train_on": {"train_on": "all"},
    "document_mask": {"document_mask": False},
    "overlong": {"overlong": "drop"},
    "seed": {"seed": 1},
    "compat": {"compat": "tulu25"},
    "repetition_filter": {"repetition_filter": True},
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_changed_field_changes_the_key(name, tmp_path, tokenizer):
    spec = chat_spec(tmp_path, tokenizer)
    before = build_cache(spec, tmp_path / "cache")
    after = build_cache(dataclasses.replace(spec, **CHANGES[name]), tmp_path / "cache")
    assert before.fingerprint != after.fingerprint


def test_changed_content_tokenizer_or_code_version_changes_the_key(tmp_path, tokenizer, monkeypatch):
    spec = text_spec(tmp_path, tokenizer)
    keys = [build_cache(spec, tmp_path / "cache").fingerprint]
    other = sentencepiece(tmp_path / "other", vocab=430)
    keys.append(build_cache(dataclasses.replace(spec, tokenizer=other), tmp_path / "cache").fingerprint)
    path = Path(spec.sources[0].path)
    path.write_text(path.read_text().replace("fox", "cow", 1))  # the same size: only the content tells
    keys.append(build_cache(spec, tmp_path / "cache").fingerprint)
    monkeypatch.setattr("easylm_jax.data.cache.VERSION", 99)
    keys.append(build_cache(spec, tmp_path / "cache").fingerprint)
    assert len(set(keys)) == 4


def test_wrong_tokenizer_for_a_cache_is_one_line(tmp_path, tokenizer):
    cache = build_cache(text_spec(tmp_path, tokenizer), tmp_path / "cache")
    cache.check_tokenizer(load_tokenizer(tokenizer))
    with pytest.raises(UserError, match="was made with tokenizer sp:.*not with hf:") as caught:
        cache.check_tokenizer(load_tokenizer(hf_tokenizer(tmp_path / "hf")))
    assert "\n" not in str(caught.value)


def damage_missing(folder):
    (folder / "manifest.json").unlink()


def damage_cut(folder):
    path = folder / "columns" / "tokens.npy"
    path.write_bytes(path.read_bytes()[:-8])


def damage_manifest(folder):
    (folder / "manifest.json").write_text('{"version": 1, "fil')


def damage_version(folder):
    path = folder / "manifest.json"
    facts = json.loads(path.read_text())
    del facts["crc32"]
    path.write_text(sealed({**facts, "version": 0}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_missing, "holds no manifest.json; build it with"),
        (damage_cut, "columns/tokens.npy is missing or truncated"),
        (damage_manifest, "manifest.json is damaged"),
        (damage_version, "has format 0, this code reads format 1"),
    ],
)
def test_a_damaged_cache_is_one_line(damage, message, tmp_path, tokenizer):
    folder = build_cache(text_spec(tmp_path, tokenizer), tmp_path / "cache").folder
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_cache(folder)
    assert "\n" not in str(caught.value)


def test_verify_finds_a_flipped_byte(tmp_path, tokenizer):
    cache = build_cache(text_spec(tmp_path, tokenizer), tmp_path / "cache")
    cache.verify()
    path = cache.folder / "columns" / "tokens.npy"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="columns/tokens.npy fails its checksum"):
        cache.verify()


def test_a_folder_of_one_cache_opens_and_of_two_asks_which(tmp_path, tokenizer):
    spec = text_spec(tmp_path, tokenizer)
    cache = build_cache(spec, tmp_path / "cache")
    assert open_cache(tmp_path / "cache").folder == cache.folder
    build_cache(dataclasses.replace(spec, packing="none"), tmp_path / "cache")
    with pytest.raises(UserError, match=f"holds several caches .*{cache.folder.name}"):
        open_cache(tmp_path / "cache")


BUILD = """
    import sys, time
    from easylm_jax.data import DataSpec, Source, build_cache
    spec = DataSpec((Source(sys.argv[1]),), sys.argv[2], 32)
    def progress(done, total, phase):
        print(phase, done, flush=True)
        if phase == sys.argv[4]:
            time.sleep(60)
    cache = build_cache(spec, sys.argv[3], progress)
    print("folder", cache.folder, flush=True)
"""


def start_build(source, tokenizer, folder, stop_in="never"):
    arguments = [sys.executable, "-c", textwrap.dedent(BUILD), str(source), tokenizer, str(folder), stop_in]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


@pytest.mark.parametrize("phase", ["read", "pack", "write"])
def test_a_killed_build_leaves_no_half_cache_and_the_next_one_finishes(phase, tmp_path, tokenizer):
    spec = text_spec(tmp_path, tokenizer)
    with start_build(spec.sources[0].path, tokenizer, tmp_path / "cache", phase) as process:
        for line in process.stdout:
            if line.startswith(phase):
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    left = list((tmp_path / "cache").iterdir())
    assert any(path.name.startswith(".building") for path in left)
    assert all(path.name.startswith(".") for path in left)  # nothing that looks like a cache
    with pytest.raises(UserError, match="holds no manifest.json"):
        open_cache(tmp_path / "cache")
    cache = build_cache(spec, tmp_path / "cache")
    cache.verify()
    assert not list((tmp_path / "cache").glob(".building*"))


def test_builders_at_the_same_time_make_one_cache(tmp_path, tokenizer):
    spec = text_spec(tmp_path, tokenizer)
    builders = [start_build(spec.sources[0].path, tokenizer, tmp_path / "cache") for _ in range(3)]
    outputs = [builder.communicate(timeout=120)[0] for builder in builders]
    folders = {line for output in outputs for line in output.splitlines() if line.startswith("folder")}
    assert len(folders) == 1 and all("folder" in output for output in outputs)
    assert sum("read" in output for output in outputs) == 1  # the others waited and opened it
    open_cache(tmp_path / "cache").verify()


def test_waiting_for_a_builder_that_hangs_ends_in_one_line(tmp_path, tokenizer):
    spec = text_spec(tmp_path, tokenizer)
    with start_build(spec.sources[0].path, tokenizer, tmp_path / "cache", "read") as process:
        process.stdout.readline()
        with pytest.raises(UserError, match=f"process {process.pid} on .* has been building for over 0 s"):
            build_cache(spec, tmp_path / "cache", timeout=0.3)
        process.kill()


def test_a_host_that_only_waits_gets_the_cache_or_a_line(tmp_path, tokenizer):
    spec = text_spec(tmp_path, tokenizer)
    began = time.monotonic()
    with pytest.raises(UserError, match="did not appear within 0 s"):
        build_cache(spec, tmp_path / "cache", build=False, timeout=0.1)
    assert time.monotonic() - began < 60
    made = build_cache(spec, tmp_path / "cache")
    assert build_cache(spec, tmp_path / "cache", build=False, timeout=0.1).folder == made.folder


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    spec = text_spec(tmp_path, tokenizer)
    kept = build_cache(dataclasses.replace(spec, packing="none"), tmp_path / "cache")
    monkeypatch.setattr("numpy.lib.format.open_memmap", full)
    with pytest.raises(UserError, match="cannot write below .*No space left on device"):
        build_cache(spec, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".lock")] == [
        kept.folder.name
    ]
    kept.verify()


def test_hold_out_by_skip_and_limit_shares_no_record(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in corpus()])
    base = DataSpec((Source(str(path), skip=10),), tokenizer, 512, packing="none")
    train = build_cache(base, tmp_path / "train")
    held = build_cache(dataclasses.replace(base, sources=(Source(str(path), limit=10),)), tmp_path / "held")
    assert (train.rows, held.rows) == (50, 10)
    texts = [{tuple(row) for row in everything(cache)["tokens"].tolist()} for cache in (train, held)]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize(
    "change, times",
    [({"fraction": 0.5}, {0: 30, 1: 30}), ({"fraction": 2.5}, {2: 30, 3: 30}), ({"count": 7}, {0: 53, 1: 7}),
     ({"fraction": 1.0}, {1: 60}), ({"count": 61}, {1: 59, 2: 1})],
)  # fmt: skip
def test_count_and_fraction_take_whole_passes_and_a_seeded_rest(change, times, tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in corpus()])
    spec = DataSpec((Source(str(path), **change),), tokenizer, 512, packing="none")
    cache = build_cache(spec, tmp_path / "cache")
    seen = np.bincount([cache.documents(row)[0].document for row in range(cache.rows)], minlength=60)
    assert dict(zip(*map(list, np.unique(seen, return_counts=True)), strict=True)) == times
    other = build_cache(dataclasses.replace(spec, seed=7), tmp_path / "cache")
    if sum(times) > 0 and list(times) != [1]:
        drawn = [[c.documents(row)[0].document for row in range(c.rows)] for c in (cache, other)]
        assert drawn[0] != drawn[1]


def test_repetitive_text_is_dropped_whole_or_loses_its_loss(tmp_path, tokenizer):
    texts = [*corpus(10), "na" * 4000, *corpus(5)]
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    whole = DataSpec((Source(str(path)),), tokenizer, 4096, packing="best_fit", repetition_filter=True)
    cache = build_cache(whole, tmp_path / "whole")
    assert cache.manifest["sources"][0]["records"]["repetitive_dropped"] == 1
    assert (0, 10) not in by_document(cache)
    windows = dataclasses.replace(whole, packing="concat", sequence_length=256)
    cache = build_cache(windows, tmp_path / "windows")
    weights = everything(cache)["loss_weights"]
    assert cache.manifest["blanked_windows"] == (weights.sum(1) == 0).sum() > 3
    plain = build_cache(dataclasses.replace(windows, repetition_filter=False), tmp_path / "plain")
    assert everything(plain)["loss_weights"].all(1).sum() > weights.all(1).sum()


def test_an_extra_column_reaches_the_batch_as_it_is(tmp_path, tokenizer):
    """Kinds of data to come add columns; neither cache nor loader needs to know them."""
    from easylm_jax.data import Loader
    from easylm_jax.data.cache import finish

    cache = build_cache(text_spec(tmp_path, tokenizer), tmp_path / "cache")
    extra = np.arange(cache.rows * 6, dtype=np.float32).reshape(cache.rows, 2, 3)
    np.save(cache.folder / "columns" / "crops.npy", extra)
    manifest = {**cache.manifest, "columns": {**cache.manifest["columns"], "crops": "made up"}}
    finish(cache.folder, manifest)
    loader = Loader(open_cache(cache.folder), 4, seed=0)
    batch = loader.batch_at(1)
    np.testing.assert_array_equal(batch["crops"], extra[loader.rows_at(1)])
    assert batch["tokens"].shape == (4, 32)


def test_training_from_a_cache_never_imports_tensorflow(tmp_path, tokenizer):
    cache = build_cache(text_spec(tmp_path, tokenizer), tmp_path / "cache")
    code = f"""
        import sys
        from easylm_jax.data import Loader, build_cache, open_cache, DataSpec, Source
        loader = Loader(open_cache({str(cache.folder)!r}), 4, seed=0)
        for step in range(3):
            loader.batch_at(step)
        next(loader.cache.in_order(2))
        heavy = {{"tensorflow", "seqio", "datasets", "transformers", "torch", "pyarrow"}}
        print(sorted(heavy & set(sys.modules)))
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


def test_in_order_gives_every_row_once_and_pads_with_empty_rows(tmp_path, tokenizer):
    cache = build_cache(text_spec(tmp_path, tokenizer), tmp_path / "cache")
    size = cache.rows - 3
    batches = list(cache.in_order(size))
    assert len(batches) == 2 and all(batch["tokens"].shape == (size, 32) for batch in batches)
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for name, array in everything(cache).items():
        np.testing.assert_array_equal(joined[name][: cache.rows], array)
        assert not joined[name][cache.rows :].any()
    half = list(cache.in_order(size, slice(0, 2)))
    np.testing.assert_array_equal(half[1]["tokens"], batches[1]["tokens"][:2])
