"""Instruction verifiers: the examples of each, any text, arguments, versions, samplers and texts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_examples import IFBENCH
from instruction_train_examples import IFTRAIN_AND_IFEVAL

from easylm_jax.rewards import check_instruction
from easylm_jax.rewards.instructions import REGISTRY, VERSIONS, tokens, use_nltk_data
from models.errors import UserError

EXAMPLES = IFBENCH + IFTRAIN_AND_IFEVAL
ARGUMENTS = {example[0]: example[1] for example in EXAMPLES}
SIZE = 100_000
NASTY = [
    ".", "!", ". ", '?"', "A.B. He ", "'\"", "*", "* ", "***", "\n", "\n ", "a\n", "x \n\n", "[", "]", "(", "<<", "<i>",
    "Question 1. a\nA. b\n", "1,", '"a,', '""', "😀", "🇫🇷", "\u200d", "e\u0301", "漢字。", "\x00a", "\ud800 ", "- ",
    "n't ", "Slow heavy ", "ebb oar ", '{"a":', "1e5", "\u2028", "ſİ", "lorem ipsum dolor. ", "A b. C d? E! ", "a",
    "Zimbabwe\n", "1805-10-21,", "Mr. ", "٣", "½", "a@b.", "Section 1",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def nltk_data(shared_data):
    if not (shared_data / "nltk_data").is_dir():
        pytest.skip(f"no NLTK data in {shared_data}")
    use_nltk_data(str(shared_data / "nltk_data"))


def test_there_are_112_and_each_has_examples():
    suites = [instruction.suite for instruction in REGISTRY.values()]
    assert [suites.count(suite) for suite in ("ifbench", "iftrain", "ifeval")] == [58, 29, 25]
    assert sorted(REGISTRY) == sorted(ARGUMENTS) and len(EXAMPLES) == 112


@pytest.mark.parametrize("constraint_id, kwargs, good, bad, edge, verdict", EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_examples_have_their_verdicts(constraint_id, kwargs, good, bad, edge, verdict):
    found = [check_instruction(constraint_id, text, kwargs) for text in (good, bad, edge)]
    assert found == [True, False, verdict]


@pytest.mark.parametrize("constraint_id", sorted(ARGUMENTS))
def test_blank_and_what_is_no_text_follows_nothing(constraint_id):
    for response in (None, "", " \n\t\u2028", ["text"], {"text": 1}, 7, float("nan")):
        assert check_instruction(constraint_id, response, ARGUMENTS[constraint_id]) is False


@pytest.mark.parametrize("piece", NASTY)
def test_long_strange_texts_raise_nothing(piece):
    """100 kB of one piece. Time is bounded by the linear checks: a quadratic one would hang this test."""
    text = (piece * (SIZE // len(piece) + 1))[:SIZE]
    for constraint_id, kwargs in ARGUMENTS.items():
        assert check_instruction(constraint_id, text, kwargs) in (True, False)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), min_size=1) | st.lists(st.sampled_from(NASTY)).map("".join))
def test_any_text_has_a_verdict_in_every_version(text):
    for constraint_id, kwargs in ARGUMENTS.items():
        for version in VERSIONS:
            assert check_instruction(constraint_id, text, kwargs, version) in (True, False)


@pytest.mark.parametrize("constraint_id", sorted(ARGUMENTS))
def test_arguments_drawn_are_valid_and_make_the_text(constraint_id):
    instruction, prompt = REGISTRY[constraint_id], "Tell me of the tides in the old port of Riga."
    drawn = [instruction.sample_arguments(random.Random(seed), prompt) for seed in range(20)]
    assert drawn == [instruction.sample_arguments(random.Random(seed), prompt) for seed in range(20)]
    for kwargs in drawn:
        assert set(instruction.clean(kwargs)) == set(kwargs)
        described = instruction.describe(**kwargs)
        assert "{" not in described.replace("{curly}", "")
        for value in kwargs.values():
            for shown in value if isinstance(value, list) else [value]:
                assert str(shown) in described
        assert check_instruction(constraint_id, "A text.", kwargs) in (True, False)


@pytest.mark.parametrize("prompt", ["", " ", "a", "two words"])
def test_arguments_are_drawn_for_the_shortest_prompts(prompt):
    for instruction in REGISTRY.values():
        drawn = instruction.sample_arguments(random.Random(0), prompt)
        kwargs = {name: value if value != "" else "x" for name, value in drawn.items()}
        assert set(instruction.clean(kwargs)) == set(drawn)


def test_unknown_ids_are_errors():
    with pytest.raises(UserError, match="no instruction 'count:number'; did you mean 'count:numbers'"):
        check_instruction("count:number", "2", {"N": 1})
    for unknown in (None, ["count:numbers"], ""):
        with pytest.raises(UserError, match="no instruction"):
            check_instruction(unknown, "2", {"N": 1})
    with pytest.raises(UserError, match="no version 'r24'.*r26, r25, fixed"):
        check_instruction("count:numbers", "2", {"N": 1}, "r24")


@pytest.mark.parametrize(
    "constraint_id, kwargs, message",
    [
        ("count:numbers", None, "argument 'N' is missing"),
        ("count:numbers", {"N": None}, "argument 'N' is missing"),
        ("count:numbers", {"N": 2.5}, "N = 2.5 is not a whole number"),
        ("count:numbers", {"N": float("nan")}, "is not a whole number"),
        ("count:numbers", {"N": float("inf")}, "is not a whole number"),
        ("count:numbers", {"N": -1}, "is not a whole number of at least 0"),
        ("count:numbers", {"N": True}, "is not a whole number"),
        ("count:numbers", {"N": "2"}, "is not a whole number"),
        ("count:numbers", {"N": 2, "M": 3}, "no argument 'M'; it takes N"),
        ("count:numbers", [2], "arguments must be a dict"),
        ("count:words_japanese", {"N": 0}, "at least 1"),
        ("words:vowel", {"N": 1}, "it takes none"),
        ("keywords:existence", {"keywords": "ebb"}, "is not a list of texts"),
        ("keywords:existence", {"keywords": []}, "is not a list of texts"),
        ("keywords:frequency", {"keyword": "", "frequency": 1, "relation": "at least"}, "is not a text"),
        ("keywords:frequency", {"keyword": "a", "frequency": 1, "relation": "about"}, "is not one of less than, at"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "character"),
        ("language:response_language", {"language": "xx"}, "is not one of en, es"),
    ],
)
def test_malformed_arguments_are_errors_even_for_a_blank_response(constraint_id, kwargs, message):
    for response in ("2", ""):
        with pytest.raises(UserError, match=message):
            check_instruction(constraint_id, response, kwargs)


def test_whole_floats_are_ints_and_nulls_are_dropped():
    kwargs = {"N": 2.0, "keyword": None}
    assert check_instruction("count:numbers", "1 and 2", kwargs)
    assert kwargs == {"N": 2.0, "keyword": None}


def test_keywords_that_are_no_expression_are_taken_as_they_stand():
    assert check_instruction("keywords:existence", "a smile :(", {"keywords": [":("]})
    assert check_instruction("keywords:existence", "abc", {"keywords": ["a.c"]})
    assert not check_instruction("keywords:existence", "abc", {"keywords": ["a.c"]}, "fixed")


def test_shares_round_as_the_published_checks_do():
    """11 of 20 words are 0.55 · 100 = 55.00000000000001 %, which is more than 55."""
    words = " ".join(["the"] * 11 + ["tide"] * 9)
    assert not check_instruction("ratio:stop_words", words, {"percentage": 55})
    assert check_instruction("ratio:stop_words", words, {"percentage": 56})


def test_data_of_tabs_may_have_blanks_behind_a_tab_and_no_second_tab():
    good = next(example[2] for example in EXAMPLES if example[0] == "custom:csv_quotes")
    header, rest = good.split("\n", 1)
    assert check_instruction("custom:csv_quotes", good)
    spaced = header.replace("\t", "\t ").replace('"', "")
    assert not check_instruction("custom:csv_quotes", f"{spaced}\n{rest}")  # a header must be quoted as well
    assert not check_instruction("custom:csv_quotes", header.replace("\t", "\t\t", 1) + "\n" + rest)


def test_options_of_a_question_may_be_indented():
    good = next(example[2] for example in EXAMPLES if example[0] == "custom:mcq_count_length")
    assert check_instruction("custom:mcq_count_length", good.replace("\n", "\n   "))


def test_data_that_is_missing_is_told_in_one_line(monkeypatch, tmp_path):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.delenv("NLTK_DATA", raising=False)
    tokens._data.cache_clear()
    with pytest.raises(UserError, match="NLTK's data 'punkt_tab' was not found; run .*nltk.downloader.*NLTK_DATA"):
        tokens._data("punkt_tab")
    with pytest.raises(UserError, match="no folder of NLTK's data at /no/such/folder"):
        use_nltk_data("/no/such/folder")
    tokens._data.cache_clear()


def test_library_that_is_missing_is_told_with_the_extra():
    with pytest.raises(UserError, match=r"needs the package no_such_package: pip install 'easylm_jax\[instructions\]'"):
        tokens.library("no_such_package")
