"""Advantages, whitening, divergences: golden values, float64 references, and the edges where peers go wrong."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_losses as reference

from easylm_jax.objectives import adaptive_kl, explained_variance, gae, group_advantages, kl_estimate, whiten
from models.errors import UserError

VALUES = [[0.5, 0.2, -0.1, 0], [0.3, 0.4, 0.1, 0.2]]
MASK = [[1, 1, 1, 0], [1, 1, 1, 1]]
REWARDS = [[-0.005, 0.0025, 1.99, 0], [0, -0.005, -0.0025, -10.015]]


def test_gae_and_whitening_give_the_golden_values():
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=0.95)
    want = [[1.2986, 1.688, 2.09, 0], [-8.85984, -9.43141, -9.60675, -10.215]]
    np.testing.assert_allclose(advantages, want, atol=1e-5)
    want = [[1.7986, 1.888, 1.99, 0], [-8.55984, -9.03141, -9.50675, -10.015]]
    np.testing.assert_allclose(returns, want, atol=1e-5)
    want = [[1.00053, 1.06527, 1.13211, 0], [-0.68835, -0.78338, -0.81253, -0.91365]]
    np.testing.assert_allclose(whiten(advantages, MASK), want, atol=1e-5)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_gae_equals_the_sum_of_discounted_errors(gamma, lam):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 5, 17))
    mask = np.arange(17) < np.array([17, 1, 9, 0, 4])[:, None]
    mask[0, 5:8] = False  # tokens in the middle that the policy did not choose
    want = reference.gae(rewards, values, mask, gamma, lam)
    for got, right in zip(gae(rewards, values, mask, gamma=gamma, lam=lam), want, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, right, atol=2e-5)
    with jax.enable_x64(True):
        for got, right in zip(gae(rewards, values, mask, gamma=gamma, lam=lam), want, strict=True):
            np.testing.assert_allclose(got, right, atol=1e-13)


def test_what_stands_beyond_the_mask_changes_nothing():
    rewards, values, mask = np.array(REWARDS), np.array(VALUES), np.array(MASK)
    for rubbish in (7.0, np.nan, np.inf):
        changed = gae(np.where(mask, rewards, rubbish), np.where(mask, values, rubbish), mask, gamma=1.0, lam=0.9)
        for got, want in zip(changed, gae(rewards, values, mask, gamma=1.0, lam=0.9), strict=True):
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(whiten(np.where(mask, values, rubbish), mask), whiten(values, mask))


def test_integer_rewards_become_floats():
    advantages, _ = gae(np.array([[0, 1]]), np.array([[0.5, 0.25]]), np.array([[1, 1]]), gamma=1.0, lam=1.0)
    np.testing.assert_allclose(advantages, [[0.5, 0.75]])


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_numpy_over_the_masked_tokens(ddof, shift_mean):
    rng = np.random.default_rng(1)
    x, mask = rng.normal(2.0, 3.0, size=(4, 9)), rng.random((4, 9)) < 0.6
    inside = x[mask]
    want = (inside - inside.mean()) / np.sqrt(inside.var(ddof=ddof) + 1e-3) + (0.0 if shift_mean else inside.mean())
    got = np.asarray(whiten(x, mask, shift_mean=shift_mean, eps=1e-3, ddof=ddof))
    np.testing.assert_allclose(got[mask], want, rtol=2e-6, atol=1e-6)
    assert not got[~mask].any()


def test_whitening_of_one_token_and_of_none_is_zero():
    np.testing.assert_array_equal(whiten([[3.0, 5.0]], [[0, 1]]), [[0, 0]])
    np.testing.assert_array_equal(whiten([[3.0, 5.0]], [[0, 1]], shift_mean=False), [[0, 5]])
    np.testing.assert_array_equal(whiten([[3.0, 5.0]], [[0, 0]]), [[0, 0]])


def test_divergence_estimators_equal_their_formulas():
    rng = np.random.default_rng(2)
    new, base, old = rng.normal(-2, 1, size=(3, 50))
    d = new - base
    want = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d, "k4": np.exp(new - old) * d}
    for kind, right in want.items():
        got = kl_estimate(new, base, kind, old_logprobs=old)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, right, rtol=5e-6, atol=1e-6)
    np.testing.assert_allclose(kl_estimate(new, base, "k4"), d, atol=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k4"])
def test_divergence_of_identical_models_is_exactly_zero(kind):
    logprobs = np.random.default_rng(3).normal(-3, 2, size=64)
    assert not np.asarray(kl_estimate(logprobs, logprobs, kind)).any()


def test_small_divergences_keep_their_digits():
    """exp(−d) − 1 as written has errors of 6e-8 in float32, more than the whole of these."""
    d = np.array([1e-3, 1e-4, -3e-4])
    np.testing.assert_allclose(kl_estimate(d, np.zeros(3), "k3"), np.expm1(-d) + d, rtol=1e-3)


def test_estimates_of_policies_far_apart_stay_finite():
    far = np.array([-500.0, -60.0, 60.0, 500.0])
    for kind in ("k1", "k2", "k3", "k4"):
        value, slope = jax.vjp(lambda x, kind=kind: kl_estimate(x, jnp.zeros(4), kind, old_logprobs=jnp.zeros(4)), far)
        assert np.isfinite(value).all() and np.isfinite(slope(jnp.ones(4))[0]).all()


def test_expected_values_and_gradients_are_those_of_the_divergence():
    """Over a whole categorical distribution: k1, k3 and k4 are unbiased; k2 and k4 have the true gradient."""
    logits, base = np.random.default_rng(4).normal(size=(2, 7))
    base = base - np.log(np.exp(base).sum())

    with jax.enable_x64(True):

        def true(x):
            logp = jax.nn.log_softmax(x)
            return (jnp.exp(logp) * (logp - base)).sum()

        def expected(x, kind):
            logp = jax.nn.log_softmax(x)
            return (jax.lax.stop_gradient(jnp.exp(logp)) * kl_estimate(logp, base, kind)).sum()

        for kind in ("k1", "k3", "k4"):
            np.testing.assert_allclose(expected(logits, kind), true(logits), rtol=1e-12)
        for kind in ("k2", "k4"):
            np.testing.assert_allclose(jax.grad(expected)(logits, kind), jax.grad(true)(logits), atol=1e-14)
        np.testing.assert_allclose(jax.grad(expected)(logits, "k1"), np.zeros(7), atol=1e-14)


def test_group_advantages_equal_numpy():
    rewards = np.random.default_rng(5).normal(size=(6, 8))
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / 7
    want = {
        "grpo": centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-8),
        "standard": centred / (rewards.std(axis=1, keepdims=True) + 1e-8),
        "mean": centred,
        "dr_grpo": centred,
        "rloo": rewards - others,
    }
    for kind, right in want.items():
        np.testing.assert_allclose(group_advantages(rewards, kind), right, atol=3e-6)


@pytest.mark.parametrize("kind", ["grpo", "standard", "mean", "dr_grpo", "rloo"])
def test_groups_without_differences_have_no_advantage(kind):
    """Sixteen times 0.1 has a mean that is not 0.1 in float32; a division by σ + eps would make it count."""
    rewards = np.repeat([[0.1], [1 / 3], [-7.7], [0.0]], 16, axis=1)
    assert not np.asarray(group_advantages(rewards, kind)).any()
    assert not np.asarray(group_advantages(np.array([[0.7], [0.2]]), kind)).any()


@pytest.mark.parametrize(("chance", "half_mean"), [(0.5, 0.4679), (0.3, 0.4255), (0.7, 0.4255), (0.001, 0.00373)])
def test_random_rewards_have_the_exact_mean_advantage(chance, half_mean):
    """E[max(A, 0)] over all outcomes of 16 coin flips is E[√(p (1 − p) 15/16)], p the share of heads; E[A] = 0.

    (Spec spurious_rewards §8, which has 0.426 where the sum is 0.42547.)
    """
    groups = np.array([[1.0] * k + [0.0] * (16 - k) for k in range(17)])
    weight = np.array([math.comb(16, k) * chance**k * (1 - chance) ** (16 - k) for k in range(17)])
    share = np.arange(17) / 16
    want = (weight * np.sqrt(share * (1 - share) * 15 / 16)).sum()
    assert want == pytest.approx(half_mean, rel=1e-3)
    advantages = np.asarray(group_advantages(groups, "grpo"), np.float64)
    assert (weight * np.maximum(advantages, 0).mean(axis=1)).sum() == pytest.approx(want, rel=1e-6)
    assert (weight * advantages.mean(axis=1)).sum() == pytest.approx(0.0, abs=1e-7)


def test_unknown_kinds_are_named_in_the_message():
    with pytest.raises(UserError, match="'k5'.*k1, k2, k3 or k4"):
        kl_estimate([0.0], [0.0], "k5")
    with pytest.raises(UserError, match="'median'.*rloo"):
        group_advantages([[0.0, 1.0]], "median")


def test_adaptive_coefficient_moves_towards_its_target():
    assert float(adaptive_kl(0.2, 6.0, target=6.0)) == pytest.approx(0.2)
    assert float(adaptive_kl(0.2, 6.6, target=6.0)) == pytest.approx(0.2 * 1.01)
    assert float(adaptive_kl(0.2, 60.0, target=6.0)) == pytest.approx(0.2 * 1.02)
    assert float(adaptive_kl(0.2, 0.0, target=6.0, rate=0.5)) == pytest.approx(0.2 * 0.9)
    assert float(adaptive_kl(0.2, np.nan, target=6.0)) == pytest.approx(0.2)


def test_explained_variance_is_one_for_perfect_values_and_zero_for_the_mean():
    rng = np.random.default_rng(6)
    returns, noise, mask = rng.normal(size=(3, 8)), 0.3 * rng.normal(size=(3, 8)), rng.random((3, 8)) < 0.7
    assert float(explained_variance(returns, returns, mask)) == 1.0
    assert float(explained_variance(np.full((3, 8), 0.4), returns, mask)) == pytest.approx(0.0, abs=1e-6)
    want = 1 - noise[mask].var() / returns[mask].var()
    assert float(explained_variance(returns + noise, returns, mask)) == pytest.approx(want, rel=1e-5)
    assert float(explained_variance(noise, np.ones((3, 8)), mask)) == 0.0
