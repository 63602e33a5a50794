"""What a user gets wrong in data is one line that says what, where and how to mend it; and what is right is read."""

import dataclasses
import gzip
import json

import pytest
from data_kit import corpus, sentencepiece, write_jsonl

from easylm_jax.data import DataSpec, Source, build_cache, load_tokenizer
from easylm_jax.data.sources import read_records
from models.errors import UserError

GOOD = {"messages": [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "seven cats"}]}
LONG = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "a lazy dog " * 40}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece(tmp_path_factory.mktemp("tokenizer"))


def chat(path, tokenizer, **changes):
    source = {name: changes.pop(name) for name in ("fields", "messages_field") if name in changes}
    defaults = {"kind": "chat", "template": "tulu", "packing": "best_fit"}
    return DataSpec((Source(str(path), **source),), tokenizer, 128, **{**defaults, **changes})


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


BAD_CHATS = {
    "broken JSON": ('{"messages": [', r"bad.jsonl:2: broken JSON: .* at column \d+"),
    "no object": ("[1, 2]", "bad.jsonl:2: not a JSON object"),
    "missing column": ({"text": "x", "id": 3}, "bad.jsonl:2: no column 'messages'.*there are 'text', 'id'"),
    "empty conversation": ({"messages": []}, "bad.jsonl:2: the conversation is empty"),
    "messages of a wrong type": ({"messages": 7}, "bad.jsonl:2: messages is int, not a list of messages"),
    "message without content": ({"messages": [{"role": "user"}]}, "bad.jsonl:2: message 0 needs role and content"),
    "unknown role": (
        turns(("user", "a"), ("bot", "b")),
        "bad.jsonl:2: message 1 has the unknown role 'bot'",
    ),
    "content of a wrong type": (turns(("user", None)), "bad.jsonl:2: content of message 0 is NoneType, not text"),
    "no assistant turn": (turns(("user", "a")), "bad.jsonl:2: no assistant turn, so no token would be trained"),
    "half a character": ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "bad.jsonl:2: .*surrogate"),
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_a_bad_conversation_stops_with_its_place_or_is_counted(name, tmp_path, tokenizer):
    record, message = BAD_CHATS[name]
    line = record if isinstance(record, str) else json.dumps(record)
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(UserError, match=message) as caught:
        build_cache(chat(path, tokenizer), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    cache = build_cache(chat(path, tokenizer, on_bad="skip"), tmp_path / "cache")
    records = cache.manifest["sources"][0]["records"]
    assert (records["read"], records["bad"], records["kept"]) == (3, 1, 2)
    assert "bad.jsonl:2" in records["first_bad"]


def test_an_over_long_example_is_cut_dropped_or_named(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "long.jsonl", [GOOD, LONG])
    with pytest.raises(UserError, match=r"long.jsonl:2: \d+ tokens, over sequence_length 128; raise it or choose"):
        build_cache(chat(path, tokenizer, overlong="error", on_bad="skip"), tmp_path / "cache")
    dropped = build_cache(chat(path, tokenizer, overlong="drop"), tmp_path / "cache")
    assert dropped.manifest["sources"][0]["records"]["overlong_dropped"] == 1
    cut = build_cache(chat(path, tokenizer), tmp_path / "cache")
    assert cut.manifest["sources"][0]["records"]["truncated"] == 1
    batch = cut.read(range(cut.rows))
    eos = load_tokenizer(tokenizer).eos_id
    row = next(r for r in range(cut.rows) if cut.documents(r)[0].document == 1)
    assert (batch["segment_ids"][row] > 0).all() and eos not in batch["tokens"][row]


def test_an_example_cut_before_its_answer_is_dropped_and_counted(tmp_path, tokenizer):
    long_question = turns(("user", "a lazy dog " * 60), ("assistant", "yes"))
    cache = build_cache(chat(write_jsonl(tmp_path / "q.jsonl", [GOOD, long_question]), tokenizer), tmp_path / "cache")
    records = cache.manifest["sources"][0]["records"]
    assert (records["kept"], records["truncated"], records["untrained_dropped"]) == (1, 1, 1)
    only = chat(write_jsonl(tmp_path / "only.jsonl", [long_question]), tokenizer)
    with pytest.raises(UserError, match="gave nothing to train on .*1 without a trained token"):
        build_cache(only, tmp_path / "cache")


def test_the_last_turn_must_be_an_answer_where_only_that_is_trained(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "c.jsonl", [turns(("assistant", "a"), ("user", "b"))])
    with pytest.raises(UserError, match="c.jsonl:1: the last turn is user, but train_on='last_assistant'"):
        build_cache(chat(path, tokenizer, train_on="last_assistant"), tmp_path / "cache")


def test_a_system_turn_in_the_plain_template_is_named(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "c.jsonl", [turns(("system", "a"), ("assistant", "b"))])
    with pytest.raises(UserError, match="c.jsonl:1: template plain has no system turn"):
        build_cache(chat(path, tokenizer, template="plain"), tmp_path / "cache")


def test_wrong_fields_name_the_columns_there_are(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "qa.jsonl", [{"question": "q", "answer": "a"}])
    wrong = chat(path, tokenizer, fields={"user": "question", "assistant": "anwser"})
    with pytest.raises(UserError, match="qa.jsonl:1: no column 'anwser'; there are 'question', 'answer'"):
        build_cache(wrong, tmp_path / "cache")


BAD_LINES = {
    "a thousand levels": b'{"text": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "a hundred thousand levels": b"[" * 100_000,
    "a number that is infinite as a float": b'{"text": "x", "score": 1e999}',
    "a number of too many digits": b'{"text": "x", "score": ' + b"9" * 5000 + b"}",
    "bytes that are not UTF-8": b'{"text": "\xff"}',
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_hostile_line_stops_with_its_place_or_is_counted(name, tmp_path, tokenizer):
    path = tmp_path / "l.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "the fox"}\n' + BAD_LINES[name] + b'\n{"text": "seven cats"}\n'))
    spec = DataSpec((Source(str(path)),), tokenizer, 8)
    with pytest.raises(UserError, match="l.jsonl.gz:2: ") as caught:
        build_cache(spec, tmp_path / "cache")
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
    cache = build_cache(dataclasses.replace(spec, on_bad="skip"), tmp_path / "cache")
    records = cache.manifest["sources"][0]["records"]
    assert (records["read"], records["bad"], records["kept"]) == (3, 1, 2)


def test_numbers_beyond_64_bits_are_kept_as_they_are(tmp_path, tokenizer):
    number = 10**30 + 1
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the fox", "answer": number}])
    spec = DataSpec((Source(str(path)),), tokenizer, 32, kind="prompts", template="tulu")
    assert build_cache(spec, tmp_path / "cache").record(0)["answer"] == number


@pytest.mark.parametrize("margin", [10**400, 1e300, float("nan"), True, "1"])
def test_a_margin_that_is_no_number_of_32_bits_is_named(margin, tmp_path, tokenizer):
    pair = {"chosen": [*GOOD["messages"]], "rejected": [GOOD["messages"][0], {"role": "assistant", "content": "no"}]}
    path = write_jsonl(tmp_path / "m.jsonl", [{**pair, "margin": margin}])
    spec = DataSpec((Source(str(path)),), tokenizer, 64, kind="preference", template="tulu")
    with pytest.raises(UserError, match="m.jsonl:1: margin is .*, not a finite number of 32 bits"):
        build_cache(spec, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage behind", "a broken member"])
def test_a_damaged_gzip_file_stops_after_the_line_it_was_read_to(damage, tmp_path, tokenizer):
    lines = b"".join(b'{"text": "the fox %d"}\n' % number for number in range(3000))
    good = gzip.compress(lines)
    middle = len(good) // 2
    data = {
        "cut": good[:-20],
        "flipped": good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :],
        "garbage behind": good + b"garbage",
        "a broken member": good + good[:-8] + bytes(8),
    }[damage]
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(data)
    for on_bad in ("error", "skip"):  # lines of a damaged part may have changed, so none is skipped over
        spec = DataSpec((Source(str(path)),), tokenizer, 8, on_bad=on_bad)
        with pytest.raises(UserError, match=r"d.jsonl.gz( after line \d+: |:\d+: |.*:\d+: )") as caught:
            build_cache(spec, tmp_path / "cache")
        assert "\n" not in str(caught.value)


def test_marks_of_byte_order_are_no_text_in_compressed_and_joined_files(tmp_path):
    mark, line = b"\xef\xbb\xbf", b'{"text": "x"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(mark + line) + gzip.compress(mark + line))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(mark + b'[{"text": "x"}, {"text": "x"}]'))
    (tmp_path / "c.csv").write_bytes(mark + b"text\nx\nx\n")
    (tmp_path / "d.jsonl").write_bytes(mark + line + mark + line)
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(mark + b"x\nx"))
    for path in sorted(tmp_path.iterdir()):
        read = [record for record, _ in read_records(Source(str(path), text_unit="line"))]
        assert read == [{"text": "x"}] * 2, path


def test_cells_of_a_megabyte_and_broken_rows_of_csv(tmp_path, tokenizer):
    path = tmp_path / "t.csv"
    long = "the fox " * 125_000
    rows = ["text,id", f'"{long}",1', "a,b,c", "alone", '"x"y,2', "\udcff,3", '"two\r\nlines",4', "ends,5"]
    path.write_bytes("\r\n".join(rows).encode("utf-8", "surrogateescape"))
    read = list(read_records(Source(str(path))))
    good = [record for record, _ in read if isinstance(record, dict)]
    assert [record["id"] for record in good] == ["1", "4", "5"]
    assert good[0]["text"] == long and good[1]["text"] == "two\r\nlines"
    assert [where for _, where in read] == [f"{path}:{line}" for line in (2, 3, 4, 5, 6, 7, 9)]
    bad = [str(record) for record, _ in read if not isinstance(record, dict)]
    for says, message in zip(("3 cells, but the header has 2", "1 cells", "broken CSV", "not UTF-8"), bad, strict=True):
        assert says in message
    spec = DataSpec((Source(str(path), limit=3),), tokenizer, 8)
    with pytest.raises(UserError, match="t.csv:3: 3 cells"):
        build_cache(spec, tmp_path / "cache")
    path.write_text("text,text\na,b\n")
    with pytest.raises(UserError, match="t.csv:1: the header names column 'text' twice"):
        list(read_records(Source(str(path))))


def empty(folder):
    return folder.joinpath("e.jsonl").write_text("\n\n") and str(folder / "e.jsonl")


def broken_gzip(folder):
    data = gzip.compress(b'{"text": "x"}\n' * 5000)
    return (folder / "b.jsonl.gz").write_bytes(data[:-20]) and str(folder / "b.jsonl.gz")


def broken_parquet(folder):
    return (folder / "b.parquet").write_bytes(b"PAR1 not a table") and str(folder / "b.parquet")


def not_utf8(folder):
    return (folder / "l.txt").write_bytes("größe".encode("latin-1")) and str(folder / "l.txt")


def broken_list(folder):
    return (folder / "l.json").write_text('[{"text": "x"}, ') and str(folder / "l.json")


def unknown_kind(folder):
    return (folder / "t.docx").write_text("x") and str(folder / "t.docx")


def bare_folder(folder):
    (folder / "bare").mkdir()
    return str(folder / "bare")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: f"{folder}/none.jsonl", "no file at .*none.jsonl; give a file, a glob or a folder that exists"),
        (lambda folder: f"{folder}/*.parquet", r"no file at .*\*.parquet"),
        (bare_folder, "folder .*bare holds no file that ends in .jsonl"),
        (unknown_kind, "t.docx ends in none of .jsonl"),
        (empty, "e.jsonl gave nothing to train on .it holds no records"),
        (broken_gzip, "cannot read .*b.jsonl.gz"),
        (broken_parquet, "b.parquet is not a readable parquet file"),
        (not_utf8, "l.txt:1: not UTF-8 text: invalid start byte at byte 3 of the line"),
        (broken_list, "l.json is not valid JSON"),
        (lambda folder: "hf:" + bare_folder(folder), "cannot load hf:.*bare"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line(make, message, tmp_path, tokenizer):
    spec = DataSpec((Source(make(tmp_path)),), tokenizer, 32)
    with pytest.raises(UserError, match=message) as caught:
        build_cache(spec, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not [p for p in tmp_path.glob("cache/*") if not p.name.startswith(".lock")]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DataSpec((), "sp:t", 8), "sources is empty"),
        (lambda: DataSpec((Source("a"),), "sp:t", 1), "sequence_length 1 must be at least 2"),
        (
            lambda: DataSpec((Source("a"),), "sp:t", 8, packing="first_fit"),
            "data.packing: 'first_fit' is not one of 'concat'",
        ),
        (lambda: DataSpec((Source("a"),), "sp:t", 8, kind="chat"), "kind 'chat' needs a template"),
        (lambda: DataSpec((Source("a"),), "sp:t", 8, template="tulu"), "template 'tulu' needs kind 'chat'"),
        (lambda: DataSpec((Source("a"),), "sp:t", 8, kind="chat", template="tullu"), "unknown template 'tullu'"),
        (lambda: DataSpec((Source("a"),), "sp:t", 8, temperature=0.0), "data.temperature: 0.0 is not a number above 0"),
        (lambda: DataSpec((Source("a", 1.0), Source("b")), "sp:t", 8), "source b has no weight but others have"),
        (lambda: Source("a", weight=0.0), "weight 0.0 of source a must be above 0"),
        (lambda: Source("a", count=3, fraction=0.5), "source a has both count and fraction"),
        (lambda: Source("a", limit=0), "limit 0 of source a must be above 0"),
        (lambda: Source("a", fields={"bot": "x"}), "fields of a name the role 'bot'; use system, user, assistant"),
        (lambda: Source("a", text_unit="word"), "text_unit: 'word' is not one of 'file', 'line', 'paragraph'"),
        (
            lambda: DataSpec.from_dict({"tokenizer": "t", "sequence_lenght": 8}),
            "DataSpec has no field 'sequence_lenght'",
        ),
        (lambda: DataSpec.from_dict({"tokenizer": "t"}), "DataSpec needs the field 'sequence_length'"),
        (lambda: DataSpec.from_dict({"sources": [{"file": "a"}]}), "Source has no field 'file'"),
        (lambda: DataSpec.from_dict({"sources": [7]}), "7 is not the fields of a Source"),
        (lambda: DataSpec.from_dict([1]), "a specification is an object whose sources are a list"),
        (lambda: DataSpec((Source("a"),), "sp:t", "8"), "data.sequence_length: '8' is not a whole number"),
        (lambda: DataSpec((Source("a"),), "sp:t", 8, seed=2**32), "data.seed: 4294967296 is not a whole number below"),
        (lambda: Source("a", skip=2.5), "data.sources.skip: 2.5 is not a whole number"),
        (lambda: Source("a", weight=float("inf")), "data.sources.weight: inf is not a number that is finite"),
    ],
)
def test_a_wrong_specification_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_start_token_that_the_vocabulary_lacks_is_one_line(tmp_path):
    from data_kit import hf_tokenizer

    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match="add_bos is set but tokenizer hf:.* has no start token"):
        build_cache(DataSpec((Source(str(path)),), hf_tokenizer(tmp_path / "t"), 8, add_bos=True), tmp_path / "cache")


def test_a_specification_survives_json(tmp_path):
    spec = DataSpec(
        (Source("a.jsonl", 0.5, fields={"user": "q", "assistant": "a"}), Source("hf:x/y:test", 0.5, count=10)),
        "sp:t", 64, kind="chat", template="olmo", packing="best_fit", temperature=2.0,
    )  # fmt: skip
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(DataSpec.from_dict(spec.to_dict()))


def test_every_kind_of_file_gives_the_same_records(tmp_path):
    import pyarrow
    import pyarrow.parquet

    records = [{"text": text} for text in corpus(7)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(lines.encode()))  # how C4 and Dolma are published
    (tmp_path / "d.json").write_text(json.dumps(records))
    (tmp_path / "e.json").write_text(lines)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "f.parquet")
    (tmp_path / "g.csv").write_text("text\n" + "".join(f'"{record["text"]}"\n' for record in records))
    for path in sorted(tmp_path.iterdir()):
        assert [record for record, _ in read_records(Source(str(path)))] == records, path
    together = [record for record, _ in read_records(Source(str(tmp_path)))]
    assert together == records * 7
    assert [record for record, _ in read_records(Source(f"{tmp_path}/*.jsonl*", skip=2, limit=3))] == records[2:5]


def test_a_text_file_is_one_document_or_one_for_each_line_or_paragraph(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    texts = {}
    for unit in ("file", "line", "paragraph"):
        read = read_records(Source(str(path), text_unit=unit))
        texts[unit] = [(record["text"], where.removeprefix(str(path))) for record, where in read]
    assert texts["file"] == [("one\ntwo\n\n\nthree\n", "")]
    assert texts["line"] == [("one", ":1"), ("two", ":2"), ("three", ":5")]
    assert texts["paragraph"] == [("one\ntwo", ":1"), ("three", ":5")]


def test_prompt_and_completion_columns_are_a_conversation(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "2 + 2 =", "completion": " 4"}])
    cache = build_cache(chat(path, tokenizer, template="plain"), tmp_path / "cache")
    vocabulary = load_tokenizer(tokenizer)
    batch = {name: array[0] for name, array in cache.read([0]).items()}
    assert vocabulary.decode(batch["tokens"][batch["segment_ids"] > 0]) == "<s>2 + 2 = 4</s>"
    assert vocabulary.decode(batch["targets"][batch["loss_weights"] > 0]) == " 4</s>"


@pytest.mark.filterwarnings("default")
def test_a_datasets_folder_on_disk_is_read_by_its_content(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")

    records = [{"text": text} for text in corpus(20)]
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "saved")
    spec = DataSpec((Source(f"hf:{tmp_path / 'saved'}"),), tokenizer, 64)
    cache = build_cache(spec, tmp_path / "cache")
    assert cache.manifest["sources"][0]["records"]["kept"] == 20
    files = [fact["path"] for fact in cache.manifest["sources"][0]["files"]]
    assert any(path.endswith(".arrow") for path in files)
