"""A cache built by many builders has the bytes of one builder's; sampling and sharding come before tokenising."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_kit import conversations, corpus, pairs, sentencepiece, write_jsonl

from easylm_jax.cli import main
from easylm_jax.data import DataSpec, Source, build_cache, packing, parts
from easylm_jax.data.examples import Encoder
from easylm_jax.data.fill import BLOCK, NothingKept, Sampling, Share
from models.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def specs(tmp_path_factory, tokenizer):
    """A spec of every kind and packing, with one source of several blocks and one of many files."""
    folder = tmp_path_factory.mktemp("sources")
    texts = [{"text": text} for text in corpus(3 * BLOCK + 40)]
    one = str(write_jsonl(folder / "one.jsonl", texts))
    (folder / "many").mkdir()
    for number in range(5):
        write_jsonl(folder / "many" / f"{number}.jsonl", texts[number * 9 : number * 17 + 5])
    many = str(folder / "many")
    chats = str(write_jsonl(folder / "chats.jsonl", [{"messages": turns} for turns in conversations(BLOCK + 30)]))
    both = str(write_jsonl(folder / "pairs.jsonl", pairs(BLOCK + 20)))
    asked = [{"question": text, "answer": i, "at": [i] * (i % 3)} for i, text in enumerate(corpus(BLOCK + 20))]
    questions = str(write_jsonl(folder / "questions.jsonl", asked))
    shaped = {"template": "tulu", "sequence_length": 256}
    text = DataSpec((Source(one), Source(many)), tokenizer, 32)
    change = dataclasses.replace
    return {
        "text": text,
        "filtered": change(text, repetition_filter=True, document_mask=False),
        "whole": change(text, packing="best_fit", sequence_length=512, on_bad="skip"),
        "mixed": change(text, sources=(Source(one, 1.0, skip=7, limit=BLOCK + 3), Source(many, 2.0))),
        "half": change(text, sources=(Source(one, fraction=0.5), Source(many, fraction=2.25))),
        "count": change(text, sources=(Source(many, count=31), Source(one, count=2000)), packing="none"),
        "chat": DataSpec((Source(chats),), tokenizer, kind="chat", packing="best_fit", **shaped),
        "pairs": DataSpec((Source(both, fraction=1.5),), tokenizer, kind="preference", **shaped),
        "prompts": DataSpec(
            (Source(questions, fields={"user": "question"}),),
            tokenizer,
            kind="prompts",
            keep=("answer", "at"),
            **shaped,
        ),
    }


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def one_builder(specs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return {name: build_cache(spec, folder / name) for name, spec in specs.items()}


NAMES = ["text", "filtered", "whole", "mixed", "half", "count", "chat", "pairs", "prompts"]


@pytest.mark.parametrize("builders", [1, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_many_builders_write_the_bytes_of_one(name, builders, specs, one_builder, tmp_path):
    for number in reversed(range(builders)):
        parts.build_part(specs[name], tmp_path, Share(number, builders))
    (cache,) = parts.merge(tmp_path)
    assert content(cache.folder) == content(one_builder[name].folder)
    assert [path.name for path in tmp_path.glob(".parts-*")] == []


def test_the_command_line_builds_parts_and_merges_them(specs, one_builder, tmp_path, capsys):
    source, many = (source.path for source in specs["text"].sources)
    build = [source, many, "--tokenizer", specs["text"].tokenizer, "--length", "32", "--out", str(tmp_path / "out")]
    for shard in ("1/3", "3/3"):  # counted from 1
        assert main.main(["data", "build", *build, "--shard", shard]) == 0
    assert main.main(["data", "merge", str(tmp_path / "out")]) == 2
    assert "lacks 1 of 3 parts; build --shard 2/3" in capsys.readouterr().err
    assert main.main(["data", "build", *build, "--shard", "2/3"]) == 0
    assert main.main(["data", "merge", *build]) == 0
    (folder,) = [path.parent for path in (tmp_path / "out").glob("*/manifest.json")]
    assert content(folder) == content(one_builder["text"].folder)
    assert main.main(["data", "merge", *build]) == 0  # there is nothing left to do
    assert main.main(["data", "merge", str(tmp_path / "out")]) == 2
    assert main.main(["data", "build", *build, "--shard", "0/3"]) == 0
    assert "exists already" in capsys.readouterr().out


def test_a_builder_that_was_killed_is_started_again(specs, one_builder, tmp_path, monkeypatch):
    spec = specs["text"]
    slow = (
        "import sys, time\nfrom easylm_jax.data import DataSpec, parts\nfrom easylm_jax.data.fill import Share\n"
        "import json\nspec = DataSpec.from_dict(json.loads(sys.argv[1]))\n"
        "parts.build_part(spec, sys.argv[2], Share(1, 3), lambda *_: (print('reading', flush=True), time.sleep(60)))\n"
    )
    import json

    command = [sys.executable, "-c", slow, json.dumps(spec.to_dict()), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as builder:
        assert builder.stdout is not None and builder.stdout.readline() == b"reading\n"
        with pytest.raises(UserError, match=f"is being built by process {builder.pid}"):
            parts.build_part(spec, tmp_path, Share(1, 3))
        builder.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.glob(".parts-*/.building-1-of-3-*"))) == 1
    for number in (0, 1, 2):
        parts.build_part(spec, tmp_path, Share(number, 3))
    assert not list(tmp_path.glob(".parts-*/.building-*"))
    (cache,) = parts.merge(tmp_path)
    assert content(cache.folder) == content(one_builder["text"].folder)


def test_records_that_are_not_sampled_are_not_tokenised(specs, tmp_path, monkeypatch):
    seen = []
    encode = Encoder._tokens

    def counted(self, items):
        seen.extend(items)
        return encode(self, items)

    monkeypatch.setattr(Encoder, "_tokens", counted)
    path = specs["text"].sources[0].path
    spec = DataSpec((Source(path, fraction=0.125),), specs["text"].tokenizer, 32)
    cache = build_cache(spec, tmp_path)
    records = cache.manifest["sources"][0]["records"]
    total = 3 * BLOCK + 40
    assert len(seen) == records["kept"] == round(total / 8)
    assert (records["read"], records["not_sampled"]) == (total, total - records["kept"])
    seen.clear()
    parts.build_part(dataclasses.replace(spec, sources=(Source(path),)), tmp_path, Share(1, 4))
    assert len(seen) == BLOCK


def test_a_fraction_of_many_small_files_is_that_of_all_of_them():
    sampling = Sampling(0, 0, Source("a", fraction=0.3), ())
    taken = [int(sampling.of_block(stream, 0, 2).sum()) for stream in range(3000)]
    assert abs(sum(taken) / 6000 - 0.3) < 0.02 and set(taken) == {0, 1}


def test_joined_documents_are_planned_in_chunks_as_at_once():
    random = np.random.default_rng(0)
    for size in (1, 7, 32):
        lengths = random.integers(1, 90, 400)
        whole = packing.concat(lengths, size)
        chunks = np.array_split(np.arange(400), np.sort(random.integers(0, 400, 9)))
        planned = list(packing.concat_chunks(((c, lengths[c]) for c in chunks), int(lengths.sum()), size))
        assert len(planned) > 3
        rows = np.cumsum([0] + [plan.rows for plan in planned])
        np.testing.assert_array_equal(
            np.concatenate([plan.row + first for plan, first in zip(planned, rows, strict=False)]), whole.row
        )
        for name in ("start", "document", "offset", "length"):
            joined = np.concatenate([getattr(plan, name) for plan in planned])
            np.testing.assert_array_equal(joined, getattr(whole, name))
        assert rows[-1] == whole.rows


def test_parts_that_cannot_be_merged_are_one_line(specs, tmp_path):
    spec = specs["text"]
    with pytest.raises(UserError, match="holds no parts; build them"):
        parts.merge(tmp_path)
    made = parts.build_part(spec, tmp_path, Share(0, 2))
    parts.build_part(spec, tmp_path, Share(0, 3))
    with pytest.raises(UserError, match="has parts of 2 and 3 builders"):
        parts.merge(tmp_path)
    (made / "store.tokens").write_bytes(b"cut")
    with pytest.raises(UserError, match="store.tokens.* fails its checksum.*build the part again"):
        parts.merge(tmp_path)
    empty = DataSpec((Source(str(write_jsonl(tmp_path / "e.jsonl", [{"text": ""}] * 3))),), spec.tokenizer, 32)
    parts.build_part(empty, tmp_path / "empty", Share(0, 1))
    with pytest.raises(NothingKept, match="all 3 are left out: 3 empty"):
        parts.merge(tmp_path / "empty")
    none = dataclasses.replace(spec, sources=(dataclasses.replace(spec.sources[0], fraction=1e-5),))
    with pytest.raises(NothingKept, match="fraction 1e-05 of its 1,576 records is none; raise it"):
        build_cache(none, tmp_path / "none")
    with pytest.raises(UserError, match="read in place"):
        parts.build_part(DataSpec((Source("a.npy"),), spec.tokenizer, 32, kind="tokens"), tmp_path, Share(0, 2))


def test_datatroves_local_executor_builds_the_same_bytes(specs, one_builder, tmp_path):
    pytest.importorskip("datatrove", reason="the extra `scale` is not installed")
    from easylm_jax.data.datatrove_step import build_with_processes

    cache = build_with_processes(specs["text"], str(tmp_path / "c"), tasks=2, workers=1, logs=str(tmp_path / "logs"))
    assert content(cache.folder) == content(one_builder["text"].folder)


def test_a_task_of_a_pipeline_builds_its_part(specs, one_builder, tmp_path):
    from easylm_jax.data.datatrove_step import CachePart

    step = CachePart(specs["text"], str(tmp_path))
    for rank in (1, 0):
        step(None, rank=rank, world_size=2)
    assert content(parts.merge(tmp_path)[0].folder) == content(one_builder["text"].folder)
