"""Verifiers: what is right, what is wrong, and what is the user's to mend."""

import math
import sys
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easylm_jax.rewards import VERIFIERS, call_verifier, check_math, gsm8k, verifier
from easylm_jax.rewards.maths import last_number
from easylm_jax.rewards.verdict import reason_of
from models.errors import UserError

# Spec tulu3 §6.1, row gsm8k: the last number as text, commas between digits taken out; no numeric normalisation.
CASES = [
    ("The answer is 18.", "18", True),
    ("18", "18", True),
    ("so 5.", "5", True),
    ("18.0", "18", False),
    ("018", "18", False),
    ("18", "18.0", False),
    ("a range 3-4", "-4", True),
    ("a range 3-4", "4", False),
    ("1,234 apples", "1234", True),
    ("1,234,567", "1,234,567", True),
    ("1, 234", "234", True),
    ("first 7, then 8", "8", True),
    ("first 7, then 8", "7", False),
    ("it costs $-3.50", "-3.50", True),
    ("it costs $-3.50", "3.50", False),
    ("+4", "4", False),
    ("+4", "+4", True),
    (".5", ".5", True),
    ("0.5", ".5", False),
    ("5. 6.", "6", True),
    ("no number", "18", False),
    ("Blue", "blue", True),
    (" blue\n", "blue", True),
    ("", "18", False),
    ("", "", True),
    ("1e5", "5", True),
    ("2/3", "3", True),
]


@pytest.mark.parametrize(("response", "gold", "right"), CASES)
def test_the_last_number_decides(response, gold, right):
    assert check_math(response, gold, "gsm8k") is right
    assert gsm8k(response, {"ground_truth": gold}) == float(right)


@settings(max_examples=300, deadline=None)
@given(st.text(), st.one_of(st.text(), st.integers(), st.floats()))
def test_no_response_breaks_it(response, gold):
    assert check_math(response, gold, "gsm8k") in (True, False)
    number = last_number(response)
    assert number is None or math.isfinite(float(number))


@settings(max_examples=200, deadline=None)
@given(st.integers(), st.text(alphabet="abc ,.:\n$#", max_size=20))
def test_a_number_at_the_end_is_found_behind_any_words(number, words):
    assert check_math(f"{words} {number}", str(number), "gsm8k")
    assert check_math(f"{words} {number:,}.", str(number), "gsm8k")


def test_odd_text_is_judged_quickly():
    for odd in ("-" * 100_000, "1," * 50_000, "." * 100_000, "٣" * 10, "\ud800", "\x00" * 10, "9" * 100_000):
        assert check_math(odd, "no", "gsm8k") is False


def test_gold_answers_come_from_either_column():
    assert gsm8k("it is 72", {"answer": "48 / 2 = 24\n48 + 24 = 72\n#### 72"}) == 1.0
    assert gsm8k("it is 1,000", {"answer": "much\n#### 1,000"}) == 1.0
    assert gsm8k("it is 72", {"ground_truth": 72}) == 1.0
    assert gsm8k("it is 72", {"ground_truth": None, "answer": "#### 72"}) == 1.0
    with pytest.raises(UserError, match="no style 'latex'"):
        check_math("1", "1", "latex")


RECORD = {"_record": 3, "_source": "a.jsonl", "text": "hi"}


def judged(judge, record=RECORD):
    with pytest.raises(UserError) as told:
        call_verifier(judge, "an answer", record)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_verdict_is_a_finite_number_or_one_clear_line():
    def made(value):
        def judge(response, record):
            return value

        return judge

    for value, number in ((0.37, 0.37), (True, 1.0), (3, 3.0), ("0.5", 0.5)):
        assert call_verifier(made(value), "an answer", RECORD) == number
    for value in (math.nan, math.inf, -math.inf):
        assert f"judge gave {value} for record 3 of a.jsonl; a reward must be a finite number" in judged(made(value))
    for value in (None, "well", [1]):
        assert f"judge gave {value!r} for record 3 of a.jsonl; a reward must be a number" in judged(made(value))


def test_what_a_verifier_raises_is_told_with_the_record():
    assert (
        "gsm8k needs the column 'answer', which record 3 of a.jsonl does not have; name it in DataSpec.keep"
        in judged(gsm8k)
    )

    def fails(response, record):
        return 1 / len(record["text"][2:])

    assert "fails failed on a response to record 3 of a.jsonl: ZeroDivisionError" in judged(fails)

    def misses(response, record):
        return {}[record["text"]] + {}["text"]

    assert "misses needs the column 'hi'" in judged(misses)

    def own_key(response, record):
        return {}["text"]

    assert "own_key failed on a response to record 3 of a.jsonl: KeyError: 'text'" in judged(own_key)


def test_verifiers_are_found_by_name_or_by_place(monkeypatch):
    module = ModuleType("made_up_verifiers")
    module.judge, module.number = (lambda response, record: 1.0), 3
    monkeypatch.setitem(sys.modules, "made_up_verifiers", module)
    assert verifier("made_up_verifiers:judge") is module.judge
    assert verifier("gsm8k") is VERIFIERS["gsm8k"]
    for name in ("gsm9k", "made_up_verifiers:jduge", "no.such.module:judge", "made_up_verifiers"):
        with pytest.raises(UserError, match="reward: no verifier .*; there are .*gsm8k.*, or write module:function"):
            verifier(name)
    for text in ("", ":x"):
        with pytest.raises(UserError, match="no reward expression"):
            verifier(text)
    with pytest.raises(UserError, match="'made_up_verifiers:number' is not a function"):
        verifier("made_up_verifiers:number")


def test_a_module_that_cannot_be_imported_is_told_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_verifiers.py").write_text("import no_such_package\n")
    (tmp_path / "misspelt_verifiers.py").write_text("def judge(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no verifier 'broken_verifiers:judge' .*no_such_package"):
        verifier("broken_verifiers:judge")
    with pytest.raises(UserError, match="no verifier 'misspelt_verifiers:judge' .*invalid syntax"):
        verifier("misspelt_verifiers:judge")


@pytest.mark.parametrize(
    "call, response, record, score, reason",
    [
        ("gsm8k", "so 13.", {"ground_truth": "12"}, 0, "the answer '13' was read; expected '12'"),
        ("gsm8k", "so 12.", {"ground_truth": "12"}, 1, ""),
        ("gsm8k", "dunno", {"ground_truth": "12"}, 0, "no answer was found; expected '12'"),
        ("math", r"\boxed{\frac12}", {"answer": "3"}, 0, r"the answer '\\frac12' was read; expected '3'"),
        ("strict_math", "nothing", {"answer": "3"}, 0, "no answer was found; expected '3'"),
        ("math(style='spurious')", r"\boxed{4}", {"answer": "3"}, 0, "the answer '4' was read; expected '3'"),
        (
            "ifbench", "a, b", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, 0,
            "not followed: punctuation:no_comma",
        ),
        ("ifbench", "a b", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, 1, ""),
    ],
)  # fmt: skip
def test_a_verdict_against_a_response_says_why(call, response, record, score, reason):
    found = call_verifier(verifier(call), response, record)
    assert (found, reason_of(found)) == (score, reason)
