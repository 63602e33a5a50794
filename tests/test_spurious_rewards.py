"""Rewards that say little about the answer: each gives what its rule says, on any text."""

import json
import random
from pathlib import Path

import pytest

from easylm_jax.config.expression import Expression
from easylm_jax.rewards import spurious, verifier
from models.errors import UserError


def last_word(response):
    return response.split()[-1] if response.split() else ""


HERE = f"{__name__}:last_word"


@pytest.mark.parametrize(
    ("response", "worth"),
    [
        (r"so \boxed{12}", 1), (r"\boxed{3} then \boxed{}", 0), (r"\boxed{} then \boxed{3}", 1), (r"\boxed 5$ ok", 1),
        (r"\boxed{never closed", 1), (r"\boxed{\frac{1}{2}}", 1), (r"\fbox{12}", 0), ("12", 0), ("", 0),
        (r"\boxed{.}", 0), (r"\boxed{:}", 0), ("\\boxed{\n \n}", 0), (r"\boxed{}12", 0), (r"\boxed", 0),
        (r"\boxed{wrong, but a box}", 1),
    ],
)  # fmt: skip
def test_format_asks_for_something_in_the_last_box(response, worth):
    assert spurious.boxed_format(response, {}) == worth


def test_a_box_is_read_to_its_own_brace():
    assert spurious.last_boxed(r"\boxed{a{b}c} and {d}") == "a{b}c"
    assert spurious.last_boxed(r"\boxed{a{b} and") == "a{b} and"
    assert spurious.last_boxed(r"\boxed 5$ ok $6$") == "5"
    assert spurious.last_boxed("none") is None


def test_r1_format_asks_for_both_tags_and_the_released_code_for_neither():
    def worth(response, **more):
        return spurious.boxed_format(response, {}, style="r1", **more)

    assert worth("<think>so</think> <answer> 7 </answer>") == 1
    assert worth("<answer>seven answers</answer>") == 1
    assert [worth(text) for text in ("7", "<answer>7", "<answer> </answer>", "</answer>", r"\boxed{7}")] == [0] * 5
    assert [worth(text, compat="spurious") for text in ("7", "<answer>7", "", "<answer> </answer>")] == [1, 1, 0, 0]
    with pytest.raises(UserError, match="style is 'r2'"):
        spurious.boxed_format("7", {}, style="r2")


def test_a_random_reward_is_the_draw_of_its_response_and_nothing_else():
    rng = random.Random(0)
    draws = [rng.random() for _ in range(4000)]
    earned = [spurious.random("any text", {"_draw": draw}, 0.3) for draw in draws]
    assert earned == [float(draw < 0.3) for draw in draws]
    assert abs(sum(earned) / 4000 - 0.3) < 0.03
    assert verifier("random(0.5)")("x", {"_draw": 0.49}) == 1
    assert verifier("random(0)")("x", {"_draw": 0.0}) == 0 and verifier("random(1)")("x", {"_draw": 0.999}) == 1
    with pytest.raises(UserError, match="no _draw here"):
        spurious.random("x", {}, 0.5)
    with pytest.raises(UserError, match="share must be a number from 0 to 1"):
        spurious.random("x", {"_draw": 0.5}, 1.5)


def test_python_is_the_word_or_the_opening_of_a_block():
    for text, word, fence in (("Use PYTHON", 1, 0), ("```python\n1", 1, 1), ("``` Python", 1, 1), ("py thon", 0, 0)):
        assert spurious.python(text, {}) == word and spurious.python(text, {}, fenced=True) == fence


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("0123456789" * 10, 0), ("0123456789" * 9 + "012345678", 1), ("ab" * 50, 0), ("ab" * 44, 1), ("a" * 100, 0),
        ("a" * 99, 1), ("before " + "0123456789" * 10 + " after", 0), ("012345678" * 10, 1), ("012345678" * 20, 0),
        ("".join(map(chr, range(1000, 1256))) * 10, 0), ("".join(map(chr, range(1000, 1257))) * 10, 1), ("", 1),
        ("a" * 9, 1), ("the cat sat on the mat. " * 9, 1), ("the cat sat on the mat. " * 10, 0),
        ("\ud800 lone half" * 12, 0), ("🦙 llamas 🦙" * 10, 0),
    ],
)  # fmt: skip
def test_repetition_is_ten_to_256_characters_ten_times_in_a_row(text, worth):
    assert spurious.no_repetition(text, {}) == worth


def test_repetition_is_what_trying_every_text_says():
    def slowly(text):
        return float(not any(
            text[i : i + n] * spurious.TIMES == text[i : i + n * spurious.TIMES]
            for n in range(spurious.SHORTEST, spurious.LONGEST + 1) for i in range(len(text) - n * spurious.TIMES + 1)
        ))  # fmt: skip

    rng, found = random.Random(1), []
    for _ in range(60):
        unit = "".join(rng.choices("ab", k=rng.randint(1, 13)))
        text = "".join(rng.choices("ab", k=rng.randint(0, 30))) + unit * rng.randint(5, 40) + "b" * rng.randint(0, 60)
        found.append(spurious.no_repetition(text, {}))
        assert found[-1] == slowly(text), text
    assert 10 < sum(found) < 50


ANY = ["", " ", "\x00", "\ud800", "\\boxed{" * 20_000, "{" * 100_000, "a" * 100_000, "ab\n" * 33_000,
       "<answer>" * 12_000, "```python" * 11_000,
       "🦙" * 100_000, ("x" * 255 + "y") * 390, "".join(map(chr, range(32, 50_000)))]  # fmt: skip


@pytest.mark.parametrize("call", ("boxed_format", "boxed_format(style='r1')", "python", "no_repetition", "random(0.5)",
                                  f"ttrl('{HERE}')"))  # fmt: skip
def test_any_text_has_a_score(call):
    judge = verifier(call)
    for text in ANY:
        assert judge(text, {"_draw": 0.7, "_group": [text] * 3}) in (0.0, 1.0)


def test_ttrl_pays_the_answer_that_most_of_the_group_gave():
    group = ["it is 4", "it is 5", "sure: 5", "", "maybe 4", "5"]
    assert [spurious.ttrl(text, {"_group": group}, extract=HERE) for text in group] == [0, 1, 1, 0, 0, 1]
    tied = ["is 4", "is 5"]
    assert [spurious.ttrl(text, {"_group": tied}, extract=HERE) for text in tied] == [1, 0]  # the first seen
    assert spurious.ttrl("", {"_group": ["", ""]}, extract=HERE) == 0
    with pytest.raises(UserError, match="no _group here"):
        spurious.ttrl("4", {}, extract=HERE)
    with pytest.raises(UserError, match="no extractor: no function 'nowhere:f'"):
        spurious.ttrl("4", {"_group": []}, extract="nowhere:f")


def test_votes_drop_empty_answers_and_keep_the_order_of_first_sight():
    assert spurious.votes(["b", "a", "", "a", "b", "c"]) == [("b", 2), ("a", 2), ("c", 1)]
    assert spurious.majority(["", ""]) is None


def test_ttrl_counts_answers_as_the_paper_extracts_them():
    group = [r"\boxed{\tfrac{1}{2}}", r"so \boxed{\frac12}", r"\boxed{0.5}", "no box, 7"]
    assert [spurious.ttrl(text, {"_group": group}) for text in group] == [1, 1, 0, 0]  # votes are exact strings
    tags = ["<answer>7</answer>", "<answer> 7 </answer>", "8"]
    read = "easylm_jax.rewards.spurious:r1_answer_of"
    assert [spurious.ttrl(text, {"_group": tags}, extract=read) for text in tags] == [1, 1, 0]
    assert verifier("ttrl").reads_group and verifier(f"ttrl('{read}')").reads_group


def test_dense_gives_the_score_of_the_first_equal_answer():
    record = {"answer": '{"1/2": 0.9, "0.5": 0.1, "7": 0.3}'}
    found = [spurious.dense(rf"\boxed{{{answer}}}", record) for answer in ("0.5", "7.0", "8")]
    assert found == [0.9, 0.3, 0.0]
    assert spurious.dense(r"\boxed{7}", {"ground_truth": {"7": 0.3}}) == 0.3


@pytest.mark.parametrize("label", ("no json", "[1]", '{"4": "much"}', "3"))
def test_a_dense_label_that_is_no_object_of_scores_is_told(label):
    with pytest.raises(UserError, match="dense: the label of record 3 of set.jsonl must be a JSON object"):
        spurious.dense("4", {"answer": label, "_record": 3, "_source": "set.jsonl"})


def test_a_record_without_a_label_is_told():
    with pytest.raises(UserError, match="neither ground_truth nor answer"):
        spurious.dense("4", {})


LABELS = sorted((Path(__file__).parents[2] / "shared/data/spurious_rewards").glob("*.json"))


@pytest.mark.skipif(not LABELS, reason="needs ../shared/data/spurious_rewards")
def test_published_pseudo_labels_are_what_the_extraction_makes_of_them():
    """A label was normalised once; an answer that is the label must vote for it."""
    labels = [row["answer"] for path in LABELS for row in json.loads(path.read_text(encoding="utf-8"))]
    assert len(labels) == 300
    assert [spurious.answer_of(f"so \\boxed{{{label}}}.") for label in labels] == labels


def test_compound_rewards_are_products():
    expression = Expression("boxed_format and not python")

    def worth(response):
        return expression({call: verifier(call)(response, {}) for call in expression.calls})

    assert [worth(text) for text in (r"\boxed{1}", r"python \boxed{1}", "python", "1")] == [1, 0, 0, 0]
