"""The analyses of Spurious Rewards against the paper's own numbers and against sampling."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from easylm_jax.evaluate.statistics import Estimate
from easylm_jax.objectives import group_advantages
from models.errors import UserError
from recipes.spurious_rewards import analysis, published, tabular
from recipes.spurious_rewards.analysis import SUBSETS, Subset

OLD = np.array([1.7, 0.2, -0.4, -1.0, -1.6])
NEW = OLD + np.array([-0.7, 0.5, 0.0, -0.5, 0.6])  # ratios on both sides of the band, and within it


def test_contributions_of_the_five_rewards_are_the_papers():
    """Section 4.2: 11.6, 8.6, 58.3 and 21.4 % of the gain (arXiv 2506.10947)."""
    rows = published.STRATEGY_SWITCH.values()
    assert [sum(subset.count for subset in row.values()) for row in rows] == [500] * 5
    found = analysis.mean_contributions(list(rows))
    assert [round(found[name], 1) for name in SUBSETS] == [11.6, 8.6, 58.3, 21.4]


@pytest.mark.parametrize("reward", published.STRATEGY_SWITCH)
def test_rows_of_the_strategy_switch_add_up_to_the_printed_totals(reward):
    row = published.STRATEGY_SWITCH[reward]
    before, after = (sum(round(s.count * getattr(s, when) / 100) for s in row.values()) / 5 for when in
                     ("before", "after"))  # fmt: skip
    assert before == pytest.approx(49.4) and after == pytest.approx(published.AT_150[reward])


def test_strategy_switch_parts_prompts_by_code_before_and_after():
    correct, code = [1, 0, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0]
    after, code_after = [1, 1, 1, 1, 0, 1], [1, 1, 0, 1, 0, 0]
    subsets = analysis.strategy_switch(correct, code, after, code_after)
    assert subsets == {
        "code → code": Subset(2, 50.0, 100.0), "code → language": Subset(1, 100.0, 100.0),
        "language → code": Subset(1, 0.0, 100.0), "language → language": Subset(2, 50.0, 50.0),
    }  # fmt: skip
    assert analysis.contributions(subsets) == {
        "code → code": 50.0, "code → language": 0.0, "language → code": 50.0, "language → language": 0.0
    }  # fmt: skip
    nobody = analysis.strategy_switch([1, 0], [0, 0], [1, 1], [0, 0])
    assert nobody["code → code"].count == 0 and math.isnan(nobody["code → code"].before)
    assert sum(analysis.contributions(nobody).values()) == 100
    with pytest.raises(UserError, match="shares of the gain are undefined"):
        analysis.contributions(analysis.strategy_switch([1], [1], [1], [0]))


def test_code_reasoning_gives_accuracy_with_and_without():
    found = analysis.code_reasoning([1, 0, 1, 1], [1, 1, 0, 0])
    assert (found.share.value, found.with_code.value, found.without_code) == (0.5, 0.5, Estimate(1.0, 0.0))
    assert analysis.code_reasoning([1, 0], [0, 0]).with_code is None


@pytest.mark.parametrize(("share", "mu"), [(0.5, 0.468), (0.3, 0.42547), (0.7, 0.42547), (0.001, 0.0037), (0, 0)])
def test_mu_of_a_random_reward_is_the_papers(share, mu):
    assert analysis.group_mu(16, share) == pytest.approx(mu, abs=5e-6 if mu == 0.42547 else 6e-5 if mu < 0.1 else 5e-4)


def test_mu_is_what_the_advantages_have_over_all_groups():
    """Every group of six coins, weighted by its chance: E[A] = 0 and E[max(A, 0)] = E[max(-A, 0)] = μ."""
    groups = np.array([[(number >> bit) & 1 for bit in range(6)] for number in range(64)], np.float64)
    chance = 0.3 ** groups.sum(axis=1) * 0.7 ** (6 - groups.sum(axis=1))
    advantages = np.asarray(group_advantages(groups, "grpo"), np.float64)
    assert (chance @ advantages).mean() == pytest.approx(0, abs=1e-7)
    for sign in (1, -1):
        one = (chance @ np.maximum(sign * advantages, 0)).mean()
        assert one == pytest.approx(analysis.group_mu(6, 0.3), abs=1e-6)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def sampled_gradients(key, clip):
    """The gradient of one rollout of random rewards, with the loss that trains."""
    old, new = (jax.numpy.asarray(x, jax.numpy.float32) for x in (OLD, NEW))
    draw, reward = jax.random.split(key)
    advantages = tabular.coins(reward, tabular.GROUPS)
    return tabular.gradient(new, old, jax.random.categorical(draw, old, shape=advantages.shape), advantages, clip)


@pytest.mark.parametrize("clip", (0.2, math.inf))
def test_bias_of_the_gradient_is_the_formula(clip):
    sampled = np.asarray(sampled_gradients(jax.random.split(jax.random.key(0), 10_000), clip), np.float64)
    expected = analysis.clipping_bias(OLD, NEW, analysis.group_mu(tabular.SAMPLES, 0.5), clip)
    errors = sampled.std(axis=0, ddof=1) / len(sampled) ** 0.5
    assert np.all(np.abs(sampled.mean(axis=0) - expected) < 4 * errors)
    assert expected.sum() == pytest.approx(0, abs=1e-12)
    assert (clip == 0.2) == bool(np.any(np.abs(expected) > 10 * errors))


def test_bias_pushes_what_fell_up_and_what_rose_down():
    bias = analysis.clipping_bias(OLD, NEW, 0.468, 0.2)
    ratio = np.exp(NEW) / np.exp(NEW).sum() / (np.exp(OLD) / np.exp(OLD).sum())
    assert ratio[0] < 0.8 and bias[0] > 0
    assert ratio[1] > 1.2 and bias[1] < 0
    np.testing.assert_array_equal(analysis.clipping_bias(OLD, OLD, 0.468, 0.2), 0)  # the first update of a rollout


def test_clip_raises_what_is_preferred_and_nothing_does_without_it():
    """The sign of the drift of the likeliest action under random rewards, eight updates a rollout."""
    clipped = tabular.drift(300, 5)
    free = tabular.drift(300, 5, clip=math.inf)
    assert clipped.value > 4 * clipped.stderr
    assert abs(free.value) < 3 * free.stderr
    assert clipped.value - free.value > 3 * math.hypot(clipped.stderr, free.stderr)


def test_token_probability_is_a_mean_over_tokens():
    logprobs = np.log([[0.5, 0.25, 1.0], [1.0, 0.1, 0.2]])
    assert analysis.token_probability(logprobs, [[1, 1, 0], [1, 0, 0]]) == pytest.approx(1.75 / 3)


def evaluation(folder, models, rows, column="python"):
    (folder / "models").mkdir(parents=True)
    for name, (score, code) in models.items():
        tasks = {"MATH-500": {"scores": score, "also": {column: code}}}
        (folder / "models" / f"{name}.json").write_text(json.dumps({"model": name, "tasks": tasks}))
    table = {"rows": [{"method": method, "stages": stages} for method, stages in rows]}
    (folder / "table.json").write_text(json.dumps(table))
    return folder


def test_report_compares_every_entry_with_the_first(tmp_path):
    models = {
        "base": ([0, 0, 1, 0], [0, 0, 1, 1]),
        "a": ([1, 0, 1, 1], [1, 0, 1, 0]),
        "b": ([0, 0, 1, 0], [1, 1, 1, 1]),
    }
    rows = [("Base", ["base"]), ("arm", ["a", "b"]), ("flat", ["b"])]
    text = analysis.report(evaluation(tmp_path / "eval", models, rows))
    assert "| Base | 50.0 ± 28.9 | 50.0 ± 50.0 | 0.0 ± 0.0 |" in text
    assert ("| arm | 3, 66.7 → 66.7, C 0.0 | 1, 0.0 → 100.0, C 50.0 | 3, 0.0 → 33.3, C 50.0 | 1, 0.0 → 0.0, C 0.0 |"
            in text)  # fmt: skip
    assert "| flat | 2, 50.0 → 50.0 | 0 | 2, 0.0 → 0.0 | 0 |" in text and "| mean C of 1 | 0.0 | 50.0 |" in text


def test_an_evaluation_without_code_is_told(tmp_path):
    folder = evaluation(tmp_path / "eval", {"base": ([0], [0])}, [("Base", ["base"])], column="length")
    with pytest.raises(UserError, match="no task 'MATH-500' with the column 'python'"):
        analysis.report(folder)
    with pytest.raises(UserError, match="holds no evaluation"):
        analysis.read_evaluation(tmp_path, "MATH-500")
