"""Reward expressions say what they say in Python, and nothing else is let in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easylm_jax.config import Reward
from easylm_jax.config.expression import MODELS, Expression, parse_call
from easylm_jax.rewards.registry import verifier
from easylm_jax.rewards.verify import ExpressionScorer
from models.errors import UserError


def value(text, **values):
    return Expression(text)(values)


def test_weights_sums_gates_and_caps_are_arithmetic():
    assert value("10 * a", a=0.5) == 5
    assert value("a + 0.5 * b - c / 4", a=1, b=1, c=1) == 1.25
    assert value("a and b", a=0.5, b=0.5) == 0.25
    assert value("a or b", a=0.5, b=0.25) == 0.5
    assert value("a and not b", a=1, b=0) == 1 and value("a and not b", a=1, b=1) == 0
    assert value("a if b else -1", a=3, b=0.1) == 3 and value("a if b else -1", a=3, b=0) == -1
    assert value("min(1, a + b)", a=0.7, b=0.7) == 1 and value("max(a, b, -2)", a=-3, b=-4) == -2
    assert value("abs(a)", a=-2) == 2
    assert value("a > 0.5", a=0.6) == 1 and value("0 < a <= 0.5", a=0.6) == 0


def test_the_reward_model_mixture_of_if_rlvr():
    """Equation 2 of IFBench: V + 1 where V > 0 and S > α, V − 0.5 where V > 0 and S ≤ α, else V."""
    mixed = Expression("(v + 1 if model > 7 else v - 0.5) if v > 0 else v")
    assert mixed.uses_model and mixed.calls == ("v",)
    for v, score, expected in ((1, 8, 2), (1, 7, 0.5), (0.5, 6, 0), (0, 9, 0), (0, 1, 0)):
        assert mixed({"v": v, "model": score}) == expected


def test_each_verifier_is_called_once_and_options_tell_calls_apart():
    it = Expression("random(0.5) + random(0.7) * random(0.5) + gsm8k")
    assert it.calls == ("random(0.5)", "random(0.7)", "gsm8k")
    assert parse_call("math(style='spurious')") == ("math", (), {"style": "spurious"})
    assert parse_call("my.module:check") == ("my.module:check", (), {})
    assert parse_call("'my.module:check'(3, deep=(1, 'a'))") == ("my.module:check", (3,), {"deep": (1, "a")})
    assert Expression("my.module:check(2)").calls == ("'my.module:check'(2)",)


@pytest.mark.parametrize(
    "text",
    ["", "(", "a.b", "a[0]", "a ** 2", "1 / a", "a / 0", "lambda: 1", "f'{a}'", "'x'", "True", "None", "[a]", "a := 1",
     "min()", "abs(a, b)", "min(a, key=b)", "~a", "a in b", "x:y:z", "a; b", "import os", "a" * 3000,
     "(" * 1500 + ")" * 1500],
)  # fmt: skip
def test_what_is_no_expression_is_told_in_one_line(text):
    with pytest.raises(UserError, match="^reward: ") as told:
        Expression(text)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_a_user_error(text):
    try:
        it = Expression(text)
    except UserError:
        return
    assert np.isreal(it(dict.fromkeys((*it.calls, *MODELS), 0.5)))


def test_options_that_are_no_literals_or_that_a_verifier_has_not_are_told():
    with pytest.raises(UserError, match="must be literals"):
        parse_call("gsm8k(a)")
    with pytest.raises(UserError, match=r"'gsm8k\(1, 2, 3, 4, 5\)': too many positional arguments"):
        verifier("gsm8k(1, 2, 3, 4, 5)")
    with pytest.raises(UserError, match="no verifier 'gsm9k'"):
        ExpressionScorer("gsm8k + gsm9k")


def test_a_reward_model_that_the_expression_does_not_use_is_an_error_and_so_is_one_that_is_missing():
    with pytest.raises(UserError, match="is not used by"):
        Reward(model="rm", verifier="gsm8k")
    with pytest.raises(UserError, match="name it in reward.model"):
        Reward(verifier="gsm8k + model")
    assert Reward(model="rm", verifier="10 * gsm8k + model")


def test_a_batch_is_scored_with_its_parts():
    scored = ExpressionScorer("10 * gsm8k + model", model_scores=True)(
        ["it is 7", "it is 8"], [{"ground_truth": "7"}] * 2, model=np.array([0.25, -1])
    )
    assert scored.scores.tolist() == [10.25, -1]
    assert scored.components["gsm8k"].tolist() == [1, 0] and scored.timed_out == 0


def test_a_score_that_is_no_number_is_told_with_its_record():
    record = {"ground_truth": "7", "_record": 3, "_source": "a.jsonl"}
    with pytest.raises(UserError, match="is nan for record 3 of a.jsonl"):
        ExpressionScorer("gsm8k + model", model_scores=True)(["7"], [record], model=np.array([np.nan]))
