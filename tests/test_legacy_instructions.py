"""`ifeval_old`: each of the 25 constraints, as they were judged for Tülu 3 and repaired (spec tulu3 §6.3)."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easylm_jax.rewards import verifier
from easylm_jax.rewards.instructions.legacy import FUNCTIONS, ifeval_old
from models.errors import UserError

# name, arguments, answer, fixed, tulu3
CASES = [
    ("verify_keywords", {"keyword_list": ["Sun", "moon"]}, "sunlight and Moon", 1, 1),
    ("verify_keywords", {"keyword_list": ["sun", "moon"]}, "sun", 0, 0),
    ("verify_keyword_frequency", {"word": "Cat", "N": 2}, "cat, cats, CAT.", 1, 1),
    ("verify_keyword_frequency", {"word": "cat", "N": 1}, "cat cat", 0, 0),
    ("verify_keyword_frequency", {"word": "big cat", "N": 1}, "a big cat", 1, 0),
    ("validate_forbidden_words", {"forbidden_words": ["cat"]}, "a dog", 1, 1),
    ("validate_forbidden_words", {"forbidden_words": ["cat"]}, "a Catalogue", 0, 0),
    ("verify_letter_frequency", {"letter": "a", "N": 2}, "banAna", 1, 1),
    ("verify_letter_frequency", {"letter": "a", "N": 3}, "banAna", 0, 0),
    ("validate_response_language", {"language": "de"}, "Das ist ein ganz gewöhnlicher deutscher Satz.", 1, 1),
    ("validate_response_language", {"language": "en"}, "Das ist ein ganz gewöhnlicher deutscher Satz.", 0, 0),
    ("validate_response_language", {"language": "en"}, "123", 0, 0),
    ("verify_paragraph_count", {"N": 2}, "one\n * * * \ntwo", 1, 1),
    ("verify_paragraph_count", {"N": 2}, "one\n* * *\n", 0, 0),
    ("verify_paragraph_count", {"N": 2}, "one\n***\ntwo", 0, 0),
    ("validate_word_constraint", {"N": 3, "quantifier": "at least"}, "a b c d", 1, 1),
    ("validate_word_constraint", {"N": 3, "quantifier": "at most"}, "a b c d", 0, 0),
    ("validate_word_constraint", {"N": 20, "quantifier": "around"}, "a " * 22, 1, 1),
    ("validate_word_constraint", {"N": 20, "quantifier": "around"}, "a " * 23, 0, 0),
    ("verify_sentence_constraint", {"N": 3, "quantifier": "at least"}, "One. Two? Three.", 1, 1),
    ("verify_sentence_constraint", {"N": 3, "quantifier": "at least"}, "One! Two! Three!", 1, 0),
    ("verify_sentence_constraint", {"N": 1, "quantifier": "around"}, "One. Two. Three.", 0, 0),
    ("verify_sentence_constraint", {"N": 1, "quantifier": "at most"}, "Mr. Smith is e.g. here.", 1, 1),
    ("validate_paragraphs", {"N": 2, "first_word": "then", "i": 2}, "First\n\nthen more", 1, 1),
    ("validate_paragraphs", {"N": 2, "first_word": "the", "i": 2}, "First\n\nthen more", 0, 1),
    ("validate_paragraphs", {"N": 2, "first_word": "then", "i": 2}, "First\n\n\n\nthen more", 1, 0),
    ("validate_paragraphs", {"N": 2, "first_word": "then", "i": 9}, "First\n\nthen more", 0, 0),
    ("verify_postscript", {"postscript_marker": "P.S."}, "Text\nP.S. more", 1, 1),
    ("verify_postscript", {"postscript_marker": "P.S."}, "Text\nP.S.", 0, 0),
    ("validate_placeholders", {"N": 2}, "[a] and [b]", 1, 1),
    ("validate_placeholders", {"N": 2}, "[a] and []", 0, 1),
    ("validate_placeholders", {"N": 2}, "none", 0, 1),
    ("verify_bullet_points", {"N": 2}, "* a\n - b\nc", 1, 1),
    ("verify_bullet_points", {"N": 2}, "* a\n**b**", 0, 1),
    ("verify_bullet_points", {"N": 1}, "* a\n* b", 0, 0),
    ("validate_title", {}, "<<A title>>\ntext", 1, 1),
    ("validate_title", {}, "<<>> text", 0, 1),
    ("validate_title", {}, "<<a\nb>>", 0, 0),
    ("validate_choice", {"options": ["A", "B"]}, "It is A.", 1, 0),
    ("validate_choice", {"options": ["Apple", "B"]}, "App", 0, 1),
    ("validate_choice", {"options": ["A"]}, "Apple", 0, 0),
    ("validate_choice", {"options": ["A"]}, "", 0, 1),
    ("validate_highlighted_sections", {"N": 2}, "*a* and *b c*", 1, 1),
    ("validate_highlighted_sections", {"N": 2}, "**a** and b", 0, 1),
    ("validate_highlighted_sections", {"N": 1}, "a * b", 0, 0),
    ("validate_sections", {"N": 2, "section_splitter": "Section"}, "Section 1\na\nSection 2\nb", 1, 1),
    ("validate_sections", {"N": 2, "section_splitter": "Section"}, "Section 1\na\nSection 2\nb\nSection 3", 1, 0),
    ("validate_sections", {"N": 2, "section_splitter": "Section"}, "a Section b", 0, 1),
    ("validate_json_format", {}, '{"a": [1]}', 1, 1),
    ("validate_json_format", {}, "3", 0, 1),
    ("validate_json_format", {}, '```json\n{"a": 1}\n```', 1, 0),
    ("validate_json_format", {}, "[" * 100_000, 0, 0),
    ("validate_repeat_prompt", {"original_prompt": "Say it"}, "Say it. Now", 1, 1),
    ("validate_repeat_prompt", {"original_prompt": "Say it"}, "Say it\nNow", 1, 0),
    ("validate_repeat_prompt", {"original_prompt": "Say it. Twice"}, "Say it. Twice. Now", 1, 0),
    ("validate_repeat_prompt", {"original_prompt": "Say it"}, "I say it", 0, 0),
    ("validate_two_responses", {}, "a\n******\nb", 1, 1),
    ("validate_two_responses", {}, "a ****** a", 0, 0),
    ("validate_two_responses", {}, "a ******", 0, 1),
    ("validate_two_responses", {}, "a ****** b ****** c", 0, 0),
    ("validate_uppercase", {}, "ALL OF IT 1", 1, 1),
    ("validate_uppercase", {}, "123", 0, 1),
    ("validate_uppercase", {}, "All", 0, 0),
    ("validate_lowercase", {}, "all of it 1", 1, 1),
    ("validate_lowercase", {}, "", 0, 1),
    ("validate_lowercase", {}, "All", 0, 0),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "around"}, "ONE TWO THREE", 1, 0),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "around"}, "ONE TWO x", 1, 1),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "at most"}, "ONE TWO THREE", 0, 0),
    ("validate_end", {"end_phrase": "Bye."}, "Hello. Bye.", 1, 1),
    ("validate_end", {"end_phrase": "Bye. "}, "Hello. Bye.", 1, 0),
    ("validate_end", {"end_phrase": "Bye."}, "Bye. Hello", 0, 0),
    ("validate_quotation", {}, '"all"', 1, 1),
    ("validate_quotation", {}, '"', 0, 1),
    ("validate_quotation", {}, '"all', 0, 0),
    ("validate_no_commas", {}, "a b", 1, 1),
    ("validate_no_commas", {}, "a, b", 0, 0),
]


@pytest.mark.parametrize(("name", "arguments", "answer", "fixed", "tulu3"), CASES)
def test_both_versions_judge_as_specified(name, arguments, answer, fixed, tulu3):
    label = {"func_name": name, **arguments}
    assert ifeval_old(answer, {"ground_truth": label}) == fixed
    assert ifeval_old(f"<think>x</think>{answer}", {"ground_truth": json.dumps(label)}, "tulu3") == tulu3
    assert label == {"func_name": name, **arguments}  # it is read, not taken apart


def test_every_constraint_has_a_passing_and_a_failing_case():
    assert len(FUNCTIONS) == 25
    for column in (3, 4):
        for verdict in (0, 1):
            has = {case[0] for case in CASES if case[column] == verdict}
            always = {"validate_placeholders"} if (column, verdict) == (4, 0) else set()
            assert has == set(FUNCTIONS) - always


def test_nulls_in_a_label_are_left_out_and_the_answer_is_what_follows_the_reasoning():
    label = json.dumps({"func_name": "validate_no_commas", "N": None, "word": None})
    assert verifier("ifeval_old")("<think>a, b</think> <answer>c</answer>", {"ground_truth": label}) == 1.0
    assert verifier("ifeval_old(version='tulu3')")("a, b", {"ground_truth": label}) == 0.0


@pytest.mark.parametrize(
    "label",
    [
        "x", "[]", None, 3, "{}", "[" * 100_000, {"func_name": "validate_all"}, {"func_name": []},
        {"func_name": "verify_bullet_points"}, {"func_name": "verify_bullet_points", "N": "many"},
        {"func_name": "verify_bullet_points", "N": 1.5}, {"func_name": "verify_bullet_points", "N": True},
        {"func_name": "verify_bullet_points", "N": float("nan")}, {"func_name": "verify_bullet_points", "N": -1},
        {"func_name": "verify_letter_frequency", "letter": "ab", "N": 1},
        {"func_name": "validate_word_constraint", "N": 1, "quantifier": "exactly"},
        {"func_name": "validate_choice", "options": []}, {"func_name": "verify_keywords", "keyword_list": "sun"},
    ],
)  # fmt: skip
def test_a_malformed_label_is_told(label):
    with pytest.raises(UserError, match="ifeval_old"):
        ifeval_old("x", {"ground_truth": "" if label is None else label})


def test_an_unknown_version_is_told():
    with pytest.raises(UserError, match="tulu3 and fixed"):
        ifeval_old("x", {"ground_truth": {"func_name": "validate_title"}}, "old")


def labels():
    """One label of each constraint."""
    seen = {name: arguments for name, arguments, *_ in CASES}
    return [{"func_name": name, **arguments} for name, arguments in seen.items()]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_no_response_breaks_one(response):
    for label in labels():
        for version in ("fixed", "tulu3"):
            assert ifeval_old(response, {"ground_truth": label}, version) in (0.0, 1.0)


@pytest.mark.parametrize(
    "piece", ["<<", "[", "*", "* ", "a. ", "\n\n", "Section ", "\ud800", "******", "P.S.", "{", "É"]
)
def test_a_hundred_kilobytes_are_judged(piece):
    for label in labels():
        if label["func_name"] != "validate_response_language":  # langdetect samples; it reads 10,000 letters
            for version in ("fixed", "tulu3"):
                found = ifeval_old(piece * (100_000 // len(piece)), {"ground_truth": label}, version)
                assert found in (0.0, 1.0), label
