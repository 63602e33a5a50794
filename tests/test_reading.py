"""The reader of files: bounded, of the expected types, or one line; and names that can be folders."""

import json
import os
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from easylm_jax.config import MakeData, Recipe
from easylm_jax.runtime.files import atomic_write, write_json, write_lines, write_sealed_json
from models import reading
from models.durable import sync, sync_tree
from models.errors import UserError
from models.reading import Damaged


class Inner(TypedDict, total=False):
    share: float | None


class Facts(TypedDict):
    name: str
    count: int
    kind: Literal["a", "b"]
    pairs: dict[str, tuple[int, int | None]]
    inner: NotRequired[list[Inner]]


WHOLE = {"name": "n", "count": 3, "kind": "a", "pairs": {"x": [1, None]}, "inner": [{"share": 1}, {}], "more": 5}


@pytest.mark.parametrize(
    "change, says",
    [
        ({"name": 3}, "name should be text, not 3"),
        ({"count": "3"}, "count should be a whole number, not '3'"),
        ({"count": True}, "count should be a whole number, not True"),
        ({"count": 3.5}, "count should be a whole number, not 3.5"),
        ({"kind": "c"}, "kind should be one of"),
        ({"pairs": []}, "pairs should be an object, not []"),
        ({"pairs": {"x": [1]}}, "pairs.x should be a list, not [1]"),
        ({"pairs": {"x": [1, "a"]}}, "pairs.x[1] should be int | None, not 'a'"),
        ({"inner": [{"share": "all"}]}, "inner[0].share should be float | None, not 'all'"),
    ],
)
def test_values_of_other_types_are_named_with_the_way_to_them(change, says, tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, WHOLE)
    assert reading.read_json(path, Facts) == WHOLE
    write_json(path, {**WHOLE, **change})
    with pytest.raises(Damaged) as caught:
        reading.read_json(path, Facts, mend="do it again")
    assert str(path) in str(caught.value) and says in str(caught.value) and str(caught.value).endswith("do it again")


@pytest.mark.parametrize("name", ["name", "count", "kind", "pairs"])
def test_a_missing_entry_is_named(name):
    without = {key: value for key, value in WHOLE.items() if key != name}
    assert reading.fault(Facts, without) == f"there is no {name!r}"
    assert reading.fault(dict[str, Facts], {"a": without}) == f"a has no {name!r}"


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON: 'utf-8' codec"),
        (b"[" * 10**6, "nest deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nest deeper than 64"),
        (b"1" * 5000, "a whole number of 5000 digits"),
        (b'"\\ud800"', "surrogates not allowed"),
    ],
)
def test_what_is_no_json_too_deep_or_too_large_is_one_short_line(data, says):
    with pytest.raises(Damaged) as caught:
        reading.parse_json(data, Any, "facts.json")
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_pairs_of_surrogates_and_numbers_that_are_not_finite_are_read():
    assert reading.parse_json(b'["\\ud83d\\ude00", NaN, 18446744073709551615]', list[Any], "x")[::2] == [
        "😀",
        2**64 - 1,
    ]


def test_a_file_that_is_too_large_or_no_file_is_one_line(tmp_path):
    (tmp_path / "large.json").write_text("[" + "1," * 1000 + "1]")
    with pytest.raises(Damaged, match="it has 2,003 bytes, more than 100"):
        reading.read_json(tmp_path / "large.json", list[int], limit=100)
    with pytest.raises(Damaged, match="it is not a file"):
        reading.read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for read in (reading.read_json, reading.read_array, lambda path: list(reading.read_lines(path))):
        with pytest.raises(Damaged, match="it is not a file"):
            read(tmp_path / "pipe")
    with pytest.raises(Damaged, match="No such file"):
        reading.read_json(tmp_path / "nowhere.json")


def test_lines_are_read_up_to_one_that_a_killed_process_cut(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n\n{"text": "a\u2028b"}\n{"step"')
    assert list(reading.read_lines(path, last_may_be_cut=True)) == [{"step": 1}, {"text": "a\u2028b"}]
    with pytest.raises(Damaged, match="line 4, is damaged"):
        list(reading.read_lines(path))
    path.write_text('{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(Damaged, match="line 2, is damaged .should be an object"):
        list(reading.read_lines(path, last_may_be_cut=True))


@pytest.mark.parametrize("relative", ["", ".", "..", "a/../../b", "/etc/passwd", "a\0b", "x" * 5000])
def test_a_path_out_of_its_folder_is_refused(relative, tmp_path):
    if relative == ".":
        assert not reading.is_inside(relative)
    with pytest.raises(Damaged, match="is no path inside its folder"):
        reading.inside(tmp_path, relative, "index.json")
    assert reading.inside(tmp_path, "a/b.npy", "index.json") == tmp_path / "a" / "b.npy"


def test_a_sealed_object_shows_any_change(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed_json(path, {"name": "ä", "numbers": [1, 2.5, None]})
    whole = path.read_bytes()
    assert reading.read_sealed(path) == ({"name": "ä", "numbers": [1, 2.5, None]}, True)
    assert json.loads(whole)["numbers"] == [1, 2.5, None]
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(Damaged):
            reading.read_sealed(path)
    path.write_text('{"name": "of a version without seals"}')
    assert reading.read_sealed(path) == ({"name": "of a version without seals"}, False)


# Writing


def test_files_written_whole_are_synced_before_they_are_renamed_and_their_folder_after(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.path.realpath(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda old, new: (done.append(f"rename to {new}"), replace(old, new))
    )
    for write, name in ((write_json, "a.json"), (write_lines, "b.jsonl"), (write_sealed_json, "c.json")):
        done.clear()
        write(tmp_path / name, {} if name != "b.jsonl" else [])
        temporary, renamed, folder = done
        assert temporary.startswith(f"{tmp_path}/.{name}.") and renamed == f"rename to {tmp_path / name}"
        assert folder == str(tmp_path)


def test_a_write_that_fails_leaves_nothing_beside_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a.json") as file:
        file.write(b"half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_whole_trees_are_synced(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    seen = set()
    monkeypatch.setattr(os, "fsync", lambda file: seen.add(os.path.realpath(f"/proc/self/fd/{file}")))
    sync_tree(tmp_path)
    assert seen == {str(tmp_path / name) for name in ("a", "a/b", "a/b/file")} | {str(tmp_path)}
    sync(tmp_path / "a")


# Names


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "/a",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x1b[0m",
        " a",
        "a ",
        "x" * 129,
        "ä" * 65,
        "\ud800",
    ],
)
def test_names_of_stages_and_recipes_are_names_of_folders_or_refused(name):
    with pytest.raises(UserError, match="cannot be the name of a folder") as caught:
        Recipe("recipe", (MakeData(name, function="a:b"),))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        Recipe(name, ())


def test_a_recipe_may_not_be_called_as_the_shared_cache():
    with pytest.raises(UserError, match="folder of packed data"):
        Recipe("cache", ())


@pytest.mark.parametrize("name", ["dpo-0", "grpo lr 1e-3", "Étape_2", "x" * 128, "qwen2.5-math"])
def test_other_names_are_taken(name):
    assert Recipe(name, (MakeData(name, function="a:b"),)).name == name
