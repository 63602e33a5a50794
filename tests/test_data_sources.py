"""Compressed files and `datasets` folders: chosen files, and records as they arrive."""

import gzip
import json

import pytest

from easylm_jax.data import Source
from easylm_jax.data.sources import read_records
from models.errors import UserError

LINES = "".join(json.dumps({"text": f"é {i}"}) + "\n" for i in range(2000))


def texts(source):
    return [record["text"] for record, _ in read_records(source)]


def compressed(text):
    import pyarrow

    return pyarrow.Codec("zstd").compress(text.encode(), asbytes=True)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "A.JSONL.GZ", "a.json.zst"])
def test_compressed_lines_read_as_the_plain_file(name, tmp_path):
    pack = compressed if name.endswith("zst") else lambda text: gzip.compress(text.encode())
    (tmp_path / name).write_bytes(pack(LINES) + pack(LINES))  # both formats may hold several streams
    assert texts(Source(str(tmp_path / name))) == [f"é {i}" for i in range(2000)] * 2
    assert next(read_records(Source(str(tmp_path / name), skip=7)))[1] == f"{tmp_path / name}:8"


def test_compressed_text_and_lists_are_read(tmp_path):
    (tmp_path / "t.txt.zst").write_bytes(compressed("one\ntwo\n"))
    assert texts(Source(str(tmp_path / "t.txt.zst"), text_unit="line")) == ["one", "two"]
    (tmp_path / "l.json.zst").write_bytes(compressed('[{"text": "a"}, {"text": "b"}]'))
    assert texts(Source(str(tmp_path / "l.json.zst"))) == ["a", "b"]


@pytest.mark.parametrize(
    "damage, message", [(lambda b: b[: len(b) // 2], "[Tt]runcated"), (lambda b: b"x" * 40, "ZSTD")]
)
def test_a_damaged_zstandard_file_is_one_line(damage, message, tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(damage(compressed(LINES)))
    with pytest.raises(UserError, match=rf"cannot read .*a.jsonl.zst after line \d+: .*{message}") as caught:
        texts(Source(str(tmp_path / "a.jsonl.zst")))
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    for name, count in (("one", 3), ("two", 2)):
        (tmp_path / "set" / name).mkdir(parents=True)
        lines = "".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(count))
        (tmp_path / "set" / name / "x.jsonl").write_text(lines)
    return tmp_path / "set"


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_named_set_can_be_chosen(streaming, folder):
    path, ones = f"hf:{folder}", ["one 0", "one 1", "one 2"]
    assert texts(Source(path, data_dir="one", streaming=streaming)) == ones
    assert texts(Source(path, data_files="two/*.jsonl", streaming=streaming)) == ["two 0", "two 1"]
    both = Source(path, data_files=["one/x.jsonl", "two/x.jsonl"], streaming=streaming, skip=1, limit=3)
    assert texts(both) == ["one 1", "one 2", "two 0"]


def test_a_set_that_breaks_while_streaming_is_one_line(folder):
    (folder / "bad.jsonl").write_text('{"text": "one"}\n{"te')
    with pytest.raises(UserError, match="cannot read hf:.*set: JSON parse error") as caught:
        texts(Source(f"hf:{folder}", data_files="bad.jsonl", streaming=True))
    assert "\n" not in str(caught.value)


def test_options_of_named_sets_are_refused_elsewhere(tmp_path):
    for options in ({"data_files": "a"}, {"data_dir": "a"}, {"streaming": True}):
        with pytest.raises(UserError, match=f"{next(iter(options))} of source a.jsonl is for hf: sets only"):
            Source("a.jsonl", **options)


def test_a_saved_set_has_no_files_to_choose_from(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "saved"))
    assert texts(Source(f"hf:{tmp_path / 'saved'}", streaming=True)) == ["a"]
    with pytest.raises(UserError, match="made by save_to_disk has no data_files"):
        texts(Source(f"hf:{tmp_path / 'saved'}", data_files="x.jsonl"))
