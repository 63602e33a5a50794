"""Prompts for rollouts: rendered up to the opening of the answer, never cut, each with its record beside it."""

import dataclasses
import datetime
import json

import numpy as np
import pytest
from data_kit import hf_tokenizer, sentence, sentencepiece, write_jsonl

from easylm_jax.cli.main import main
from easylm_jax.data import (
    DataSpec,
    Loader,
    Source,
    build_cache,
    load_tokenizer,
    open_cache,
    open_columns,
    train_sentencepiece,
    write_columns,
)
from easylm_jax.data.prompts import prompt_of
from easylm_jax.data.records import BadRecord
from easylm_jax.data.templates import encode_prompt
from easylm_jax.data.texts import source_texts
from models.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece(tmp_path_factory.mktemp("tokenizer"))


def turn(role, content):
    return {"role": role, "content": content}


def questions(count=30):
    return [{"question": sentence(i, 2 + i % 9), "answer": str(i), "dataset": "gsm8k"} for i in range(count)]


def prompt_spec(folder, tokenizer, records=None, **changes):
    path = write_jsonl(folder / "prompts.jsonl", questions() if records is None else records)
    source = Source(str(path), **changes.pop("source", {}))
    defaults = {"sequence_length": 64, "kind": "prompts", "template": "tulu"}
    return DataSpec(**{"sources": (source,), "tokenizer": tokenizer, **defaults, **changes})


def prompt_cache(folder, tokenizer, records=None, **changes):
    return build_cache(prompt_spec(folder, tokenizer, records, **changes), folder / "cache")


def test_a_row_is_one_prompt_as_the_sampler_would_encode_it(tmp_path, tokenizer):
    cache = prompt_cache(tmp_path, tokenizer)
    vocabulary = load_tokenizer(tokenizer)
    batch = Loader(cache, 8, seed=0).batch_at(1)
    shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert shapes == {"tokens": ((8, 64), np.int32), "lengths": ((8,), np.int32), "prompt_index": ((8,), np.int32)}
    for tokens, length, number in zip(*(batch[name] for name in ("tokens", "lengths", "prompt_index")), strict=True):
        text = questions()[number]["question"]
        assert tokens[:length].tolist() == encode_prompt("tulu", [turn("user", text)], vocabulary)
        assert (tokens[length:] == vocabulary.pad_id).all() and length < 64
        assert vocabulary.decode(tokens[:length]) == f"<|user|>\n{text}\n<|assistant|>\n"
    assert sorted(cache.columns["prompt_index"][:].tolist()) == list(range(30)) and cache.manifest["prompts"] == 30


def test_the_record_of_a_prompt_comes_with_it(tmp_path, tokenizer):
    records = [{**record, "ünïcode": "日本\n", "nested": {"a": [1, None, 2.5]}} for record in questions()]
    cache = open_cache(prompt_cache(tmp_path, tokenizer, records).folder)
    for number in (0, 29, 7):
        found = cache.record(number)
        assert {name: value for name, value in found.items() if name[0] != "_"} == records[number]
        assert found["_messages"] == [turn("user", records[number]["question"])]
        assert found["_source"] == str(tmp_path / "prompts.jsonl") and found["_record"] == number
    for number in (30, -1):
        with pytest.raises(IndexError, match="is outside the 30 prompts"):
            cache.record(number)


def test_keep_chooses_the_columns(tmp_path, tokenizer):
    cache = prompt_cache(tmp_path, tokenizer, keep=("answer",))
    assert [name for name in cache.record(3) if name[0] != "_"] == ["answer"]
    with pytest.raises(UserError, match=r"prompts.jsonl:1: no column 'solution'; there are 'question', 'answer'"):
        prompt_cache(tmp_path, tokenizer, keep=("solution",))


@pytest.mark.parametrize(
    "record, fields, expected",
    [
        ({"instruction": "a", "messages": [turn("user", "b")]}, None, ["a"]),
        ({"history_messages": [turn("user", "a")], "messages": [turn("user", "b")]}, None, ["a"]),
        ({"messages": [turn("user", "a"), turn("assistant", "b")]}, None, ["a"]),
        ({"messages": [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c")]}, None, 4),
        ({"conversation": json.dumps([turn("user", "a")])}, None, ["a"]),
        ({"prompt": "a"}, None, ["a"]),
        ({"prompt": [turn("user", "a")]}, None, ["a"]),
        ({"problem": "a", "answer": "5"}, None, ["a"]),
        ({"q": "a", "s": "be kind"}, {"system": "s", "user": "q"}, ["be kind", "a"]),
        ({"q": "a"}, {"prompt": "q"}, ["a"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, None, ["a"]),
        (
            {
                "chosen": [turn("user", "a"), turn("assistant", "b")],
                "rejected": [turn("user", "a"), turn("assistant", "c")],
            },
            None,
            ["a"],
        ),
        (
            {
                "chosen": [turn("user", "a"), turn("assistant", "b")],
                "rejected": [turn("user", "a"), turn("assistant", "b")],
            },
            None,
            ["a"],
        ),
    ],
)
def test_a_prompt_is_found_in_the_usual_columns(record, fields, expected):
    found = prompt_of(record, Source("x.jsonl", fields=fields), "x.jsonl:1")
    assert found[-1]["role"] == "user"
    assert expected in (len(found), [message["content"] for message in found])


def test_a_transcript_gives_the_turns_before_its_answers():
    shared = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"
    record = {"chosen": shared + "\n\nAssistant: d", "rejected": shared + "\n\nAssistant: e"}
    found = prompt_of(record, Source("x.jsonl", format="hh"), "x.jsonl:1")
    assert found == [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]


@pytest.mark.parametrize(
    "record, message",
    [
        ({"text": "a"}, r"no prompt column \(instruction, .*\) among 'text'; name it in fields"),
        ({"messages": [turn("assistant", "a")]}, "there is no prompt before the response"),
        ({"messages": [turn("system", "a")]}, "the prompt ends with a system turn, not with the user's"),
        ({"messages": "no list"}, "messages is text but not JSON"),
        ({"instruction": 7}, "instruction is int, not a list of messages"),
        ({"instruction": "\ud800"}, "instruction holds half of a surrogate pair"),
    ],
)
def test_a_record_without_a_prompt_is_one_line(record, message):
    with pytest.raises(BadRecord, match=f"x.jsonl:1: {message}") as caught:
        prompt_of(record, Source("x.jsonl"), "x.jsonl:1")
    assert "\n" not in str(caught.value)


def test_long_and_empty_prompts_are_dropped_and_counted_never_cut(tmp_path, tokenizer, capsys):
    records = [{"question": "a"}, {"question": sentence(1, 90)}, {"question": " "}]
    cache = prompt_cache(tmp_path, tokenizer, records)
    counts = cache.manifest["sources"][0]["records"]
    assert (counts["kept"], counts["overlong_dropped"], counts["empty"], counts["truncated"]) == (1, 1, 1, 0)
    assert main(["data", "stats", str(cache.folder)]) == 0
    printed = capsys.readouterr().out
    assert "prompts     1, " in printed and "overlong dropped 1" in printed and "entropy" not in printed
    with pytest.raises(UserError, match=r"prompts.jsonl:2: a prompt of \d+ tokens, over sequence_length 64"):
        prompt_cache(tmp_path, tokenizer, records, overlong="error")
    with pytest.raises(UserError, match="gave no prompt .all .* too long"):
        prompt_cache(tmp_path, tokenizer, records[1:2])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"packing": "best_fit"}, "kind 'prompts' puts one prompt in a row; leave packing out"),
        ({"overlong": "truncate"}, "a prompt cannot be truncated; overlong is 'drop' or 'error'"),
        ({"max_pairs_per_row": 2}, "max_pairs_per_row is for kind 'preference', this is kind 'prompts'"),
        ({"template": None}, "kind 'prompts' needs a template"),
        ({"add_bos": True}, "add_bos is for kind 'text'"),
        ({"source": {"fields": {"margin": "m"}}}, "name 'margin', but kind 'prompts' uses system, user"),
    ],
)
def test_a_wrong_prompt_specification_is_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        prompt_spec(tmp_path, "sp:x", **changes)
    assert "\n" not in str(caught.value)


def test_a_specification_of_prompts_survives_json(tmp_path):
    spec = prompt_spec(tmp_path, "sp:x", keep="answer", source={"format": "hh"})
    assert spec.keep == ("answer",)
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_bytes_in_a_column_are_refused_unless_left_out(tmp_path, tokenizer):
    import pyarrow
    import pyarrow.parquet

    when = datetime.datetime(2024, 5, 1, 12)
    table = pyarrow.table({"question": ["a b"], "image": [b"\x00"], "when": [when]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    spec = dataclasses.replace(prompt_spec(tmp_path, tokenizer), sources=(Source(str(tmp_path / "p.parquet")),))
    with pytest.raises(UserError, match="column 'image' has values that JSON cannot hold; name the columns to keep"):
        build_cache(spec, tmp_path / "cache")
    cache = build_cache(dataclasses.replace(spec, keep=("when",)), tmp_path / "cache")
    assert cache.record(0)["when"] == "2024-05-01 12:00:00"


def test_the_last_batch_in_order_is_filled_with_prompts_that_are_none(tmp_path, tokenizer):
    batches = list(prompt_cache(tmp_path, tokenizer).in_order(16))
    assert batches[1]["prompt_index"].tolist() == [*range(16, 30), -1, -1]
    assert batches[1]["lengths"][-2:].tolist() == [0, 0]


def test_a_prompt_drawn_twice_keeps_its_number_and_record(tmp_path, tokenizer):
    cache = prompt_cache(tmp_path, tokenizer, source={"count": 75})
    drawn = np.bincount(cache.columns["prompt_index"][:])
    assert cache.rows == 75 and len(drawn) == 30 and set(drawn.tolist()) == {2, 3}
    assert cache.record(29)["answer"] == "29"


def test_held_out_prompts_and_mixed_sources_keep_their_records(tmp_path, tokenizer):
    path = prompt_spec(tmp_path, tokenizer).sources[0].path
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "a b c", "answer": "x"}])
    sources = (Source(path, 1.0, skip=20), Source(str(other), 1.0))
    cache = build_cache(dataclasses.replace(prompt_spec(tmp_path, tokenizer), sources=sources), tmp_path / "cache")
    assert [part["rate"] for part in cache.manifest["parts"]] == [0.5, 0.5]
    assert [cache.record(i)["answer"] for i in range(11)] == [*map(str, range(20, 30)), "x"]
    assert cache.record(10)["_source"] == str(other) and cache.record(0)["_record"] == 0
    batch = Loader(cache, 64, seed=1).batch_at(3)
    assert (batch["prompt_index"] == 10).sum() > 16


def test_values_by_prompt_reach_the_batch(tmp_path, tokenizer):
    cache = prompt_cache(tmp_path, tokenizer)
    write_columns(cache, "pass_rate", "k", {"pass_rate": np.arange(30) / 30}, index="prompt_index")
    wider = cache.with_columns(open_columns(cache, "pass_rate", "k"))
    batch = Loader(wider, 8, seed=0).batch_at(0)
    assert batch["pass_rate"] == pytest.approx(batch["prompt_index"] / 30)
    assert wider.record(2) == cache.record(2)


def test_other_kinds_hold_no_prompts(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a b c"}])
    cache = build_cache(DataSpec((Source(str(path)),), tokenizer, 16), tmp_path / "cache")
    with pytest.raises(UserError, match=r"holds no prompts \(kind 'text'\)"):
        cache.record(0)


def test_a_cut_or_changed_record_file_is_noticed(tmp_path, tokenizer):
    folder = prompt_cache(tmp_path, tokenizer).folder
    path = folder / "records.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"gsm8k", b"gsm9k", 1))
    with pytest.raises(UserError, match="records.jsonl fails its checksum"):
        open_cache(folder).verify()
    path.write_bytes(content[:-3])
    with pytest.raises(UserError, match="records.jsonl is missing or truncated"):
        open_cache(folder)


def test_the_same_prompts_elsewhere_give_the_same_bytes(tmp_path, tokenizer):
    folders = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folders.append(prompt_cache(tmp_path / name, tokenizer).folder)
    assert folders[0].name == folders[1].name
    files = json.loads((folders[0] / "manifest.json").read_text())["files"]
    assert {"records.jsonl", "record_offsets.npy", "columns/lengths.npy"} <= set(files)
    assert files == json.loads((folders[1] / "manifest.json").read_text())["files"]


def test_commands_build_and_show_prompts(tmp_path, tokenizer, capsys):
    path = write_jsonl(tmp_path / "q.jsonl", questions(3))
    words = ["data", "build", str(path), "--kind", "prompts", "--template", "tulu", "--tokenizer", tokenizer]
    words += ["--length", "64", "--keep", "answer,dataset", "--out", str(tmp_path / "c"), "--fields", "user=question"]
    assert main(words) == 0
    assert main(["data", "inspect", str(tmp_path / "c"), "--rows", "1", "--json", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    asked = questions(1)[0]["question"]
    assert f"<|user|>\n{asked}\n<|assistant|>\n" in printed and "⟦" not in printed
    assert "── prompt 0, " in printed and "answer: 0\ndataset: gsm8k\n" in printed
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["documents"][0]["kept"] == {"answer": "0", "dataset": "gsm8k"}


def test_templates_with_marker_tokens_open_the_answer(tmp_path):
    tokenizer = hf_tokenizer(tmp_path / "hf")
    cache = prompt_cache(tmp_path, tokenizer, [{"prompt": "hi"}], template="chatml")
    batch = cache.read(np.array([0]))
    text = load_tokenizer(tokenizer).decode(batch["tokens"][0, : batch["lengths"][0]])
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_real_mathematics_keeps_its_answers(shared_data, tmp_path):
    source = Source(str(shared_data / "gsm8k" / "train.jsonl"), limit=500, fields={"user": "question"})
    tokenizer = f"sp:{train_sentencepiece(source_texts([source]), 1024, tmp_path)}"
    spec = DataSpec((source,), tokenizer, 192, kind="prompts", template="tulu", keep=("answer",))
    cache = build_cache(spec, tmp_path / "cache")
    counts = cache.manifest["sources"][0]["records"]
    assert counts["read"] == 500 and counts["kept"] + counts["overlong_dropped"] == 500 and counts["kept"] > 400
    assert all("#### " in cache.record(i)["answer"] for i in range(cache.manifest["prompts"]))
    record = cache.record(0)
    assert record["answer"].endswith("#### 72") and record["_messages"][0]["content"].startswith("Natalia sold clips")


def test_real_transcripts_give_prompts(shared_data, tmp_path, tokenizer):
    source = Source(str(shared_data / "hh_rlhf" / "harmless-base-test.jsonl.gz"), limit=100, format="hh")
    spec = DataSpec((source,), tokenizer, 512, kind="prompts", template="tulu")
    cache = build_cache(spec, tmp_path / "cache")
    assert cache.manifest["prompts"] > 60
    for number in range(10):
        record = cache.record(number)
        assert record["_messages"][-1]["role"] == "user"
        assert record["chosen"].count("\n\nHuman:") == sum(m["role"] == "user" for m in record["_messages"])
