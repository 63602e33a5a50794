"""Filters, mixtures and statistics of rows."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easylm_jax.cli.main import main
from easylm_jax.data.curation import mix, quality, statistics
from easylm_jax.data.curation.filter import filter_rows
from models import reading
from models.errors import UserError

PROSE = (
    "The committee of the town met on Tuesday to talk about the bridge that crosses the river, and most of the people "
    "who came have lived with the noise of the trains for years. They asked for a wall, for new trees and for a plan "
    "that would be finished before the winter; the mayor promised to look at each of these and to answer in a month."
)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(path):
    return list(reading.read_lines(path))


def said(answer):
    return {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": answer}]}


# (rule, a row that it leaves out, a row that it keeps)
CASES = [
    ("empty", said(" "), said("x")),
    ("length(least=3,most=5)", {"text": "one two"}, {"text": "one two three"}),
    ("length(least=3,most=5)", {"text": "1 2 3 4 5 6"}, {"text": "1 2 3 4 5"}),
    ("cjk", {"text": "a" * 95 + "漢" * 5}, {"text": "a" * 96 + "漢" * 4}),
    ("cutoff", said("As of my last update in 2023, no."), said("The last update of the page was in 2023.")),
    ("identity", said("I am ChatGPT, ask me."), said("Ask ChatGPT or a friend.")),
    ("identity", said("I was trained by OpenAI."), said("OpenAI was founded in 2015.")),
    ("special", {"text": "so <|im_end|> it ends"}, {"text": "a < b | c > d"}),
    ("special", said("done</s>"), said("<b>done</b>")),
    ("repeats", said("This sentence is said again. " * 3), said("This sentence is said again. " * 2)),
    ("repeats", said("- " + "This sentence is said again.\n" * 12), said("- " + "This sentence is said again.\n" * 5)),
    ("compression", {"text": "abc " * 200}, {"text": PROSE}),
    ("gopher_quality", {"text": "word " * 49}, {"text": PROSE}),
    ("gopher_quality", {"text": PROSE.replace(" ", " # ")}, {"text": PROSE}),
    ("gopher_quality", {"text": "0 1 2 3 17,000 " * 20}, {"text": PROSE}),
    ("gopher_repetition", {"text": "\n".join(["One line of it."] * 4 + PROSE.split(", "))}, {"text": PROSE}),
    ("gopher_repetition", {"text": "very good " * 60}, {"text": PROSE}),
]


@pytest.mark.parametrize("rules, bad, good", CASES)
def test_a_rule_leaves_out_the_one_and_keeps_the_other(rules, bad, good):
    (rule,) = quality.parse_rules(rules)
    assert rule(quality.row_of(bad, "x:1")) is not None
    assert rule(quality.row_of(good, "x:1")) is None


def test_language_is_that_of_the_text():
    (rule,) = quality.parse_rules("language(name=en, least=0.8)")
    german = "Der Ausschuss der Stadt sprach am Dienstag über die Brücke, die den Fluss überquert, und über den Lärm."
    assert rule(quality.Row(PROSE, "")) is None and rule(quality.Row(german, "")) == "language"
    assert rule(quality.Row("12 34", "")) == "language"


@pytest.mark.parametrize(
    "rules, says",
    [("cjkk", "no rule 'cjkk'; there are empty"), ("cjk(part=1)", "no option 'part' of cjk; its options: share"),
     ("length(least=few)", "least must be a number, not 'few'")],
)  # fmt: skip
def test_rules_that_are_none_are_one_line(tmp_path, rules, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        filter_rows([write(tmp_path / "a.jsonl", [{"text": "a"}])], tmp_path / "out", rules)


def test_the_first_rule_is_the_reason_and_reasons_sum_to_the_rows(tmp_path, capsys):
    rows = [said("I am Claude."), said(""), said("fine"), said("I am GPT-4. " * 5), said("x <|user|>")]
    path = write(tmp_path / "a.jsonl", rows)
    assert main(["data", "filter", path, "--out", str(tmp_path / "o"), "--json", str(tmp_path / "o.json")]) == 0
    summary = json.loads((tmp_path / "o.json").read_text())
    assert summary["left_out"] == {"identity": 2, "empty": 1, "special tokens": 1}
    assert summary["kept"] + sum(summary["left_out"].values()) == summary["rows"] == 5
    assert read(tmp_path / "o/a.jsonl") == [rows[2]] and "identity 2" in capsys.readouterr().out


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 9))
def test_copies_sum_to_what_is_wanted_and_differ_by_one(size, wanted, seed):
    copies = mix.copies_of(size, wanted, [seed])
    assert copies.sum() == wanted and copies.max() - copies.min() <= 1


def test_wanted_rows_of_counts_fractions_and_rates():
    assert mix.wanted_rows([10, 20], [3, 40], "counts") == [3, 40]
    assert mix.wanted_rows([10, 20], [0.25, 2.5], "fractions") == [2, 50]
    assert mix.wanted_rows([10, 20, 30], [1, 1, 1], "rates", 10) == [4, 3, 3]
    assert mix.wanted_rows([100, 20], [3, 1], "rates") == [60, 20]  # the second is used up


def test_a_mixture_has_the_rows_asked_for_in_any_order(tmp_path, monkeypatch, capsys):
    a = write(tmp_path / "a.jsonl", [{"a": i} for i in range(20)])
    b = write(tmp_path / "b.jsonl", [{"b": i} for i in range(5)])
    plain, mixed, again = (tmp_path / name for name in ("plain.jsonl", "mixed.jsonl", "again.jsonl"))
    command = ["data", "mix", a, b, "--fractions", "0.5,2.4", "--seed", "3"]
    assert main([*command, "--out", str(plain)]) == 0
    monkeypatch.setattr(mix, "_BUCKET_BYTES", 64)
    for out in (mixed, again):
        assert main([*command, "--shuffle", "--out", str(out)]) == 0
    assert mixed.read_bytes() == again.read_bytes() != plain.read_bytes()
    rows = read(plain)
    assert [("a" in row) for row in rows] == [True] * 10 + [False] * 12
    assert sorted(map(json.dumps, rows)) == sorted(map(json.dumps, read(mixed)))
    assert set(collections.Counter(row["b"] for row in rows[10:]).values()) == {2, 3}
    assert not list(tmp_path.glob(".mix-*")) and "10 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, says",
    [(["--counts", "1"], "1 counts for 2 sources"), (["--counts", "1,x"], "numbers separated by commas"),
     (["--counts", "1,1.5"], "whole numbers"), (["--fractions", "0,0"], "one above 0"),
     (["--fractions", "1,1", "--rows", "3"], "--rows goes with --rates"), (["--counts", "1,1"], "has no rows")],
)  # fmt: skip
def test_amounts_that_cannot_be_are_one_line(tmp_path, capsys, options, says):
    a, b = write(tmp_path / "a.jsonl", [{}]), write(tmp_path / "b.jsonl", [])
    assert main(["data", "mix", a, b, *options, "--out", str(tmp_path / "o.jsonl")]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error and not (tmp_path / "o.jsonl").exists()


def test_statistics_count_what_rows_hold(tmp_path, capsys):
    rows = [{**said("I am Claude"), "dataset": "x"}, {**said("no"), "dataset": "y"}, {**said("NO"), "dataset": "y"}]
    path = write(tmp_path / "a.jsonl", rows)
    assert main(["data", "stats", path, "--json", str(tmp_path / "s.json")]) == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["rows"] == 3 and summary["same_text"] == 1 and summary["dataset"] == {"y": 2, "x": 1}
    assert summary["turns"]["mean"] == 2 and summary["roles"] == {"user": 3, "assistant": 3}
    assert summary["rules"] == {"identity": 1} and summary["words"]["max"] == 6
    assert "3 rows" in capsys.readouterr().out
    assert main(["data", "stats", path, "--verify"]) == 2


def test_measures_of_coverage_and_diversity():
    assert statistics.entropy([1, 1, 1, 1]) == 2 and statistics.entropy([5, 0]) == 0
    assert statistics.gini([3, 3, 3]) == 0 and statistics.gini([0, 0, 0, 8]) == 0.75
    assert statistics.distinct([["a", "b"], ["a", "c"]], 1) == 0.75 and statistics.distinct([["a"]], 2) == 0
    same, other = [list("abcdef")] * 3, [list("abcdef"), list("ghijkl")]
    assert statistics.self_bleu(same) == pytest.approx(1) and statistics.self_bleu(other) == 0
    mixed = [list("abcdx"), list("abcdy")]
    expected = np.exp(np.mean(np.log([4 / 5, (3 + 1) / 5, (2 + 1) / 4, (1 + 1) / 3])))
    assert statistics.self_bleu(mixed) == pytest.approx(expected)
