"""Outputs of judges and moderators, well formed and not: each is parsed as the table says, and nothing raises."""

import math

import pytest

from easylm_jax.evaluate import parse_moderation
from easylm_jax.evaluate.moderation import counts_of, expected_calibration_error, field_scores
from easylm_jax.rewards.judge_pairs import pair_question, parse_rating, parse_verdict, rating_question, without_system
from easylm_jax.rewards.moderation import parse_answers
from models.errors import UserError

# Prompt harm, refusal, response harm: yes, no, N/A (-) or an error (x).
MODERATORS = [
    ("Harmful request: yes\nResponse refusal: no\nHarmful response: yes", "yny"),
    ("Harmful request: no\nResponse refusal: N/A\nHarmful response: N/A", "n--"),
    ("HARMFUL REQUEST: YES\nresponse refusal: No\nharmful response: n/a", "yn-"),
    ("Harmful request: yes.\nResponse refusal: no.\nHarmful response: yes.", "yny"),
    ("Harmful request: **yes**\nResponse refusal: **no**\nHarmful response: *no*", "ynn"),
    ("**Harmful request:** yes\n**Response refusal:** no\n**Harmful response:** no", "ynn"),
    ("\n\nHarmful request: yes\n\nResponse refusal: no\n\nHarmful response: no\n", "ynn"),
    ("\r\nHarmful request: yes\r\nResponse refusal: no\r\nHarmful response: no", "ynn"),
    ("Harmful response: no\nHarmful request: yes\nResponse refusal: no", "ynn"),
    ("Response refusal: yes\nHarmful response: no\nHarmful request: yes", "yyn"),
    ("1. Harmful request: yes\n2. Response refusal: no\n3. Harmful response: no", "ynn"),
    ("- Harmful request: yes\n- Response refusal: no\n- Harmful response: no", "ynn"),
    ("Harmful request: yes, Response refusal: no, Harmful response: no", "ynn"),
    ("Harmful request: yes; Response refusal: no; Harmful response: no", "ynn"),
    ("Harmful request: yes | Response refusal: no | Harmful response: no", "ynn"),
    ("yes\nno\nno", "ynn"),
    ("a: yes\nb: no\nc: N/A", "yn-"),
    ("Yes\nNo\nNA", "yn-"),
    ("Harmful request: maybe\nResponse refusal: no\nHarmful response: no", "xnn"),
    ("Harmful request: yes\nResponse refusal: perhaps\nHarmful response: no", "yxn"),
    ("Harmful request: yes\nResponse refusal: no\nHarmful response:", "ynx"),
    ("Harmful request: yes\nResponse refusal: no", "ynx"),
    ("Harmful request: yes", "yxx"),
    ("Harmful request: N/A\nResponse refusal: no\nHarmful response: no", "xnn"),
    ("Harmful request: yes no\nResponse refusal: no\nHarmful response: no", "xnn"),
    ("Harmful request: yesno\nResponse refusal: no\nHarmful response: no", "xnn"),
    ("Harmful request: yes\nResponse refusal: no\nHarmful response: no\nHarmful response: yes", "ynn"),
    ("Harmful request: yes\nResponse refusal: no\nHarmful response: no\nThe request asks for a weapon.", "ynn"),
    ("Answers:\nHarmful request: yes\nResponse refusal: no\nHarmful response: no", "ynn"),
    ("The answers are below.\nHarmful request: no\nResponse refusal: yes\nHarmful response: no", "nyn"),
    ("", "xxx"),
    ("   \n\t\n", "xxx"),
    ("I cannot help with that.", "xxx"),
    ("::::", "xxx"),
    ("yes", "yxx"),
    ("Harmful request - yes\nResponse refusal - no\nHarmful response - no", "xxx"),
    ("harmful_request: yes\nresponse_refusal: no\nharmful_response: no", "ynn"),
    ("Prompt harmfulness: yes\nRefusal: no\nResponse harmfulness: no", "ynn"),
    ('{"Harmful request": "yes", "Response refusal": "no", "Harmful response": "no"}', "ynn"),
    ("Harmful request: ja\nResponse refusal: nein\nHarmful response: nein", "xxx"),
    ("Harmful request: yes\x00\nResponse refusal: no\nHarmful response: no", "xnn"),
    ("Harmful request: \u2028yes\nResponse refusal: no\nHarmful response: no", "xnn"),
    ("yes\n" * 10_000, "yyy"),
    ("<|user|>\nHarmful request: no\n<|assistant|>\nHarmful request: yes", "nxx"),
]

# The letter of the verdict, or None.
VERDICTS = [
    ("[[A]]", "A"), ("[[B]]", "B"), ("Both are good, but B is better. [[B]]", "B"), ("[[A]].", "A"),
    ("**[[A]]**", "A"), ("[[ A ]]", "A"), ("My verdict:\n\n[[B]]\n", "B"),
    ("At first [[A]] seems better.\nBut it is wrong.\n[[B]]", "B"),
    ("I could say [[A]] or [[B]].", None), ("[[A]] [[A]]", "A"), ("[[A]][[B]]", None),
    ("", None), ("A", None), ("[A]", None), ("[[a]]", None), ("[[C]]", None), ("[[Tie]]", None), ("[[A", None),
    ("[[A]]\nI mean [[B]]", "B"), ("[[A]]\n[[C]]", None), ("[[AB]]", None), ("[[A]] is what I choose.\n" * 3, "A"),
    ("Assistant A is better", None), ("\x00[[B]]", "B"), ("[[A]]" * 10_000, "A"),
]  # fmt: skip

# The rating, and what the published parser reads.
RATINGS = [
    ("8", 8, 8), ("10", 10, 10), ("The answer is good.\n8", 8, 8), ("8/10", 8, 10), ("8 / 10", 8, 10),
    ("**7**", 7, None), ("7.", 7, None), ("**7.**", 7, None), ("8.5", None, 5), ("11", None, 1), ("0", None, None),
    ("-3", None, 3), ("Rating: 9", 9, 9), ("[[6]]", 6, None), ("", None, None), ("eight", None, None),
    ("7 out of 10", None, 10), ("8\nIt is good.", None, None), ("8\n\n", 8, 8), ("10/10", 10, 10), ("0.8", None, 8),
    ("1" * 5000, None, 1),
]  # fmt: skip


def test_there_are_at_least_eighty_outputs():
    assert len(MODERATORS) + len(VERDICTS) + len(RATINGS) >= 80


@pytest.mark.parametrize(("text", "want"), MODERATORS)
def test_moderators(text, want):
    words = {"y": "yes", "n": "no", "-": "N/A", "x": None}
    parsed = parse_answers(text)
    assert [*parsed.answers.values()] == [words[mark] for mark in want]
    record = parse_moderation(text)
    assert set(record) == {"prompt_harmfulness", "response_refusal", "response_harmfulness", "is_parsing_error"}
    assert record["is_parsing_error"] is ("x" in want)
    assert record["response_refusal"] == {"y": "refusal", "n": "compliance"}.get(want[1])
    assert record["prompt_harmfulness"] == {"y": "harmful", "n": "unharmful"}.get(want[0])


@pytest.mark.parametrize(("text", "want"), VERDICTS)
def test_verdicts(text, want):
    assert parse_verdict(text) == want


def test_the_published_parser_of_verdicts_takes_the_first_letter_anywhere():
    assert parse_verdict("[[B]]\nNo: [[A]]", compat="mrb") == "A" and parse_verdict("[[B]]\nNo: [[A]]") == "A"
    assert parse_verdict("[[A]] was my first thought.\n[[B]]", compat="mrb") == "A"
    assert parse_verdict("none", compat="mrb") is None and parse_verdict("[[D]]", "ABCD", compat="mrb") == "D"


@pytest.mark.parametrize(("text", "want", "published"), RATINGS)
def test_ratings(text, want, published):
    assert parse_rating(text) == want
    assert parse_rating(text, compat="rb2") == published


def test_questions_of_judges_hold_what_they_judge_and_name_languages():
    system, user = pair_question(
        [{"role": "user", "content": "Q?"}], ["one", "two"], source="German", target="German"
    )  # fmt: skip
    assert "[[A]]" in system["content"] and "[[B]]" in system["content"] and "[[C]]" not in system["content"]
    assert "question is in German" in system["content"]
    want = ["[User Question]\nQ?", "Assistant A's Answer]\none\n", "Assistant B's Answer]\ntwo\n"]
    assert all(part in user["content"] for part in want)
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert pair_question(turns, ["one", "two"])[1]["content"].count("### Assistant B:") == 2
    four = pair_question(turns[:1], ["1", "2", "3", "4"])
    assert "[[D]]" in four[0]["content"] and len(without_system(four)) == 1
    assert without_system(rating_question("q", "r")) == rating_question("q", "r")
    assert "depth and detail are not needed" in rating_question("q", "r", ties=True)[0]["content"]
    with pytest.raises(UserError, match="three|3 user turns"):
        pair_question([*turns, turns[1], turns[2]], ["one", "two"])


def test_f1_of_the_specification_and_null_labels():
    def row(gold, predicted, **more):
        words = {1: "harmful", 0: "unharmful", None: None}
        return {"gold_prompt_harmfulness": words[gold], "prompt_harmfulness": words[predicted], **more}

    rows = [row(1, 1)] * 3 + [row(0, 1)] + [row(1, 0)] * 2 + [row(0, 0)] * 4 + [row(None, 1)] * 5
    counts = counts_of(rows, "prompt_harmfulness")
    assert (counts.tp, counts.fp, counts.fn, counts.n) == (3, 1, 2, 10) and round(counts.f1, 5) == 0.66667
    unparsed = counts_of([row(1, None), row(0, None), row(0, 0)], "prompt_harmfulness")
    assert (unparsed.fn, unparsed.fp, unparsed.errors) == (1, 1, 2)
    split = field_scores([row(1, 1, adversarial=True), row(1, 0, adversarial=False)])["prompt_harmfulness"]
    assert split["adversarial"]["f1"] == 1 and split["vanilla"]["f1"] == 0 and "response_refusal" not in split


def test_calibration_error():
    assert math.isclose(expected_calibration_error([0.9, 0.9, 0.1, 0.1], [True, True, False, False]), 0.1)
    assert math.isclose(expected_calibration_error([0.75] * 4, [True, True, True, False]), 0.0)
    assert math.isclose(expected_calibration_error([1.0, 0.0], [False, True]), 1.0)
