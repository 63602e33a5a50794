"""Maths verifier: right answers in any form are right, near misses are wrong, and nothing breaks or stalls it."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile_maths import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st
from maths_kit import SENTENCES, near_misses, rewritten

from easylm_jax.rewards import VERIFIERS, check_math, pool_worker
from easylm_jax.rewards.maths import STYLES, extract_spurious, spurious, symbolic
from easylm_jax.rewards.pool import Pool
from easylm_jax.rewards.verify import LOOKUP
from models.errors import UserError

TESTS = Path(__file__).resolve().parent

# Answer, gold answer, equal? The first four are those that a reference gets wrong outside of its main thread
# (spec tulu3 §6.2).
EQUAL = [
    (r"\frac{1}{2}", "0.5"), ("x+1", "1+x"), (r"2\sqrt{2}", r"\sqrt{8}"), (r"\frac{3}{6}", r"\frac12"),
    ("1 1/2", "3/2"), (r"1\frac12", "1.5"), ("10^2", "100"), (r"\sqrt{4}", "2"), ("142", "142.0"), ("25", "025"),
    ("50", r"50\%"), ("0.5", r"50\%"), ("50 percent", r"50\%"), ("12", "12 cm"), (r"12 \text{ centimeters}", "12 cm"),
    (r"\{2,1\}", r"\{1,2\}"), ("-2,1", "1,-2"), ("x = 1 or x = 2", "1,2"), ("1 and 2", "1,2"), ("1, 2, and 3", "1,2,3"),
    (r"x \in [-2,7]", "[-2,7]"), (r"-2 \le x \le 7", "[-2,7]"), (r"x \le 0", r"(-\infty, 0]"),
    (r"x > 2", r"(2, \infty)"), (r"(3,\infty) \cup (-\infty,2)", r"(-\infty, 2) \cup (3, \infty)"),
    (r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}"), (r"\{-2, 1+\sqrt5, 1-\sqrt5\}", r"\{1\pm\sqrt{5},-2\}"),
    ("x=5", "5"), ("5", "x=5"), ("5 = x", "x=5"), ("2x+3", "y = 2x + 3"), ("f(x) = 2x+3", "2x+3"),
    ("5x-7y+11z=-4", "5x - 7y + 11z + 4 = 0"), ("C", r"\text{(C)}"), ("(C)", r"\text{(C)}"), ("(C) 17", r"\text{(C)}"),
    ("evelyn", r"\text{Evelyn}"), ("10,080", r"10,\!080"), ("11111111100", r"11,\! 111,\! 111,\! 100"),
    ("1 000 000", "1000000"), ("$32,348", r"\$32,\!348"), ("18.9", r"\$18.90"), ("$5 million", "5000000"),
    ("270/7", r"\frac{270}7\text{ degrees}"), ("864", r"864 \mbox{ inches}^2"), ("864 in^2", r"864 \mbox{ inches}^2"),
    ("864 square inches", r"864 \mbox{ inches}^2"), ("90", r"90^\circ"), ("90°", r"90^\circ"), ("52_{8}", "52_8"),
    (r"6.72 \times 10^{-5}", ".0000672"), ("6.72e-5", ".0000672"), (r"\cot(x)", r"\cot x"), ("three", "3"),
    (r"\begin{bmatrix} -1 & 0 \\ 0 & -1 \end{bmatrix}", r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}"),
    ("(b+2)(a+5)", "(a+5)(b+2)"), ("ab+2a+5b+10", "(a+5)(b+2)"), (r"e^{i\pi}", "-1"), (r"\log_2 8", "3"),
    (r"\sin^2 x + \cos^2 x", "1"), (r"\frac{\sqrt{3}}{3}", r"1/\sqrt{3}"), (r"\sqrt[3]{-8}", "-2"), ("4 : 13", "4:13"),
    (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"), (r"\boxed{\boxed{5}}", "5"), ("5!", "120"),
    (r"0.1\overline{6}", "1/6"), (r"\sin(60^\circ)", r"\frac{\sqrt3}{2}"), (r"\sin 60^\circ", r"\sqrt3/2"),
    ("x^2+2x+1=0", "(x+1)^2=0"), (r"\frac{x^2-1}{x-1}", "x+1"), (r"\binom{5}{2}", "10"),
    ("2π", r"2\pi"), ("−3", "-3"), ("½", "0.5"), (r"\left|-3\right|", "3"), ("3", r"so that \boxed{3} it is"),
]  # fmt: skip
DIFFERENT = [
    ("(2,1)", "(1,2)"), ("[1,2)", "(1,2)"), ("3.14", r"\pi"), ("0.333", "1/3"), ("0." + "3" * 60, "1/3"),
    ("y=5", "x=5"),
    ("12 m", "12 cm"), ("12 cm^2", "12 cm"), ("5x-7y+11z+5=0", "5x - 7y + 11z + 4 = 0"), ("0", "5x - 7y + 4 = 0"),
    ("q-p", "p - q"), ("1,2,2", "1,2"), (r"\{1\}", r"\{1,2\}"), ("B", r"\text{(C)}"), ("on", r"\text{no}"), 
    ("52", "52_8"),
    ("52_9", "52_8"), ("4:6", "2:3"), ("X", "x"), ("", "0"), (r"\boxed{}", "0"), ("0", ""), (r"\text{}", "1"),
    (r"2^{1000}\sqrt{2}+1", r"2^{1000}\sqrt{2}"), ("10^{100}+1", "10^{100}"), ("x^{2}", "x^{3}"), ("-x", "x"),
    (r"|x|", "x"),
    (r"0.\overline{3}", "0.3"), (r"\sin 60", r"\sin 60^\circ"),
    (r"\sum_{k=1}^{n} k", r"\frac{n(n-1)}{2}"), (r"\infty", r"-\infty"), ("1/0", "0"), ("10^{10^{10}}", "1"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"), ("5 million", "5"),
    ("1/2", "2"), ("2 thousand", "2"), (r"\frac{1}{2", "1"), ("10^{-100}", "2 \\cdot 10^{-100}"),
]  # fmt: skip

# Response, gold answer, right?
RESPONSES = [
    (r"\boxed{3} then \boxed{4}", "4", True), (r"\boxed{3} then \boxed{4}", "3", False), (r"\fbox{7}", "7", True),
    (r"\boxed 5$ ok", "5", True), (r"\boxed{\frac{1}{\sqrt{2}}} and so on", r"\frac{\sqrt2}{2}", True),
    ("Final Answer: The final answer is $5$. I hope it is correct.", "5", True), ("#### 1,234", "1234", True),
    (r"The final answer is $\boxed{2}$. Final Answer: The final answer is $3$. I hope it is correct.", "3", True),
    ("so the answer is 7, because 8 is more", "7", True), ("The answer is **12**.", "12", True),
    ("The answer is (C).", r"\text{(C)}", True), ("The total is 42 apples", "42", True), ("It is 1/3 then", "3", False),
    (r"So we get 3 + 2\sqrt{5}", "3", False), (r"so $x = 3$ and $y = 4$", "4", True), ("it costs $5 and $6", "6", True),
    (r"Hence $\frac{3}{4}$.", "0.75", True), ("a range 3-4", "4", False), ("x^2", "2", False), ("18", "18.0", True),
    ("You need 1 1/2 cups", "1.5", True), ("You need 1 1/2 cups", "1", False), (r"It is \(2\pi\).", r"2\pi", True),
    ("no answer", "1", False), (r"\boxed{3 or more}", "3", False), ("", "1", False), (r"\boxed{", "1", False),
    ("The answer is $\\$36$.", r"\$36", True),
]  # fmt: skip

# Spec spurious_rewards §3.2, answer and label as they reach the grader.
GRADER = [
    ("1/2", "0.5", True), ("2/4", "1/2", False), ("142", "142.0", True), ("25", "025", True), ("1,000", "1000", True),
    ("(2,1)", "(1,2)", False), ("2x", "x*2", True), ("{1,2}", "{2,1}", False), ("50", "50%", True),
    ("12", "12 cm", True), ("sqrt(8)", r"2\sqrt{2}", True), (r"\sqrt{4}", "2", False), ("1 1/2", "3/2", True),
    ("10^2", "100", False), ("[1,2)", "(1,2)", False), ("3.14", r"\pi", False), ("", "1", False),
    ("a+b+c", "c+b+a", False), ("(1,x+1)", "(1,1+x)", True), ("(1,2,3)", "(1,2)", False), ("x^{2}", "x*x", True),
    ("x^{12}", "x^{11}*x", False),
]  # fmt: skip
# §3.1
EXTRACTED = [
    (r"\boxed{3} then \boxed{4}", "4"), (r"\boxed{12\text{ cm}}", "12"), (r"\boxed{50\%}", "50"), (r"\boxed{x=3}", "3"),
    (r"\boxed{}", ""), (r"\boxed 5$ ok", "5"), ("no digits", ""), ("it is 12/5", "5"), ("it is 1,234", "1234"),
    ("final answer is $7$. I hope \\boxed{8}", "7"), ("The answer is 7.", "7"), (r"\fbox{9} or 10", "10"),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}"), (r"\boxed{3/4}", r"\frac{3}{4}"), (r"\boxed{\sqrt3}", r"\sqrt{3}"),
    (r"\boxed{three}", "3"), (r"\boxed{5 apples}", "5"), (r"\boxed{k = 4}", "4"), (r"\boxed{7.00}", "7"),
    (r"\boxed{\begin{bmatrix}1\end{bmatrix}}", r"\begin{pmatrix}1\end{pmatrix}"), (r"\boxed{90^\circ}", "90"),
]  # fmt: skip


def in_a_thread(call):
    """What a call returns in a thread that is not the main one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


@pytest.mark.parametrize("where", [lambda call: call(), in_a_thread], ids=["main thread", "other thread"])
def test_spec_tables_hold_in_any_thread(where):
    for clear in (symbolic.same_formula, spurious.grade):
        clear.cache_clear()

    def wrong():
        answers = [(a, b, True) for a, b in EQUAL] + [(a, b, False) for a, b in DIFFERENT]
        failed = [(a, b) for a, b, right in answers if check_math(a, b) is not right]
        failed += [("boxed", a, b) for a, b, right in answers if check_math(rf"\boxed{{{a}}}", b) is not right]
        failed += [(a, b) for a, b, right in RESPONSES if check_math(a, b) is not right]
        failed += [("grade", a, b) for a, b, right in GRADER if spurious.grade(a, b) is not right]
        return failed + [(a, extract_spurious(a)) for a, b in EXTRACTED if extract_spurious(a) != b]

    assert where(wrong) == []


def test_equality_goes_both_ways():
    one_way = [(a, b) for a, b in EQUAL[:-1] if check_math(b, a) is not True]
    assert one_way == [("(C) 17", r"\text{(C)}")]  # a letter says nothing of what stands behind it
    assert [(a, b) for a, b in DIFFERENT if check_math(b, a) is not False] == []


def test_styles():
    sentence = "Final Answer: The final answer is $5$. I hope it is correct."
    assert check_math(sentence, "5.0", "strict") and check_math("5", "5.0", "strict")
    assert not check_math(r"\boxed{5}, I think", "5", "strict")
    assert check_math("so 18", "18", "gsm8k") and not check_math("so 18", "18.0", "gsm8k")
    assert check_math(r"\boxed{12\text{ cm}}", "12", "spurious") and not check_math(r"\boxed{2/4}", "1/2", "spurious")
    thinking = r"<think>\boxed{1}</think> <answer> it is \boxed{2} </answer>"
    assert check_math(thinking, "2", "spurious_r1") and not check_math(thinking, "1", "spurious_r1")
    assert extract_spurious("<answer>the answer is seven answers</answer>", "spurious_r1") == "7answers"
    with pytest.raises(UserError, match="no style 'latex'"):
        check_math("1", "1", "latex")
    assert check_math(7, 7) and not check_math(None, "1")  # what is no text is taken as text


def test_labels_come_from_any_of_the_usual_columns():
    math, strict = VERIFIERS["math"], VERIFIERS["strict_math"]
    assert math(r"\boxed{1/2}", {"ground_truth": "0.5"}) == 1.0
    assert math(r"\boxed{1/2}", {"answer": "0.25 + 0.25\n#### 0.5"}) == 1.0
    assert math("5", {"ground_truth": None, "answer": 5}) == 1.0
    assert math(r"\boxed{2/4}", {"solution": r"It is \boxed{1} or \boxed{\frac12}."}) == 1.0
    assert math(r"\boxed{2/4}", {"answer": "1/2"}, style="spurious") == 0.0
    assert strict("Final Answer: The final answer is 3. I hope it is correct.", {"answer": "3"}) == 1.0
    for record, told in (({"_record": 4}, "record 4 of .* has no column"), ({"solution": "3"}, r"no \\boxed answer")):
        with pytest.raises(UserError, match=told):
            math("1", record)


def answers_of(folder, *names):
    for name in names:
        for row in json.loads((folder / "math" / f"{name}.json").read_text()):
            yield row["answer"]


def shares(answers):
    """(equals, accepted ones), (near misses, accepted ones)."""
    equals, misses = [], []
    for number, answer in enumerate(answers):
        for kind, made in ((equals, rewritten(answer)), (misses, near_misses(answer))):
            for k, (how, other) in enumerate(made):
                in_dollars = how in ("dollar signs", "dollars", "stop at the end")
                sentence = SENTENCES[1] if in_dollars else SENTENCES[(number + k) % len(SENTENCES)]
                kind.append((check_math(sentence.format(other), answer), how, sentence.format(other), answer))
    return equals, misses


def judged(answers):
    equals, misses = shares(answers)
    rejected = [case for case in equals if not case[0]]
    accepted = [case for case in misses if case[0]]
    print(
        f"{len(equals) - len(rejected)} of {len(equals)} equals, {len(accepted)} of {len(misses)} near misses accepted"
    )
    assert accepted == []
    assert len(rejected) <= 0.01 * len(equals), rejected[:20]
    return len(equals), len(misses)


def test_published_answers_in_other_forms_are_right_and_near_misses_wrong(shared_data):
    equals, misses = judged(answers_of(shared_data, "math500", "amc", "aime2024", "aime2025"))
    assert equals > 6000 and misses > 5000


@pytest.mark.slow
def test_eight_thousand_answers_in_other_forms_are_right_and_near_misses_wrong(shared_data):
    equals, misses = judged(answers_of(shared_data, "deepscaler_level1"))
    assert equals > 80_000 and misses > 70_000


def test_published_answers_are_right_as_they_are_in_every_style(shared_data):
    for answer in answers_of(shared_data, "math500", "amc", "aime2024", "aime2025"):
        boxed = f"So it is $\\boxed{{{answer}}}$."
        assert check_math(boxed, answer) and check_math(answer, answer) and check_math(answer, answer, "strict"), answer
        assert check_math(boxed, answer, "spurious"), answer


@pytest.fixture
def as_in_a_worker(monkeypatch):
    """No algebra is asked for: what reaches it is what a pool's cap is for."""
    monkeypatch.setattr(symbolic, "same", lambda response, record: 0.0)
    monkeypatch.setattr(pool_worker, "inside", True)
    symbolic.same_formula.cache_clear()
    yield
    symbolic.same_formula.cache_clear()


def test_hostile_texts_neither_raise_nor_stall(as_in_a_worker):
    assert len(set(HOSTILE)) >= 200
    for text in HOSTILE:
        for style in STYLES:
            assert check_math(text, "-77/3", style) is False
            assert check_math(f"\\boxed{{{text}}}", "\\sqrt{2}+w", style) is False
        assert check_math("\\boxed{1+w}", text) is False
        assert check_math(f"so the answer is {text}", text[:500]) in (True, False)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.one_of(st.text(), st.integers(), st.floats()), st.sampled_from(STYLES))
def test_no_text_breaks_it(response, gold, style):
    assert check_math(response, gold, style) in (True, False)


HARD = [r"\int_0^1 x^{x^{x}} dx", r"\sum_{k=1}^{99999} k^{77}", r"\int_0^{\infty} e^{-x^2} \sin(x^3) dx"]


def test_algebra_that_hangs_is_ended_and_the_next_answer_is_judged(monkeypatch):
    monkeypatch.setattr(symbolic, "SECONDS", 0.3)
    symbolic.same_formula.cache_clear()
    symbolic._shared_pool.cache_clear()
    try:
        found = []
        asking = threading.Thread(target=lambda: found.extend(check_math(hard, "0.123456789") for hard in HARD))
        asking.start()
        asking.join(60)
        assert found == [False] * len(HARD)
    finally:
        symbolic._shared_pool().close()
        symbolic._shared_pool.cache_clear()
        symbolic.same_formula.cache_clear()
    assert check_math(r"\sum_{k=1}^{9} k", "45")


def test_verifiers_give_the_same_in_a_pool():
    responses = [rf"\boxed{{{answer}}}" for answer, _ in EQUAL + DIFFERENT]
    records = [{"ground_truth": gold} for _, gold in EQUAL + DIFFERENT]
    with Pool(1, seconds=20, lookup=LOOKUP) as pool:
        got = pool.verdicts(["math", "math(style='spurious')", "strict_math"], responses, records)
    assert got.values[:, 0].tolist() == [1.0] * len(EQUAL) + [0.0] * len(DIFFERENT)
    assert not got.timed_out.any()
    here = [VERIFIERS["math"](r, record, style="spurious") for r, record in zip(responses, records, strict=True)]
    assert got.values[:, 1].tolist() == here


def test_a_program_that_checked_a_formula_ends_with_its_worker():
    code = (
        "from easylm_jax.rewards import check_math\nfrom easylm_jax.rewards.maths import symbolic\n"
        "assert check_math(r'\\sum_{k=1}^{9} k', '45')\n"
        "print(symbolic._shared_pool()._all[0].process.pid)"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
