"""Curation: decontamination and deduplication against plain definitions, planted rows, resumption, bad input."""

import gzip
import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easylm_jax.cli.main import main
from easylm_jax.data.curation import contamination, job, minhash, rows, texts
from easylm_jax.data.curation.decontaminate import decontaminate
from easylm_jax.data.curation.dedup import dedup
from models import reading
from models.errors import UserError

WORDS = [f"{a}{b}{c}" for a, b, c in itertools.product("bcdfgklm", "aeio", "nprstvxz")]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(path):
    return list(reading.read_lines(path))


def removed(folder):
    with gzip.open(folder / "removed.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def text(seed, words=100):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ROWS", 7)


# ── decontamination ──────────────────────────────────────────────────────────────────────────────────────────────────


def plant(kind, question, seed):
    """A training row that holds a test question of 100 words in some form, between other words."""
    words, before, after = question.split(), text(seed, 30), text(seed + 1, 30)
    if kind == "exact":
        return {"text": question}
    if kind == "shifted":
        return {"messages": [{"role": "user", "content": f"{before} {question} {after}"},
                             {"role": "assistant", "content": "yes"}]}  # fmt: skip
    if kind == "cased":
        return {"prompt": f"{before} {question.title()} {after}"}
    if kind == "punctuated":
        return {"question": f"{before} " + ", ".join(words).replace(words[3], f"«{words[3]}»") + f"!? {after}"}
    if kind == "pieces":  # half of the words, in pieces of ten
        return {"text": " ".join(" ".join(words[at : at + 10]) + " other" for at in range(0, 100, 20))}
    return {"text": f"{before} {' '.join(words[: int(kind)])} {after}"}


KINDS = ("exact", "shifted", "cased", "punctuated", "pieces", "40", "49", "50", "51", "60")


def test_every_planted_row_at_or_above_the_threshold_goes_and_none_below(tmp_path, small_blocks):
    questions = [text(1000 + i) for i in range(len(KINDS))]
    clean = [{"text": text(i, 150)} for i in range(50)]
    planted = [
        plant(kind, question, 5000 + 2 * i) for i, (kind, question) in enumerate(zip(KINDS, questions, strict=True))
    ]
    mixed = [row for pair in zip(clean, planted, strict=False) for row in pair] + clean[len(planted) :]
    train = write(tmp_path / "train.jsonl", mixed)
    test = write(tmp_path / "test.jsonl", [{"question": question, "answer": "4"} for question in questions])
    summary = decontaminate([train], [test], tmp_path / "out", tmp_path / "report.md")
    gone = [row for kind, row in zip(KINDS, planted, strict=True) if kind not in ("40", "49")]
    assert read(tmp_path / "out/train.jsonl") == [row for row in mixed if row not in gone]
    assert [entry["row"] for entry in removed(tmp_path / "out")] == gone
    shares = [entry["share"] for entry in removed(tmp_path / "out")]
    assert shares == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.51, 0.6]
    assert summary["removed"] == 8 and summary["table"][0]["contaminated"] == 8
    report = (tmp_path / "report.md").read_text()
    assert "8 of 60 training rows were removed" in report and "8 of 10" in report and "above 2%" in report
    assert (tmp_path / "report.tsv").read_text().splitlines()[0] == "train\ttest.jsonl"


def naive_share(question, document, n):
    """Covered words of a question over its words, from the definition."""
    q, grams = texts.words(question), set()
    d = texts.words(document)
    grams = {tuple(d[i : i + n]) for i in range(len(d) - n + 1)}
    covered = [any(tuple(q[s : s + n]) in grams for s in range(max(0, i - n + 1), min(i, len(q) - n) + 1))
               for i in range(len(q))]  # fmt: skip
    return sum(covered), len(q)


few = st.lists(st.sampled_from("abcd"), min_size=0, max_size=24).map(" ".join)


@settings(deadline=None, max_examples=150)
@given(st.lists(few, min_size=1, max_size=4), st.lists(few, min_size=1, max_size=4), st.sampled_from([1, 2, 3, 8]))
def test_covered_words_are_those_of_the_definition(questions, documents, n):
    index = contamination.build_index([[q] for q in questions], n, 0.5)
    hits = contamination.find(index, [[d] for d in documents])
    found = {(int(r), int(t)): int(c) for r, t, c in zip(*hits, strict=True)}
    for (r, d), (t, q) in itertools.product(enumerate(documents), enumerate(questions)):
        covered, length = naive_share(q, d, n)
        assert found.get((r, t), 0) == covered
        if length >= n:
            assert index.needed[t] == max(1, math.ceil(length / 2))


def test_no_ngram_goes_from_one_turn_into_the_next():
    index = contamination.build_index([["a b c d e f g h"]], 8, 0.5)
    assert len(contamination.find(index, [["a b c d", "e f g h"]]).row) == 0
    assert contamination.find(index, [["x a b c d e f g h"]]).covered.tolist() == [8]
    index = contamination.build_index([["a b c d", "e f g h"]], 8, 0.5)
    assert len(contamination.find(index, [["a b c d e f g h"]]).row) == 0


def test_only_what_a_model_is_asked_is_compared(tmp_path):
    leak = text(1)
    test = write(tmp_path / "test.jsonl", [{"question": text(2), "answer": leak}, {"question": leak, "answer": ""}])
    turns = [{"role": "user", "content": text(3)}, {"role": "assistant", "content": leak}]
    train = write(
        tmp_path / "a.jsonl", [{"messages": turns}, {"question": text(4), "answer": leak}, {"body": {"x": [leak]}}]
    )
    decontaminate([train], [test], tmp_path / "out")
    assert [entry["test"] for entry in removed(tmp_path / "out")] == [
        "test.jsonl row 1"
    ]  # a row without a known column
    with pytest.raises(UserError, match=r"a.jsonl:1 has no column 'answer'; it has messages"):
        decontaminate([train], [test], tmp_path / "other", train_column="answer")
    with pytest.raises(UserError, match="--column"):
        decontaminate([train], [write(tmp_path / "odd.jsonl", [{"frage": "x"}])], tmp_path / "third")


def test_a_whole_file_goes_where_it_holds_more_of_an_unseen_set(tmp_path):
    questions = [text(i) for i in range(50)]
    test = write(tmp_path / "test.jsonl", [{"prompt": q} for q in questions])
    bad = write(tmp_path / "bad.jsonl", [{"text": q} for q in questions[:2]] + [{"text": text(90)}])
    good = write(tmp_path / "good.jsonl", [{"text": questions[0]}, {"text": text(91)}])
    summary = decontaminate([bad, good], [test], tmp_path / "out", drop_sets=True)
    assert [row["suspect"] for row in summary["table"]] == [True, False]  # 4 % and 2 %, which is not above 2 %
    assert (tmp_path / "out/bad.jsonl").read_text() == "" and len(read(tmp_path / "out/good.jsonl")) == 1


def test_kept_lines_are_the_same_bytes_whatever_the_workers_and_a_second_run_does_nothing(tmp_path, small_blocks):
    lines = [b'{"text":  "%s", "x": 1.50}' % text(i, 40).encode() for i in range(30)]
    with gzip.open(tmp_path / "train.jsonl.gz", "wb") as file:
        file.write(b"\r\n".join(lines) + b"\n\n")
    test = write(tmp_path / "test.jsonl", [{"text": text(4, 40)}])
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        first = decontaminate([str(tmp_path / "train.jsonl.gz")], [test], out, workers=workers)
        kept = (out / "train.jsonl").read_bytes()
        assert kept == b"".join(line + b"\n" for i, line in enumerate(lines) if i != 4)
        again = decontaminate([str(tmp_path / "train.jsonl.gz")], [test], out, workers=1)
        assert again == first and sorted(p.name for p in out.iterdir()) == [
            ".curation.json", ".lock", "removed.jsonl.gz", "train.jsonl"]  # fmt: skip
    assert (tmp_path / "out1/removed.jsonl.gz").read_bytes() == (tmp_path / "out2/removed.jsonl.gz").read_bytes()


def test_a_stopped_job_goes_on_and_ends_with_the_same_files(tmp_path, small_blocks, monkeypatch):
    train = write(tmp_path / "train.jsonl", [{"text": text(i % 25, 40)} for i in range(60)])
    dedup([train], tmp_path / "whole")
    save, made = job.save_part, []

    def stopping(path, block, arrays):
        made.append(block.number)
        if len(made) == 4:
            raise KeyboardInterrupt
        save(path, block, arrays)

    monkeypatch.setattr(job, "save_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        dedup([train], tmp_path / "stopped")
    assert not (tmp_path / "stopped/train.jsonl").exists()
    dedup([train], tmp_path / "stopped")
    assert made == [0, 1, 2, 3, *range(3, 9)]
    for name in ("train.jsonl", "removed.jsonl.gz"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_work_of_other_parameters_and_damaged_work_are_one_line(tmp_path, small_blocks, monkeypatch):
    train = write(tmp_path / "train.jsonl", [{"text": text(i, 20)} for i in range(10)])
    dedup([train], tmp_path / "done")
    with pytest.raises(UserError, match=r"threshold 0.8 → 0.9.*delete the folder, or choose another --out"):
        dedup([train], tmp_path / "done", threshold=0.9)
    monkeypatch.setattr(job.Job, "write_kept", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dedup([train], tmp_path / "begun")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"ngram 5 → 4"):
        dedup([train], tmp_path / "begun", ngram=4)
    part = tmp_path / "begun/.work/000000.npz"
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(UserError, match="000000.npz is damaged"):
        dedup([train], tmp_path / "begun")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x.npz")

    train = write(tmp_path / "train.jsonl", [{"text": "a"}])
    monkeypatch.setattr(job, "save_part", full)
    with pytest.raises(UserError, match="cannot write x.npz: No space left on device; make room"):
        dedup([train], tmp_path / "out")


@pytest.mark.parametrize(
    "line, says", [("{", "broken JSON"), ("[1]", "not a JSON object"), ('{"a": 1e999}', "too large")]
)
def test_a_row_that_is_no_object_is_named(tmp_path, capsys, line, says):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    assert main(["data", "dedup", str(tmp_path / "train.jsonl"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/train.jsonl:2" in error and says in error and error.count("\n") == 1


def test_gsm8k_test_rows_are_found_in_c4_and_gsm8k_rows(tmp_path, shared_data):
    questions = [row["question"] for row in read(shared_data / "gsm8k/test.jsonl")]
    long = [q for q in questions if len(texts.words(q)) >= 40][:8]
    train = [*read(shared_data / "gsm8k/train.jsonl")[:200], {"text": text(1) + long[0] + text(2)}]
    (tmp_path / "more").mkdir()
    files = [
        write(tmp_path / "more/train.jsonl", train),
        str(shared_data / "c4_sample/c4-validation-00000-of-01637.parquet"),
    ]
    summary = decontaminate(files, [str(shared_data / "gsm8k/test.jsonl")], tmp_path / "out", workers=1)
    kept = read(tmp_path / "out/train.jsonl")
    plain = {i for i, row in enumerate(train) if row not in kept}
    expected = set()
    for i, row in enumerate(train):
        asked = row.get("question") or row["text"]
        if any(2 * c >= n for c, n in (naive_share(q, asked, 8) for q in (questions if i in plain else long))):
            expected.add(i)
    assert plain == expected and 200 in plain
    assert summary["files"][1]["kept"] == summary["files"][1]["rows"] == 40
    assert read(tmp_path / "out/c4-validation-00000-of-01637.jsonl")[0].keys() == {"text"}


# ── deduplication ────────────────────────────────────────────────────────────────────────────────────────────────────


def shingles(value, n=5):
    words = value.casefold().split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def naive_groups(values, threshold):
    """The first row of the group of each row, comparing all pairs."""
    first = list(range(len(values)))
    sets = [shingles(value) for value in values]
    for i, j in itertools.combinations(range(len(values)), 2):
        if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]):
            low, high = sorted((first[i], first[j]))
            first = [low if f == high else f for f in first]
    return first


def near(seed, words, changed):
    """A text of which the last words are replaced."""
    original = text(seed, words).split()
    return " ".join(original[: words - changed] + text(seed + 777 + changed, changed).split())


def test_groups_are_those_of_all_pairs(tmp_path, small_blocks):
    values = [near(seed, 60, changed) for seed in range(12) for changed in (0, 2, 5, 6, 7, 9, 30)]
    values += [values[3].upper().replace(" ", "  "), "Two words", "two  WORDS", "", "other"]
    random.Random(0).shuffle(values)
    path = write(tmp_path / "train.jsonl", [{"text": value, "id": i} for i, value in enumerate(values)])
    for threshold in (0.5, 0.8, 0.9):
        first = naive_groups([value or f"empty{i}" for i, value in enumerate(values)], threshold)
        out = tmp_path / str(threshold)
        summary = dedup([path], out, threshold=threshold)
        assert [row["id"] for row in read(out / "train.jsonl")] == [i for i, f in enumerate(first) if f == i]
        assert {entry["row"]["id"]: entry["group"] for entry in removed(out)} == {
            i: f for i, f in enumerate(first) if f != i}  # fmt: skip
        assert summary["removed_exact"] == 2 and summary["without_text"] == 1
    assert dedup([path], tmp_path / "exact", exact_only=True)["kept"] == len(values) - 2


def test_candidates_are_as_frequent_as_the_theory_says():
    bands, width = 8, 4
    signer = minhash.Signer(5, bands, width)
    random_ = np.random.default_rng(0)
    for similarity in (0.3, 0.5, 0.7):
        hits, trials, size = 0, 600, 90
        shared = round(2 * similarity * size / (1 + similarity))
        for _ in range(trials):
            values = np.unique(random_.integers(0, 2**32, 3 * size, np.uint32))
            random_.shuffle(values)
            a, b = values[:size], np.concatenate([values[:shared], values[size : 2 * size - shared]])
            both, union = minhash.jaccard(np.sort(a), np.sort(b))
            hits += bool((signer.band_keys(np.sort(a)) == signer.band_keys(np.sort(b))).any())
        expected = minhash.candidate_probability(both / union, bands, width)
        deviation = math.sqrt(expected * (1 - expected) / trials)
        assert abs(hits / trials - expected) < 4 * deviation + 0.01, (similarity, hits / trials, expected)


def test_bands_miss_a_pair_at_the_threshold_rarely():
    for threshold in (0.3, 0.5, 0.8, 0.95):
        bands, width = minhash.bands_for(threshold)
        assert 1 - minhash.candidate_probability(threshold, bands, width) <= minhash.MISS
        wider = width + 1
        assert 1 - minhash.candidate_probability(threshold, minhash.HASHES // wider, wider) > minhash.MISS


def test_near_duplicates_of_real_pages_are_those_of_all_pairs(tmp_path, shared_data):
    source = shared_data / "curation/web_articles/near_duplicates.jsonl.gz"
    with gzip.open(source, "rt") as file:
        pages = [json.loads(line) for line in file][:240]
    path = write(tmp_path / "pages.jsonl", pages)
    dedup([path], tmp_path / "out")
    first = naive_groups([page["text"] for page in pages], 0.8)
    assert read(tmp_path / "out/pages.jsonl") == [page for i, page in enumerate(pages) if first[i] == i]
    assert all(pages[i]["id"] == pages[f]["id"] for i, f in enumerate(first))  # no two pages are one group


def test_the_commands_print_and_write_what_they_kept(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", [{"text": text(1)}, {"text": text(1)}, {"text": text(2)}])
    test = write(tmp_path / "test.jsonl", [{"text": text(2)}])
    assert main(["data", "dedup", train, "--out", str(tmp_path / "a"), "--json", str(tmp_path / "a.json")]) == 0
    assert "kept 2 of 3 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["removed_exact"] == 1
    kept = str(tmp_path / "a/train.jsonl")
    assert main(["data", "decontaminate", kept, "--against", test, "--out", str(tmp_path / "b")]) == 0
    assert "kept 1 of 2 rows" in capsys.readouterr().out and (tmp_path / "b/report.md").is_file()
    assert read(tmp_path / "b/train.jsonl") == [{"text": text(1)}]
