"""Policy-gradient losses: rewards at the right token, golden behaviour, float64 references, exact sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_losses as reference

from easylm_jax.objectives import (
    final_scores,
    gae,
    group_advantages,
    grpo_loss,
    importance_weights,
    kl_estimate,
    ppo_loss,
    token_rewards,
    value_loss,
)
from models.errors import UserError


def rollout(seed=0, rows=5, length=9):
    """logprobs, old_logprobs, advantages [rows, length], mask; ratios on both sides of both bounds."""
    rng = np.random.default_rng(seed)
    old = rng.normal(-2, 0.5, size=(rows, length))
    new = old + rng.normal(0, 0.3, size=old.shape)
    mask = np.arange(length) < rng.integers(1, length + 1, size=rows)[:, None]
    return new, old, rng.normal(size=old.shape), mask.astype(np.int32)


def mean(pair):
    return float(pair[0]) / float(pair[1])


# Rewards


def test_rewards_are_the_golden_values():
    kl = [[0.1, -0.05, 0.2, 0], [0, 0.1, 0.05, 0.3]]
    scores = final_scores([2.0, 3.0], [True, False])
    np.testing.assert_allclose(scores, [2, -10])
    rewards = token_rewards(scores, kl, [3, 4], beta=0.05)
    want = [[-0.005, 0.0025, 1.99, 0], [0, -0.005, -0.0025, -10.015]]
    np.testing.assert_allclose(rewards, want, atol=1e-6)
    values = [[0.5, 0.2, -0.1, 0], [0.3, 0.4, 0.1, 0.2]]
    advantages, _ = gae(rewards, values, [[1, 1, 1, 0], [1, 1, 1, 1]], gamma=1.0, lam=0.95)
    want = [[1.2986, 1.688, 2.09, 0], [-8.85984, -9.43141, -9.60675, -10.215]]
    np.testing.assert_allclose(advantages, want, atol=1e-5)


def test_a_fractional_reward_survives_and_sits_on_the_last_token():
    zeros = np.zeros((4, 5), np.int32)
    rewards = token_rewards([0.5, 1.7, -0.25, 9.0], zeros, [1, 5, 3, 0], beta=0.1)
    want = np.zeros((4, 5))
    want[0, 0], want[1, 4], want[2, 2] = 0.5, 1.7, -0.25  # a reply of the end token alone has length 1
    assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, want, rtol=1e-7)


def test_divergence_beyond_the_length_costs_nothing():
    kl = np.array([[0.5, 0.5, np.nan, np.inf]])
    np.testing.assert_allclose(token_rewards([1.0], kl, [2], beta=0.2), [[-0.1, 0.9, 0, 0]], rtol=1e-6)


def test_a_missing_end_replaces_the_score_before_gain_and_bias():
    scores, ended = [0.7, np.nan, 0.3], [True, False, False]
    np.testing.assert_allclose(final_scores(scores, ended), [0.7, -10, -10], rtol=1e-6)
    np.testing.assert_allclose(final_scores(scores, ended, missing_end=0.0, gain=2.0, bias=1.0), [2.4, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(final_scores([0.7, 0.3], [True, False], missing_end=None), [0.7, 0.3], rtol=1e-6)


# PPO


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.28), (np.inf, np.inf)])
def test_policy_loss_and_gradient_equal_float64(low, high):
    new, old, advantages, mask = rollout()
    loss, count, metrics = ppo_loss(new, old, advantages, mask, clip_low=low, clip_high=high)
    tokens = [(b, t) for b, t in np.ndindex(mask.shape) if mask[b, t]]
    each = {at: reference.policy_token(new[at], old[at], advantages[at], low, high) for at in tokens}
    assert loss.dtype == jnp.float32 and float(count) == len(tokens)
    assert float(loss) == pytest.approx(sum(value for value, _ in each.values()), rel=1e-5)
    slope = np.zeros(mask.shape)
    for at, (_, d) in each.items():
        slope[at] = d
    got = jax.grad(lambda x: ppo_loss(x, old, advantages, mask, clip_low=low, clip_high=high)[0])(jnp.asarray(new))
    np.testing.assert_allclose(got, slope, rtol=2e-5, atol=1e-6)
    reference.assert_gradient(lambda x: ppo_loss(x, old, advantages, mask, clip_low=low, clip_high=high)[0], new)
    ratio = np.exp(new - old)[mask > 0]
    a = advantages[mask > 0]
    shares = {"clip_fraction_low": (a < 0) & (ratio < 1 - low), "clip_fraction_high": (a > 0) & (ratio > 1 + high)}
    assert low == np.inf or all(share.any() for share in shares.values())
    for name, share in shares.items():
        assert mean(metrics[name]) == pytest.approx(share.mean(), abs=1e-6)
    assert mean(metrics["clip_fraction"]) == pytest.approx(sum(s.mean() for s in shares.values()), abs=1e-6)
    assert mean(metrics["ratio"]) == pytest.approx(ratio.mean(), rel=1e-5)
    assert mean(metrics["approx_kl"]) == pytest.approx((ratio - 1 - np.log(ratio)).mean(), rel=1e-4)


def test_on_policy_the_ratio_is_one_and_the_gradient_that_of_the_policy():
    new, _, advantages, mask = (jnp.asarray(x) for x in rollout(1))
    loss, _, metrics = ppo_loss(new, new, advantages, mask)
    assert mean(metrics["ratio"]) == 1.0 and mean(metrics["clip_fraction"]) == 0.0
    assert mean(metrics["approx_kl"]) == 0.0
    got = jax.grad(lambda x: ppo_loss(x, new, advantages, mask)[0])(new)
    np.testing.assert_array_equal(got, jnp.where(mask > 0, -advantages, 0.0))
    assert float(loss) == pytest.approx(float(-(advantages * mask).sum()), rel=1e-5)


def test_bounds_of_zero_still_have_the_whole_gradient_on_policy():
    """On the bound itself a maximum of two equals would give half."""
    new, _, advantages, mask = (jnp.asarray(x) for x in rollout(1))
    got = jax.grad(lambda x: ppo_loss(x, new, advantages, mask, clip_low=0.0, clip_high=0.0)[0])(new)
    np.testing.assert_array_equal(got, jnp.where(mask > 0, -advantages, 0.0))


def test_an_update_moves_the_ratio_away_from_one():
    """A table of logits, one step: the stored log-probabilities stay, the policy's move."""
    rng = np.random.default_rng(2)
    table, tokens = jnp.asarray(rng.normal(size=(6, 9, 11)), jnp.float32), rng.integers(0, 11, size=(6, 9))
    advantages, mask = jnp.asarray(rng.normal(size=(6, 9))), np.ones((6, 9))

    def logprobs(table):
        return jnp.take_along_axis(jax.nn.log_softmax(table), tokens[..., None], axis=-1)[..., 0]

    old = logprobs(table)
    loss = jax.value_and_grad(lambda table: ppo_loss(logprobs(table), old, advantages, mask)[::2], has_aux=True)
    (before, metrics), slope = loss(table)
    assert mean(metrics["ratio"]) == 1.0
    (after, metrics), _ = loss(table - 0.5 * slope)
    assert float(after) < float(before)
    assert mean(metrics["approx_kl"]) > 1e-3 and mean(metrics["clip_fraction"]) > 0
    assert 0 < mean(metrics["ratio"]) != 1.0


def test_recomputed_old_logprobs_make_the_clip_inert():
    """The reference's compatibility mode: old = the current policy without its gradient."""
    new, _, advantages, mask = (jnp.asarray(x) for x in rollout(3))
    got = jax.grad(lambda x: ppo_loss(x, x, advantages, mask)[0])(new)
    np.testing.assert_array_equal(got, jnp.where(mask > 0, -advantages, 0.0))


def test_dual_clip_bounds_what_a_bad_token_can_cost():
    new, old = jnp.array([[2.0, 0.5, 2.0]]), jnp.zeros((1, 3))
    advantages = jnp.array([[-1.0, -1.0, 1.0]])
    loss, _, metrics = ppo_loss(new, old, advantages, np.ones((1, 3)), dual_clip=3.0)
    assert float(loss) == pytest.approx(3.0 + np.exp(0.5) - 1.2, rel=1e-6)
    slope = jax.grad(lambda x: ppo_loss(x, old, advantages, np.ones((1, 3)), dual_clip=3.0)[0])(new)
    np.testing.assert_allclose(slope, [[0.0, np.exp(0.5), 0.0]], rtol=1e-6)
    assert float(metrics["clip_fraction"][0]) == 2


def test_rubbish_beyond_the_mask_reaches_neither_loss_nor_gradient_nor_metrics():
    new, old, advantages, mask = rollout(4)
    returns, values = advantages + 1, advantages * 0.5
    segment_ids = mask.copy()

    def everything(rubbish, x):
        x, o, a, g, v = (jnp.where(mask > 0, jnp.asarray(y), rubbish) for y in (x, old, advantages, returns, values))
        common = {"reference_logprobs": o - 0.1, "beta": 0.1, "weights": a, "entropy": a}
        results = [
            ppo_loss(x, o, a, mask, weights=a, entropy=a),
            value_loss(x, v, g, mask, clip=0.2),
            importance_weights(x, o, mask)[::-1] + (0.0,),
        ]
        for extra in ({}, {"aggregation": "sequence", "ratio": "sequence"}, {"surrogate": "cispo"},
                      {"segment_ids": segment_ids, "aggregation": "sequence", "kl": "k4"}):  # fmt: skip
            results.append(grpo_loss(x, o, a, mask, **common, **extra))
        losses = sum(r[0] for r in results if not isinstance(r[0], dict))
        return losses, results

    (_, want), slope = jax.value_and_grad(lambda x: everything(0.0, x), has_aux=True)(jnp.asarray(new))
    for rubbish in (np.nan, np.inf, 1e30):
        (_, got), again = jax.value_and_grad(lambda x, r=rubbish: everything(r, x), has_aux=True)(jnp.asarray(new))
        jax.tree.map(np.testing.assert_array_equal, got, want)
        np.testing.assert_array_equal(again, slope)


def test_policies_far_apart_stay_finite():
    new, old = jnp.array([[0.0, -300.0]]), jnp.array([[-300.0, 0.0]])
    for advantage in (1.0, -1.0):
        loss, slope = jax.value_and_grad(lambda x, a=advantage: ppo_loss(x, old, jnp.full((1, 2), a), [[1, 1]])[0])(new)
        assert np.isfinite(loss) and np.isfinite(slope).all()


def test_no_tokens_make_no_loss_and_no_gradient():
    new, old, advantages, mask = rollout()
    for name in ("token", "sequence", "dr_grpo", "bnpo"):
        loss, _, _ = grpo_loss(new, old, advantages[:, 0], np.zeros_like(mask), aggregation=name)
        assert float(loss) == 0.0
    loss, count, _ = ppo_loss(new, old, advantages, np.zeros_like(mask))
    assert float(loss) == float(count) == 0.0


# Values


@pytest.mark.parametrize("clip", [0.2, None])
def test_value_loss_and_gradient_equal_float64(clip):
    rng = np.random.default_rng(5)
    values, returns = rng.normal(size=(2, 4, 7))
    old, mask = values + rng.normal(0, 0.3, size=(4, 7)), (rng.random((4, 7)) < 0.7).astype(int)
    squares = (values - returns) ** 2
    if clip is not None:
        squares = np.maximum(squares, (np.clip(values, old - clip, old + clip) - returns) ** 2)
    loss, count, metrics = value_loss(values, old, returns, mask, clip=clip)
    assert float(loss) == pytest.approx(0.5 * squares[mask > 0].sum(), rel=1e-5)
    assert float(count) == mask.sum()
    assert mean(metrics["value"]) == pytest.approx(values[mask > 0].mean(), abs=1e-6)
    assert (mean(metrics["value_clip_fraction"]) > 0) == (clip is not None)
    reference.assert_gradient(lambda v: value_loss(v, old, returns, mask, clip=clip)[0], values)


def test_no_gradient_reaches_what_was_stored():
    new, old, advantages, mask = (jnp.asarray(x, jnp.float32) for x in rollout())
    stored = jax.grad(lambda o, a: ppo_loss(new, o, a, mask)[0], argnums=(0, 1))(old, advantages)
    stored += jax.grad(lambda o, g: value_loss(new, o, g, mask, clip=0.2)[0], argnums=(0, 1))(old, advantages)
    assert not any(np.asarray(g).any() for g in stored)


# GRPO


def grpo_by_hand(new, old, advantages, mask, base, *, beta, low, high, aggregation, ratio, constant):
    rows, total = [], 0.0
    for n in range(len(new)):
        on = np.flatnonzero(mask[n])
        gap = (new - old)[n, on]
        ratios = np.exp(np.full(len(on), gap.mean()) if ratio == "sequence" else gap)
        cost = np.maximum(-advantages[n] * ratios, -advantages[n] * np.clip(ratios, 1 - low, 1 + high))
        d = (new - base)[n, on]
        rows.append(cost + beta * (np.exp(-d) - 1 + d))
        total += len(on)
    return {
        "token": sum(r.sum() for r in rows) / total,
        "bnpo": sum(r.sum() for r in rows) / total,
        "sequence": np.mean([r.mean() for r in rows]),
        "dr_grpo": sum(r.sum() for r in rows) / (constant * len(rows)),
    }[aggregation]


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "dr_grpo", "bnpo"])
def test_grpo_equals_float64_in_value_and_gradient(aggregation, ratio):
    new, old, advantages, mask = rollout(6)
    base, advantages = new + np.random.default_rng(7).normal(0, 0.5, new.shape), advantages[:, 0]
    options = {"aggregation": aggregation, "ratio": ratio, "beta": 0.04}
    constant = 20.0 if ratio == "token" else None

    def ours(x):
        loss, denominator, _ = grpo_loss(
            x,
            old,
            advantages,
            mask,
            clip_low=0.1,
            clip_high=0.15,
            reference_logprobs=base,
            constant=constant,
            **options,
        )
        return loss / denominator

    want = grpo_by_hand(new, old, advantages, mask, base, low=0.1, high=0.15,
                        constant=new.shape[1] if constant is None else constant, **options)  # fmt: skip
    assert float(ours(new)) == pytest.approx(want, rel=2e-5)
    reference.assert_gradient(ours, new)


def micro_batch_means(new, old, advantages, mask, base, rows, **how):
    """In float64: the mean of a group's tokens, then over the groups that have one."""
    means = [
        grpo_by_hand(new[at : at + rows], old[at : at + rows], advantages[at : at + rows], mask[at : at + rows],
                     base[at : at + rows], aggregation="token", constant=1.0, **how)
        for at in range(0, len(new), rows) if mask[at : at + rows].any()
    ]  # fmt: skip
    return np.mean(means)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@pytest.mark.parametrize("empty", [False, True])
def test_bnpo_rows_equal_float64_in_value_and_gradient_however_a_batch_is_cut(rows, empty):
    new, old, advantages, mask = (np.concatenate([x, y])[:6] for x, y in zip(rollout(16), rollout(17), strict=True))
    advantages, base = advantages[:, 0], new + np.random.default_rng(7).normal(0, 0.5, new.shape)
    if empty and rows < 6:
        mask[:rows] = 0  # a group without a token, such as one that is left out
    fixed = {"clip_low": 0.1, "clip_high": 0.15, "beta": 0.04, "aggregation": "bnpo", "bnpo_rows": rows}

    def part(x, at, size):
        here = slice(at, at + size)
        return grpo_loss(x[here], old[here], advantages[here], mask[here], reference_logprobs=base[here], **fixed)[:2]

    def ours(x):
        loss, denominator = part(x, 0, 6)
        return loss / denominator

    want = micro_batch_means(new, old, advantages, mask, base, rows, low=0.1, high=0.15, beta=0.04, ratio="token")
    assert float(ours(new)) == pytest.approx(want, rel=2e-5)
    reference.assert_gradient(ours, new)
    for size in (one for one in (rows, 2 * rows, 3 * rows) if 6 % one == 0):
        sums = np.sum([part(new, at, size) for at in range(0, 6, size)], axis=0)
        assert sums[0] / sums[1] == pytest.approx(want, rel=2e-5)


def test_bnpo_rows_must_divide_the_rows():
    new, old, advantages, mask = rollout(6)
    with pytest.raises(UserError, match="bnpo_rows 4 does not divide"):
        grpo_loss(new[:3], old[:3], advantages[:3, 0], mask[:3], aggregation="bnpo", bnpo_rows=4)


def packed_rows(columns, advantages, mask):
    """Two responses a row, in columns twice as long, with room left; advantages a token."""
    rows, length = mask.shape
    width = 2 * length + 3
    out = {name: np.zeros((-(-rows // 2), width)) for name in (*columns, "advantages", "mask", "segment_ids")}
    for n in range(rows):
        count = int(mask[n].sum())
        row, place = divmod(n, 2)
        start = 0 if place == 0 else 2 + int(mask[n - 1].sum())
        here = (row, slice(start, start + count + 1))  # with a token that is not trained, as a prompt's would be
        for name, column in columns.items():
            out[name][here] = np.append(99.0, column[n, :count])
        out["advantages"][here], out["mask"][here] = advantages[n], np.append(0, np.ones(count))
        out["segment_ids"][here] = place + 1
    return out


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "dr_grpo"])
def test_packed_rows_have_the_loss_of_whole_ones(aggregation, ratio):
    new, old, advantages, mask = rollout(8)
    columns = {"logprobs": new, "old_logprobs": old, "reference_logprobs": new - 0.2 * old}
    options = {"aggregation": aggregation, "ratio": ratio, "beta": 0.1, "constant": 9.0}
    whole = grpo_loss(**columns, advantages=advantages[:, 0], mask=mask, **options)
    packed = packed_rows(columns, advantages[:, 0], mask)
    together = grpo_loss(**packed, **options)
    assert float(together[0]) == pytest.approx(float(whole[0]), rel=1e-5)
    assert float(together[1]) == float(whole[1])
    for name, pair in whole[2].items():
        assert mean(together[2][name]) == pytest.approx(mean(pair), rel=1e-5, abs=1e-6), name

    def total(x, named):
        return grpo_loss(**{**named, "logprobs": x}, **options)[0]

    slope = jax.grad(total)(jnp.asarray(new), {**columns, "advantages": advantages[:, 0], "mask": mask})
    packed_slope = jax.grad(total)(jnp.asarray(packed["logprobs"]), packed)
    np.testing.assert_allclose(packed_slope[packed["mask"] > 0], slope[mask > 0], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "dr_grpo"])
def test_sums_over_micro_batches_are_the_whole_batch(aggregation):
    new, old, advantages, mask = rollout(9, rows=6)
    whole = grpo_loss(new, old, advantages[:, 0], mask, aggregation=aggregation)
    parts = [
        grpo_loss(new[i : i + 2], old[i : i + 2], advantages[i : i + 2, 0], mask[i : i + 2], aggregation=aggregation)
        for i in range(0, 6, 2)
    ]
    added = jax.tree.map(lambda *x: sum(x), *parts)
    for got, want in zip(jax.tree.leaves(added), jax.tree.leaves(whole), strict=True):
        assert float(got) == pytest.approx(float(want), rel=1e-5, abs=1e-5)


def test_a_response_without_trained_tokens_has_no_mean_but_takes_its_share_of_the_constant():
    new, old, advantages, mask = rollout(10)
    masked = mask.copy()
    masked[2] = 0  # as for a truncated response that is not to be learnt from
    rest = np.arange(5) != 2
    for name in ("token", "sequence"):
        some = grpo_loss(new, old, advantages[:, 0], masked, aggregation=name)
        others = grpo_loss(new[rest], old[rest], advantages[rest, 0], mask[rest], aggregation=name)
        assert float(some[0]) == pytest.approx(float(others[0]), rel=1e-6) and float(some[1]) == float(others[1])
    assert float(grpo_loss(new, old, advantages[:, 0], masked, aggregation="dr_grpo")[1]) == 5 * 9


def test_cispo_keeps_the_gradient_of_every_token():
    new, old, advantages, mask = rollout(11)
    got = jax.grad(lambda x: grpo_loss(x, old, advantages[:, 0], mask, clip_high=0.1, surrogate="cispo")[0])
    want = -advantages[:, :1] * np.minimum(np.exp(new - old), 1.1) * mask
    np.testing.assert_allclose(got(jnp.asarray(new)), want, rtol=1e-5, atol=1e-6)


def test_without_a_coefficient_the_divergence_is_measured_but_not_trained():
    new, old, advantages, mask = rollout(12)
    plain = grpo_loss(new, old, advantages[:, 0], mask)
    measured = grpo_loss(new, old, advantages[:, 0], mask, reference_logprobs=old)
    assert float(plain[0]) == float(measured[0])
    assert mean(measured[2]["kl"]) == pytest.approx(float(kl_estimate(new, old, "k3")[mask > 0].mean()), rel=1e-5)
    same = grpo_loss(new, old, advantages[:, 0], mask, reference_logprobs=new, beta=0.5)
    assert float(same[2]["kl"][0]) == 0.0 and float(same[0]) == float(plain[0])


def test_divergence_k4_uses_the_ratio_to_the_sampler():
    new, old, _, mask = rollout(13)
    base = new + 0.3 * old
    loss, count, metrics = grpo_loss(new, old, np.zeros(5), mask, reference_logprobs=base, beta=2.0, kl="k4")
    want = (np.exp(new - old) * (new - base))[mask > 0]
    assert float(loss) == pytest.approx(2 * want.sum(), rel=1e-5)
    assert mean(metrics["kl"]) == pytest.approx(want.mean(), rel=1e-5)


def test_importance_weights_are_truncated_and_dropped():
    gap = np.array([[-12.0, -1.0, 0.0, 0.5, 3.0, 7.0]])
    zeros, mask = np.zeros((1, 6)), np.array([[1, 1, 1, 1, 1, 0]])
    weights, metrics = importance_weights(gap, zeros, mask)
    np.testing.assert_allclose(weights, [[np.exp(-10), np.exp(-1), 1, np.exp(0.5), 2, 0]], rtol=1e-6)
    assert mean(metrics["weight_clipped"]) == pytest.approx(0.2) and mean(metrics["weight_dropped"]) == 0.0
    weights, metrics = importance_weights(gap, zeros, mask, drop_below=0.1, drop_above=5.0)
    np.testing.assert_allclose(weights, [[0, np.exp(-1), 1, np.exp(0.5), 0, 0]], rtol=1e-6)
    assert mean(metrics["weight_dropped"]) == pytest.approx(0.4)
    weights, _ = importance_weights(gap, zeros, mask, level="sequence")
    np.testing.assert_allclose(weights, np.exp(gap[0, :5].mean()) * mask, rtol=1e-6)
    same, metrics = importance_weights(gap, gap, mask)
    np.testing.assert_array_equal(same, mask)
    assert float(metrics["sampler_kl"][0]) == 0.0


def test_importance_weights_touch_the_policy_term_only():
    new, old, advantages, mask = rollout(14)
    options = {"reference_logprobs": old, "beta": 0.3}
    double = grpo_loss(new, old, advantages[:, 0], mask, weights=np.full(mask.shape, 2.0), **options)
    policy = grpo_loss(new, old, advantages[:, 0], mask)
    divergence = kl_estimate(new, old, "k3")[mask > 0].sum()
    assert float(double[0]) == pytest.approx(2 * float(policy[0]) + 0.3 * float(divergence), rel=1e-5)


def test_random_rewards_teach_nothing_unless_the_clip_acts():
    """Over every outcome of fair coins, E[gradient] is 0 without bounds, and with them it pulls back into the band:
    E[max(A, 0)] · ∇ρ · (1{ρ < 1 − ε} − 1{ρ > 1 + ε}) (spec spurious_rewards §8)."""
    outcomes = np.array(np.meshgrid(*[[0.0, 1.0]] * 4)).reshape(4, -1).T
    advantages = np.asarray(group_advantages(outcomes, "grpo"))
    gap = np.log(np.array([0.5, 0.9, 1.1, 1.5]))
    ones = np.ones((4, 1))

    def expected(clip):
        def loss(x):
            each = [
                grpo_loss(x[:, None], np.zeros((4, 1)), a, ones, clip_low=clip, clip_high=clip)[0] for a in advantages
            ]
            return -sum(each) / len(each)

        return np.asarray(jax.grad(loss)(jnp.asarray(gap)))

    np.testing.assert_allclose(expected(np.inf), np.zeros(4), atol=1e-6)
    half = np.maximum(advantages, 0).mean()
    np.testing.assert_allclose(expected(0.2), half * np.exp(gap) * np.array([1, 0, 0, -1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "mean"}, "aggregation: there is no 'mean'"),
        ({"ratio": "word"}, "ratio: there is no 'word'; choose token or sequence"),
        ({"surrogate": "clop"}, "surrogate: there is no 'clop'"),
        ({"beta": 0.1}, "there are no reference log-probabilities"),
    ],
)
def test_unknown_choices_are_named(options, message):
    new, old, advantages, mask = rollout()
    with pytest.raises(UserError, match=message):
        grpo_loss(new, old, advantages[:, 0], mask, **options)
