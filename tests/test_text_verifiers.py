"""Verifiers of texts and lengths: what the published rules say, and that no response breaks one."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easylm_jax.rewards import length, text, verifier
from models.errors import UserError


def label(value):
    return {"ground_truth": value}


def test_normalisation_is_that_of_squad():
    assert text.squad_normal("  The  Cat, an ANIMAL; sat on a mat. ") == "cat animal sat on mat"
    assert text.squad_normal("theatre another") == "theatre another"
    assert text.f1("the cat sat", "a cat ran") == pytest.approx(0.5)
    assert text.f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert text.f1("", "") == 0.0


@pytest.mark.parametrize(
    ("name", "response", "gold", "score"),
    [
        ("flan", "So. The answer is: the Paris.", "paris", 1.0),
        ("flan", "The answer is: Rome. No. The answer is: Paris", "Paris", 1.0),
        ("flan", "Paris!", "paris", 1.0),
        ("flan", "It is Paris", "paris", 0.0),
        ("flan", "", "the", 0.0),
        ("flan", "-", "-", 1.0),
        ("string_matcher", "<answer> The Blue </answer>", "blue", 1.0),
        ("string_matcher", "<answer>red</answer><answer>blue</answer> yes", "blue", 1.0),
        ("string_matcher", "blue", "blue", 0.0),
        ("string_matcher", "<answer>blue", "blue", 0.0),
        ("string_matcher", "</answer>blue<answer>", "blue", 0.0),
        ("string_f1", "<think>dogs</think> <answer>the cat sat</answer>", "a cat ran", 0.5),
        ("string_f1", "cat", ["dog", "cat"], 1.0),
        ("string_f1", "bird", ["dog", "cat"], 0.0),
        ("puzzle", "<think>red</think><answer>Blue.</answer>", "blue", 1.0),
        ("puzzle", "<think>blue</think> red", "blue", 0.0),
        ("re_search", "<Finish> Paris </FINISH>", '["Rome", "paris"]', 1.0),
        ("re_search", "<finish>Rome</finish> <finish>Paris</finish>", ["Paris"], 0.0),
        ("re_search", "<finish>Paris</finish>", "Paris", 1.0),
        ("re_search", "<finish>Paris</finish>", '"Paris"', 1.0),
        ("re_search", "<finish> </finish>", [""], 0.0),
        ("re_search", "Paris", ["Paris"], 0.0),
        ("re_search_f1", "<finish>the cat sat</finish>", ["a cat ran", "dogs"], 0.5),
        ("re_search_f1", "<finish>birds</finish>", ["cat"], 0.1),
        ("re_search_f1", "<finish></finish>", ["cat"], 0.0),
        ("re_search_f1", "<finish>cat", ["cat"], 0.0),
        ("re_search_f1", "<finish>dog</finish><finish>cat</finish>", ["cat"], 1.0),
        ("r1_format", "why\n</think>\n <answer>\n5\n</answer> more", "", 1.0),
        ("r1_format", "</think> so <answer>5</answer>", "", 0.0),
        ("r1_format", "</answer></think><answer>5", "", 0.0),
        ("r1_format", "", "", 0.0),
    ],
)
def test_scores_follow_the_published_rules(name, response, gold, score):
    assert verifier(name)(response, label(gold)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("Therefore, the answer is (B).", "B", True),
        ("The answer is A. No, wait: the answer is: C", "C", True),
        ("the answer is **D**", "D", True),
        ("Therefore the answer is $\\boxed{B}$", "(B)", True),
        ("Answer: B, and not A", "b", True),
        ("The best choice is C because (A) is wrong", "C", True),
        ("\\boxed{\\text{A}} or (B)", "A", True),
        ("Not (A) but (B)", "B", True),
        ("Not A but B", "B", True),
        ("A dog's life", "D", False),
        ("BAD", "B", False),
        ("the answer is Boring", "B", False),
        ("A's work", "A", False),
        ("it is (E)", "D", False),
        ("it is (E)", "E", True),
        ("", "A", False),
        ("B", 1, True),
    ],
)
def test_the_letter_chosen_is_found_by_the_most_explicit_form(response, gold, right):
    assert text.multiple_choice(response, label(gold)) == float(right)


def test_choices_and_the_phrase_can_be_given():
    assert text.multiple_choice("(D) and (F)", {"ground_truth": "D", "choices": ["x"] * 5}) == 1.0
    assert text.multiple_choice("(D) and (F)", {"ground_truth": "D", "choices": ["x"] * 6}) == 0.0
    assert text.multiple_choice("final: B (A)", label("B"), "final") == 1.0
    assert verifier("multiple_choice(phrase='final', choices='AB')")("final: B (A) C", label("B")) == 1.0
    for wrong in ("yes", 26, -1, True, None):
        with pytest.raises(UserError, match="needs a letter"):
            text.multiple_choice("A", {"answer": wrong})


def test_lengths_are_scored_in_tokens_and_stay_between_0_and_1():
    def of(count, wanted, name="max_length", **more):
        return getattr(length, name)("any", {"_length": count, "ground_truth": wanted}, **more)

    assert of(100, "100") == 1.0
    assert of(100 + 16384, 100) == of(0, 16384) == 0.5
    assert of(10**6, 1) == 0.0
    assert of(8, 4, limit=8) == 0.5
    assert of(5, 100, "up_to_max_length") == of(100, 100, "up_to_max_length") == 1.0
    assert of(108, 100, "up_to_max_length", limit=16) == 0.5
    assert of(10**6, 1, "up_to_max_length") == 0.0
    for wrong in ("many", None, -1, "nan", "inf", [1]):
        with pytest.raises((UserError, KeyError)):
            of(5, wrong)
    with pytest.raises(UserError, match="only training and Evaluate provide"):
        length.max_length("any", label(5))


def test_overlong_is_dapos_soft_punishment():
    def of(count, limit=100, buffer=20):
        return length.overlong("any", {"_length": count}, limit, buffer)

    assert [of(n) for n in (0, 80, 85, 90, 100, 101, 5000)] == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    assert verifier("overlong(100, 20)")("any", {"_length": 90}) == -0.5
    for wrong in ((100, 0), (0, 1), (10, 20), (100, "a"), (True, True)):
        with pytest.raises(UserError):
            of(5, *wrong)


NAMES = ("flan", "string_matcher", "string_f1", "puzzle", "re_search", "re_search_f1", "r1_format", "multiple_choice")
PIECES = ("<answer>", "</answer>", "<finish>", "</finish>", "</think>", "The answer is: ", "(A", ")", "B", " ", "the ")
ANY = st.one_of(
    st.text(st.characters(exclude_categories=())),  # surrogates among them
    st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join),
)


@settings(max_examples=150, deadline=None)
@given(ANY, st.text(max_size=10))
def test_no_response_breaks_a_verifier_of_texts(response, gold):
    for name in NAMES:
        given_label = "A" if name == "multiple_choice" else gold
        assert 0.0 <= verifier(name)(response, label(given_label)) <= 1.0
    assert text.string_f1(response, label([gold, "x"])) <= 1.0


@pytest.mark.parametrize(
    "piece", [*PIECES, "a", " ", "\n", "the answer is" + " " * 9, "\\boxed{", "İ", "\ud800", "</think> ", "```", "**"]
)
def test_a_hundred_kilobytes_are_judged_at_once(piece):
    response = piece * (100_000 // len(piece))
    began = time.process_time()
    for name in NAMES:
        assert 0.0 <= verifier(name)(response, label("A")) <= 1.0
    assert time.process_time() - began < 2 * len(NAMES)


def test_a_label_of_the_wrong_kind_is_told():
    with pytest.raises(UserError, match="must be one text"):
        text.flan("x", label(["x"]))
    with pytest.raises(UserError, match="list of labels is empty"):
        text.string_f1("x", label([]))
    with pytest.raises(KeyError, match="answer"):
        text.flan("x", {})
