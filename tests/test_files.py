"""Files that are written whole."""

import json

import pytest

from easylm_jax.runtime.files import atomic_write, write_json, write_lines


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_lines(path, [{"text": "old"}])

    def records():
        yield {"text": "new"}
        raise RuntimeError("cut short")

    with pytest.raises(RuntimeError, match="cut short"):
        write_lines(path, records())
    assert path.read_text() == '{"text": "old"}\n'


def test_records_are_one_a_line_whatever_their_text_holds(tmp_path):
    records = [{"text": "a\u2028b\nc"}, {"text": "é"}]
    path = tmp_path / "folder" / "lines.jsonl"
    write_lines(path, iter(records))
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line) for line in lines] == records


def test_a_file_written_whole_leaves_nothing_beside_it(tmp_path):
    write_json(tmp_path / "table.json", {"rows": [1]})
    with atomic_write(tmp_path / "page.html") as file:
        file.write(b"<p>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "table.json"]
    assert json.loads((tmp_path / "table.json").read_text()) == {"rows": [1]}
