"""Reward models: golden values, the right token under packing, and calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_losses as reference
from pair_batches import CONFIG, Bigram, packed, unpacked

import models
from easylm_jax.objectives import calibration, pair_scores, reward_model_loss, reward_modelling, score_responses
from easylm_jax.train.step import gradients
from models.config import Compute
from models.errors import UserError


def test_golden_values():
    losses, metrics = reward_model_loss([1.5], [0.3])
    assert float(losses[0]) == pytest.approx(0.263282, abs=1e-6)
    assert float(metrics["accuracy"][0]) == 1.0
    assert float(metrics["reward_margin"][0]) == pytest.approx(1.2)
    assert float(reward_model_loss([1.5], [0.3], [0.5])[0][0]) == pytest.approx(0.403186, abs=1e-6)


def test_losses_and_gradients_equal_float64():
    rng = np.random.default_rng(0)
    scores, margin = rng.normal(0, 4, size=(2, 9)), rng.random(9)
    want = [-reference.log_sigmoid(c - r - m) for c, r, m in zip(*scores, margin, strict=True)]
    losses, metrics = reward_model_loss(*scores, margin)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["brier"], [(1 - reference.sigmoid(c - r)) ** 2 for c, r in scores.T], rtol=1e-5)
    reference.assert_gradient(lambda s: reward_model_loss(*s, margin)[0].sum(), scores)


def test_sixteen_bit_scores_and_far_leads_stay_exact():
    losses, _ = reward_model_loss(jnp.array([500.0, -500.0], jnp.bfloat16), jnp.zeros(2, jnp.bfloat16))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, [0.0, 500.0])


@pytest.fixture(scope="module")
def scorer():
    model = models.build(CONFIG.replace(scalar_head=True), Compute(attention="dense"))
    params = model.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, noisy)


def test_a_side_is_scored_at_its_last_token_as_if_it_were_alone(scorer):
    model, params = scorer
    chosen, rejected = jax.jit(pair_scores, static_argnums=0)(model, params, packed())
    rows = unpacked()
    lengths = jnp.array([len(tokens) for _, _, tokens, _ in rows])
    tokens = np.full((len(rows), 14), 9, np.int32)  # padded with an ordinary token
    for i, (_, _, side, _) in enumerate(rows):
        tokens[i, : len(side)] = side
    score = jax.jit(score_responses, static_argnums=0)
    alone = score(model, params, jnp.asarray(tokens), lengths)
    for i, (row, place, _, weights) in enumerate(rows):
        together = chosen if weights.max() == 1 else rejected
        assert float(together[row, place]) == pytest.approx(float(alone[i]), abs=2e-5)
    assert len({round(float(x), 4) for x in alone}) == len(rows)
    absent = np.asarray(packed()["pair_index"]) < 0
    assert absent.any() and not np.asarray(chosen)[absent].any()
    # Neither the padding's ids nor a last token that is the padding's id matter: only lengths do.
    inside = np.arange(14) < np.asarray(lengths)[:, None]
    for filler in (0, int(tokens[0, int(lengths[0]) - 1])):
        padded = jnp.asarray(np.where(inside, tokens, filler))
        np.testing.assert_array_equal(score(model, params, padded, lengths), alone)


@pytest.mark.parametrize("use_margin", [False, True])
def test_packing_and_accumulation_change_neither_loss_nor_gradient(use_margin):
    model = Bigram()
    params = model.init(jax.random.key(2))
    objective = reward_modelling(model, use_margin=use_margin)

    def run(batch, accumulate):
        key = jax.random.key(0)
        return jax.jit(lambda p, b: gradients(objective, p, b, key, {}, accumulate))(params, batch)

    scores = pair_scores(model, params, packed(pairs_per_row=1))
    margins = 0.25 * np.arange(5) if use_margin else np.zeros(5)
    want = [-reference.log_sigmoid(float(c) - float(r) - m) for c, r, m in zip(*(s[:, 0] for s in scores), margins)]  # noqa: B905
    grads, loss, metrics = run(packed(pairs_per_row=1), 1)
    assert float(loss) == pytest.approx(np.mean(want), rel=1e-5)
    assert float(metrics["pairs"]) == 5
    for rows, accumulate in ((packed(pairs_per_row=3), 1), (packed(), 3)):
        again, other, others = run(rows, accumulate)
        assert float(other) == pytest.approx(float(loss), rel=1e-6)
        for name in metrics:
            assert float(others[name]) == pytest.approx(float(metrics[name]), rel=1e-5, abs=1e-6), name
        for name in ("table", "place", "score"):
            a, b = jax.tree.leaves(again[name])[0], jax.tree.leaves(grads[name])[0]
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_squares_give_the_standard_deviation():
    chosen = np.random.default_rng(1).normal(2, 3, size=50)
    _, metrics = reward_model_loss(chosen, np.zeros(50))
    std = np.sqrt(float(metrics["reward_chosen_squared"].mean()) - float(metrics["reward_chosen"].mean()) ** 2)
    assert std == pytest.approx(chosen.std(), rel=1e-4)


def test_margins_without_a_column_are_refused():
    model = Bigram()
    batch = {name: column for name, column in packed().items() if name != "margins"}
    with pytest.raises(UserError, match="no column margins"):
        reward_modelling(model, use_margin=True)(model.init(jax.random.key(0)), batch, jax.random.key(0), {})


def test_calibration_finds_a_model_that_is_too_sure():
    """Labels drawn from the leads' own probabilities are calibrated; the same leads tripled are too sure."""
    rng = np.random.default_rng(3)
    size = rng.exponential(1.0, size=20000)
    leads = np.where(rng.random(20000) < 1 / (1 + np.exp(-size)), size, -size)
    honest, boastful = calibration(leads), calibration(3 * leads)
    assert float(honest["count"].sum()) == 20000
    assert float(honest["error"]) < 0.02 < 0.1 < float(boastful["error"])
    in_bin = (1 / (1 + np.exp(-np.abs(leads)))) >= 0.95
    assert float(honest["accuracy"][-1]) == pytest.approx((leads[in_bin] > 0).mean(), rel=1e-3)


def test_calibration_of_ties_and_of_empty_bins():
    report = calibration([0.0, 0.0])
    assert float(report["accuracy"][0]) == 0.5 and float(report["error"]) == 0.0
    assert not np.asarray(report["count"])[1:].any() and not np.asarray(report["accuracy"])[1:].any()
