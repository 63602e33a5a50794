"""Preference pairs: two segments side by side in one row, each pair once, numbered, with its margin."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from data_kit import assistant, pair_cache, pair_spec, pairs, sentence, sentencepiece, user, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from easylm_jax.cli.main import main
from easylm_jax.data import (
    DataSpec,
    Loader,
    Source,
    build_cache,
    load_tokenizer,
    open_cache,
    train_sentencepiece,
)
from easylm_jax.data.build import cache_key
from easylm_jax.data.preference import PairEncoder
from easylm_jax.data.sources import read_records
from easylm_jax.data.templates import render, tokenize
from easylm_jax.data.texts import source_texts
from models.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece(tmp_path_factory.mktemp("tokenizer"))


def counts(cache):
    return cache.manifest["sources"][0]["records"]


def sides(cache):
    """{pair: (chosen ids, chosen marks, rejected ids, rejected marks, margin)}, read by the contract of a batch alone;
    no pair may come twice."""
    found = {}
    for batch in cache.in_order(8):
        for row in range(8):
            segments, index = batch["segment_ids"][row], batch["pair_index"][row]
            assert segments.max() == 2 * (index >= 0).sum()
            assert (index[(index >= 0).sum() :] == -1).all()
            for p, pair in enumerate(index[index >= 0].tolist()):
                assert pair not in found
                values = []
                for segment in (2 * p + 1, 2 * p + 2):
                    places = np.flatnonzero(segments == segment)
                    assert (np.diff(places) == 1).all()
                    assert batch["positions"][row][places].tolist() == list(range(len(places)))
                    values += [batch["tokens"][row][places].tolist(), batch["loss_weights"][row][places].tolist()]
                    assert batch["targets"][row][places][:-1].tolist() == values[-2][1:]
                found[pair] = (*values, float(batch["margins"][row, p]))
    return found


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("train_on", ["assistant", "last_assistant"])
def test_a_pair_is_two_neighbouring_segments_with_its_margin_and_marks(packing, train_on, tmp_path, tokenizer):
    cache = pair_cache(tmp_path, tokenizer, packing=packing, train_on=train_on)
    vocabulary, found = load_tokenizer(tokenizer), sides(cache)
    assert sorted(found) == list(range(40)) and cache.manifest["pairs"] == 40
    for number, record in enumerate(pairs()):
        expected = []
        for side in ("chosen", "rejected"):
            ((ids, marks),) = tokenize([render("tulu", record[side], train_on=train_on)], vocabulary)
            expected += [ids.tolist(), [*marks[1:].tolist(), 0]]
        assert found[number] == (*expected, record.get("margin", 0.0))


def test_a_batch_has_exactly_the_arrays_of_the_contract(tmp_path, tokenizer):
    cache = pair_cache(tmp_path, tokenizer)
    batch = Loader(cache, 4, seed=0).batch_at(0)
    most = cache.manifest["pairs_per_row"]
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        **{name: ((4, 512), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")},
        "loss_weights": ((4, 512), np.float32),
        "pair_index": ((4, most), np.int32),
        "margins": ((4, most), np.float32),
    }


def test_one_pair_stands_in_a_row_without_packing(tmp_path, tokenizer):
    cache = pair_cache(tmp_path, tokenizer, packing="none")
    assert cache.rows == 40 and cache.columns["pair_index"][:].reshape(-1).tolist() == list(range(40))


def test_pairs_per_row_are_bounded_and_the_bound_is_the_shape(tmp_path, tokenizer):
    free = pair_cache(tmp_path, tokenizer, sequence_length=4096, max_side_length=1000)
    assert free.manifest["pairs_per_row"] > 3
    bound = pair_cache(tmp_path, tokenizer, sequence_length=4096, max_side_length=1000, max_pairs_per_row=3)
    assert bound.columns["pair_index"].shape == (14, 3) and sorted(sides(bound)) == list(range(40))
    wide = pair_cache(tmp_path, tokenizer, max_pairs_per_row=50)
    assert wide.columns["margins"].shape[1] == 50


@pytest.mark.parametrize("full, short, rows, most", [(1000, 60, 1008, 8), (100, 200, 102, 192), (10, 3, 11, 3)])
def test_short_pairs_widen_the_columns_only_where_rows_would_be_wasted(full, short, rows, most):
    """Best-fit left free puts all the short pairs into one last row."""
    spec = DataSpec((Source("x"),), "sp:x", 1024, kind="preference", template="tulu")
    lengths = np.array([512, 512] * full + [2, 2] * short)
    plan = PairEncoder(spec, None).plan(lengths, np.arange(full + short))
    assert plan.rows == rows and np.bincount(plan.row).max() == 2 * most


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 32), st.integers(2, 32)), min_size=1, max_size=60),
    st.sampled_from(["best_fit", "none"]),
    st.one_of(st.none(), st.integers(1, 5)),
    st.randoms(use_true_random=False),
)
def test_every_pair_is_planned_once_with_adjacent_sides(lengths, packing, most, random):
    spec = DataSpec(
        (Source("x"),), "sp:x", 64, kind="preference", template="tulu", packing=packing, max_pairs_per_row=most
    )
    encoder = PairEncoder(spec, None)
    for number in range(len(lengths)):
        encoder._margins.append(number / 2)
    units = np.array(random.sample(range(len(lengths)), len(lengths)))
    plan = encoder.plan(np.array(lengths).reshape(-1), units)
    assert sorted(plan.document.tolist()) == list(range(2 * len(lengths)))
    assert (plan.document[::2] % 2 == 0).all() and (plan.document[1::2] == plan.document[::2] + 1).all()
    assert (plan.row[1::2] == plan.row[::2]).all() and (np.diff(plan.row) >= 0).all()
    assert (plan.start[1::2] == plan.start[::2] + plan.length[::2]).all()
    assert (plan.length == np.array(lengths).reshape(-1)[plan.document]).all()
    assert (plan.start + plan.length <= 64).all()
    same_row = plan.row[2::2] == plan.row[1:-1:2]
    assert (plan.start[2::2][same_row] == (plan.start + plan.length)[1:-1:2][same_row]).all()
    columns = encoder.columns([plan])
    index, margins = columns["pair_index"][0], columns["margins"][0]
    assert most is None or packing == "none" or index.shape[1] == most
    assert sorted(index[index >= 0].tolist()) == list(range(len(lengths)))
    assert (margins == np.where(index >= 0, index / 2, 0)).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 64), st.data())
def test_cut_sides_fit_a_row_and_only_where_they_must(size, data):
    limit = data.draw(st.one_of(st.none(), st.integers(2, size - 2)))
    chosen, rejected = data.draw(st.integers(2, 100)), data.draw(st.integers(2, 100))
    spec = DataSpec((Source("x"),), "sp:x", size, kind="preference", template="tulu", max_side_length=limit)
    kept = PairEncoder(spec, None)._lengths(chosen, rejected)
    limit = limit or size // 2
    assert sum(kept) <= size and kept[0] <= min(chosen, limit) and kept[1] <= min(rejected, limit)
    if min(chosen, limit) + min(rejected, limit) <= size:
        assert kept == (min(chosen, limit), min(rejected, limit))
    else:
        assert sum(kept) == size and min(kept) >= min(chosen, rejected, size // 2)


def test_prompt_and_answers_may_be_texts_in_any_columns(tmp_path, tokenizer):
    texts = [{"system": "be kind", "question": "why?", "good": "so.", "bad": "no.", "gap": 2}]
    fields = {"system": "system", "prompt": "question", "chosen": "good", "rejected": "bad", "margin": "gap"}
    named = pair_cache(tmp_path, tokenizer, texts, source={"fields": fields})
    system = {"role": "system", "content": "be kind"}
    lists = [{"chosen": [system, user("why?"), assistant("so.")], "rejected": [system, user("why?"), assistant("no.")]}]
    whole = pair_cache(tmp_path, tokenizer, [{**lists[0], "margin": 2}])
    answers = {"prompt": [system, user("why?")], "chosen": [assistant("so.")], "rejected": [assistant("no.")]}
    split = pair_cache(tmp_path, tokenizer, [{**answers, "margin": 2.0}])
    assert sides(named) == sides(whole) == sides(split) and sides(whole)[0][-1] == 2.0


def test_a_transcript_is_parted_at_the_first_turn_that_differs(tmp_path, tokenizer):
    shared = "\n\nHuman: hello there\n\nAssistant: hi: yes?\n\nHuman: tell me\n\nand more"
    later = "\n\nAssistant: no. \n\nHuman: oh\n\nAssistant: well"
    record = {"chosen": shared + "\n\nAssistant: the fox", "rejected": shared + later}
    hh = pair_cache(tmp_path, tokenizer, [record], source={"format": "hh"})
    turns = [user("hello there"), assistant("hi: yes?"), user("tell me\n\nand more")]
    plain = [{"chosen": [*turns, assistant("the fox")], "rejected": [*turns, assistant("no.")]}]
    assert sides(hh) == sides(pair_cache(tmp_path, tokenizer, plain))


GOOD = {"prompt": "why?", "chosen": "so.", "rejected": "no."}


def test_identical_and_empty_sides_are_dropped_and_counted(tmp_path, tokenizer, capsys):
    records = [
        GOOD,
        {**GOOD, "rejected": "so. "},
        {**GOOD, "chosen": " "},
        {**GOOD, "prompt": "\n"},
        {"chosen": [assistant("a")], "rejected": [assistant("b")]},
    ]
    cache = pair_cache(tmp_path, tokenizer, records)
    assert counts(cache)["identical_dropped"] == 1 and counts(cache)["empty"] == 3 and counts(cache)["kept"] == 1
    assert main(["data", "stats", str(cache.folder)]) == 0
    printed = capsys.readouterr().out
    assert "pairs       1, at most 1 in a row" in printed
    assert "1 of 5 records" in printed and "empty 3" in printed and "identical dropped 1" in printed


@pytest.mark.parametrize(
    "record, message",
    [
        ({"chosen": [user("a"), assistant("b")]}, "no column 'rejected'; there are 'chosen'"),
        ({"chosen": "a", "rejected": "b"}, "chosen is text but there is no column 'prompt'.*format='hh'"),
        ({"chosen": [user("a")], "rejected": [user("a"), assistant("b")]}, "chosen ends with a user turn"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "the prompts differ: message 0 is a user turn and a user turn",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b"), user("c"), assistant("d")]},
            r"the prompts differ: one side continues where the other ends \(message 2\)",
        ),
        ({"chosen": [], "rejected": [user("a"), assistant("b")]}, "the conversation is empty"),
        ({"chosen": [{"role": "bot", "content": "b"}], "rejected": []}, "unknown role 'bot'"),
        ({**GOOD, "chosen": 3}, "chosen is int, not a list of messages"),
        ({**GOOD, "prompt": None}, "prompt is NoneType, not a list of messages"),
        ({**GOOD, "margin": "wide"}, "margin is 'wide', not a finite number"),
        ({**GOOD, "margin": float("nan")}, "margin is nan, not a finite number"),
    ],
)
def test_a_malformed_pair_is_one_line_with_its_place(record, message, tmp_path, tokenizer):
    with pytest.raises(UserError, match=rf"pairs.jsonl:2: .*{message}") as caught:
        pair_cache(tmp_path, tokenizer, [GOOD, record])
    assert "\n" not in str(caught.value)
    skipping = pair_cache(tmp_path, tokenizer, [GOOD, record], on_bad="skip")
    assert counts(skipping)["bad"] == 1 and counts(skipping)["kept"] == 1


def test_a_text_that_is_no_transcript_is_one_line(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"pairs.jsonl:1: chosen is no transcript; format 'hh' starts with"):
        pair_cache(tmp_path, tokenizer, [GOOD], source={"format": "hh"})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"packing": "concat"}, "pairs stay whole; packing is 'best_fit' or 'none'"),
        ({"train_on": "all"}, "train_on is 'assistant' or 'last_assistant' for kind 'preference'"),
        ({"template": None}, "kind 'preference' needs a template"),
        ({"document_mask": False}, "document_mask=False is for kinds 'text' and 'chat'"),
        ({"max_side_length": 511}, "max_side_length 511 must lie between 2 and sequence_length - 2"),
        ({"max_pairs_per_row": 0}, "max_pairs_per_row: 0 is not a whole number of at least 1"),
        ({"sequence_length": 3}, "sequence_length 3 has no room for the two sides of a pair"),
        ({"keep": ("a",)}, "keep is for kind 'prompts', this is kind 'preference'"),
        ({"kind": "chat", "max_side_length": 9}, "max_side_length is for kind 'preference', this is kind 'chat'"),
        ({"source": {"fields": {"user": "q"}}}, "name 'user', but kind 'preference' uses system, prompt, chosen"),
        ({"kind": "chat", "source": {"format": "hh"}}, "format 'hh' of source .* is for kinds 'preference'"),
        ({"source": {"format": "pm"}}, "data.sources.format: 'pm' is not one of 'hh'"),
    ],
)
def test_a_wrong_preference_specification_is_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        pair_spec(tmp_path, "sp:x", **changes)
    assert "\n" not in str(caught.value)


def test_long_sides_are_cut_dropped_or_refused(tmp_path, tokenizer):
    long = {"prompt": "why?", "chosen": sentence(1, 60), "rejected": sentence(2, 5)}
    records = [GOOD, long]
    whole = sides(pair_cache(tmp_path, tokenizer, records))
    half = len(whole[1][0]) // 2 + 1
    cut = pair_cache(tmp_path, tokenizer, records, sequence_length=2 * half)
    assert counts(cut)["truncated"] == 1
    assert sides(cut)[1][0] == whole[1][0][:half] and sides(cut)[1][2] == whole[1][2]
    roomy = pair_cache(tmp_path, tokenizer, records, sequence_length=2 * half, max_side_length=2 * half - 2)
    assert len(sides(roomy)[1][0]) == min(len(whole[1][0]), 2 * half - len(whole[1][2]))
    dropped = pair_cache(tmp_path, tokenizer, records, sequence_length=2 * half, overlong="drop")
    assert counts(dropped)["overlong_dropped"] == 1 and list(sides(dropped)) == [0]
    with pytest.raises(UserError, match=r"pairs.jsonl:2: sides of \d+ and \d+ tokens, over max_side_length \d+"):
        pair_cache(tmp_path, tokenizer, records, sequence_length=2 * half, overlong="error")


def test_a_pair_that_differs_or_answers_only_beyond_the_cut_is_dropped(tmp_path, tokenizer):
    same = sentence(1, 60)
    records = [GOOD, {"prompt": "a", "chosen": same + " x", "rejected": same + " y"}]
    records.append({"prompt": same, "chosen": "x", "rejected": "y"})
    cache = pair_cache(tmp_path, tokenizer, records, sequence_length=80)
    assert counts(cache)["identical_dropped"] == 1 and counts(cache)["untrained_dropped"] == 1
    assert list(sides(cache)) == [0]


def test_train_and_held_out_pairs_share_none(tmp_path, tokenizer):
    held_out = pair_cache(tmp_path, tokenizer, source={"limit": 10})
    train = pair_cache(tmp_path, tokenizer, source={"skip": 10})
    assert (held_out.manifest["pairs"], train.manifest["pairs"]) == (10, 30)
    all_pairs = [pair[:4] for pair in sides(pair_cache(tmp_path, tokenizer)).values()]
    split = [pair[:4] for cache in (held_out, train) for pair in sides(cache).values()]
    assert sorted(map(str, split)) == sorted(map(str, all_pairs))


def test_a_pair_drawn_twice_keeps_its_number(tmp_path, tokenizer):
    cache = pair_cache(tmp_path, tokenizer, source={"fraction": 2.5})
    index = cache.columns["pair_index"][:]
    drawn = np.bincount(index[index >= 0], minlength=40)
    assert cache.manifest["pairs"] == 40 and drawn.sum() == 100 and set(drawn.tolist()) == {2, 3}


def test_mixed_sources_keep_their_rates_and_numbers(tmp_path, tokenizer):
    one, two = (
        write_jsonl(tmp_path / f"{n}.jsonl", part) for n, part in (("one", pairs()[:10]), ("two", pairs()[10:]))
    )
    sources = (Source(str(one), 3.0), Source(str(two), 1.0))
    spec = dataclasses.replace(pair_spec(tmp_path, tokenizer), sources=sources)
    cache = build_cache(spec, tmp_path / "cache")
    assert [part["rate"] for part in cache.manifest["parts"]] == [0.75, 0.25]
    assert sorted(sides(cache)) == list(range(40))


def test_batch_at_is_pure_and_hosts_see_one_order(tmp_path, tokenizer):
    cache = pair_cache(tmp_path, tokenizer)
    loader, again = Loader(cache, 4, seed=3), Loader(open_cache(cache.folder), 4, seed=3)
    later = again.batch_at(7)
    for step in (7, 0, 7):
        whole = loader.batch_at(step)
        parts = [loader.batch_at(step, slice(0, 2)), loader.batch_at(step, slice(2, 4))]
        for name, array in whole.items():
            assert (np.concatenate([part[name] for part in parts]) == array).all()
            assert step != 7 or (later[name] == array).all()


def test_old_kinds_keep_their_cache_keys(tmp_path, tokenizer):
    spec = DataSpec((Source("a.jsonl"),), tokenizer, 64)
    facts = [[{"path": "a.jsonl", "bytes": 3, "sha256": "00"}]]
    streamed = dataclasses.replace(spec, sources=(Source("hf:a", streaming=True),))
    plain = dataclasses.replace(spec, sources=(Source("hf:a"),))
    vocabulary = load_tokenizer(tokenizer)
    assert cache_key(streamed, vocabulary, [[]]) == cache_key(plain, vocabulary, [[]])
    old = spec.to_dict()
    pictures = ("vision", "images", "max_crops", "row_crops", "document_length", "annotation_weight")
    for name in ("max_side_length", "max_pairs_per_row", "keep", "order", *pictures):
        assert old.pop(name) is None
    source = old["sources"][0]
    for name in ("format", "data_files", "data_dir", "streaming", "base"):
        assert not source.pop(name)
    old["tokenizer"], source["path"] = vocabulary.hash, [["a.jsonl", 3, "00"]]
    text = json.dumps({"version": 1, "spec": old}, sort_keys=True)
    assert cache_key(spec, vocabulary, facts) == hashlib.sha256(text.encode()).hexdigest()


def test_commands_build_and_show_pairs(tmp_path, tokenizer, capsys):
    path = write_jsonl(tmp_path / "p.jsonl", [{"q": "why?", "good": "the fox.", "bad": "a dog.", "gap": 1.5}])
    words = ["data", "build", str(path), "--kind", "preference", "--template", "tulu", "--tokenizer", tokenizer]
    words += ["--fields", "prompt=q,chosen=good,rejected=bad,margin=gap", "--train-on", "last_assistant"]
    words += ["--length", "128", "--max-side-length", "60", "--max-pairs-per-row", "2", "--out", str(tmp_path / "c")]
    assert main(words) == 0
    assert "pairs       1, at most 2 in a row" in capsys.readouterr().out
    assert main(["data", "inspect", str(tmp_path / "c"), "--json", str(tmp_path / "rows.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("── pair 0 chosen, ") and printed[1].endswith("margin 1.5 ──")
    assert printed[2:5] == ["<|user|>", "why?", "<|assistant|>"] and printed[5] == "⟦the fox.</s>⟧"
    assert printed[6].startswith("── pair 0 rejected, ") and printed[10] == "⟦a dog.</s>⟧"
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [document["side"] for document in row["documents"]] == ["chosen", "rejected"]
    assert main([*words, "--packing", "concat"]) == 2
    assert "pairs stay whole" in capsys.readouterr().err


def test_real_human_preferences_are_packed_whole(shared_data, tmp_path):
    path = str(shared_data / "hh_rlhf" / "harmless-base-test.jsonl.gz")
    few, many = Source(path, format="hh", limit=200), Source(path, format="hh")
    tokenizer = f"sp:{train_sentencepiece(source_texts([few]), 1024, tmp_path)}"
    spec = DataSpec((many,), tokenizer, 1024, kind="preference", template="tulu25", train_on="last_assistant")
    cache = build_cache(spec, tmp_path / "cache")
    records = counts(cache)
    assert records["read"] == 2312 and records["bad"] == 0 and records["empty"] == 4
    assert records["kept"] == cache.manifest["pairs"] > 1900
    left_out = sum(records[name] for name in ("empty", "untrained_dropped", "identical_dropped"))
    assert records["kept"] + left_out == 2312
    assert cache.manifest["fill_rate"] > 0.95
    found, vocabulary = sides(cache), load_tokenizer(tokenizer)
    chosen, weights, rejected, _, _ = found[0]
    first = next(read_records(many))[0]
    for side, ids in (("chosen", chosen), ("rejected", rejected)):
        text = vocabulary.decode(ids, skip_special=True)
        answer = first[side].rpartition("\n\nAssistant: ")[2].strip()
        assert text.startswith("<|user|>\nwhat are some pranks") or len(ids) == 512
        assert text.endswith(answer) or len(ids) == 512
    assert sum(weights) > 0 and chosen != rejected
