"""Suites average the very columns that a paper averages, and a judge that fails is told, never half a point."""

import pytest
from faulty_server import faulty_server

from easylm_jax.evaluate import suites
from easylm_jax.evaluate.harness import rolling_windows
from easylm_jax.evaluate.judges import judge_of
from easylm_jax.evaluate.suites import Column, Suite, one
from models.errors import UserError

SUITE = Suite("s", "a paper", (one("A", "a"), Column("B", ("b", Column("C", ("c:1", "c:2"), "max")))))
RESULTS = {
    name: {"score": score, "stderr": stderr, "metric": "acc", "units": {"acc": "share"}}
    for name, score, stderr in (("a", 0.5, 0.03), ("b", 0.2, 0.04), ("c:1", 0.4, 0.05), ("c:2", 0.6, 0.06))
}


def test_columns_are_means_and_maxima_and_the_average_is_that_of_the_columns():
    table = suites.table(SUITE, RESULTS)
    assert SUITE.benchmarks() == ("a", "b", "c:1", "c:2")
    assert table["columns"]["B"]["score"] == pytest.approx((0.2 + 0.6) / 2)
    assert table["columns"]["B"]["stderr"] == pytest.approx((0.04**2 + 0.06**2) ** 0.5 / 2)
    assert table["score"] == pytest.approx((0.5 + 0.4) / 2)


def test_there_is_no_average_where_a_column_was_not_asked():
    table = suites.table(SUITE, {name: RESULTS[name] for name in ("a", "b", "c:1")})
    assert table["columns"]["B"] is None and table["score"] is None and table["columns"]["A"]["score"] == 0.5


def test_a_suite_is_the_columns_of_a_stage():
    asked = suites.asks("rlvr", limit=20)
    assert [ask.benchmark for ask in asked] == ["gsm8k", "math500", "ifeval"] and {ask.limit for ask in asked} == {20}
    with pytest.raises(UserError, match="did you mean 'rlvr'"):
        suites.asks("rlvl")


def test_the_papers_suites_have_the_papers_columns():
    sizes = {name: len(suite.columns) for name, suite in suites.SUITES.items()}
    assert sizes["tulu25"] == 6 and len(suites.SUITES["tulu25"].benchmarks()) == 11
    assert sizes["tulu3-dev"] == 12 and sizes["tulu3-unseen"] == 7 and sizes["tulu3-safety"] == 6
    assert sizes["olmo2-base"] == 10 and sizes["olmo2-instruct"] == 10


def test_windows_of_a_long_text_have_each_token_once_and_a_full_last_context():
    """The example of lm-evaluation-harness: ten tokens, a context of four."""
    assert rolling_windows(range(10), 4) == [([], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert rolling_windows([], 4) == [] and rolling_windows([7], 4) == [([], [7])]


def test_a_server_judges_and_its_failures_are_one_line():
    with faulty_server() as server:
        judge = judge_of(f"{server.url}#m", attempts=1, timeout=2.0)
        turns = [[{"role": "user", "content": f"q{number}"}] for number in range(12)]
        assert judge(turns) == [server.reply(turn[0]["content"]) for turn in turns]
        with pytest.raises(UserError, match="^judge http.*; what is known is kept$"):
            judge([*turns[:1], [{"role": "user", "content": "q99 busy"}]])
    with pytest.raises(UserError, match="name its model behind a #"):
        judge_of("http://127.0.0.1:1/v1")
