"""The language-modelling objective against float64, and the exactness of its sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from easylm_jax.objectives import language_modelling
from easylm_jax.objectives.language_modelling import trained_documents
from easylm_jax.train.step import gradients
from models.config import Compute, DecoderConfig

CONFIG = DecoderConfig(family="olmo2", layers=2, width=32, heads=4, ffn=48, vocab=64, context=32, qk_norm=True)


def batch(seed=0, rows=4, length=24, cuts=(9, 17, 21)):
    rng = np.random.default_rng(seed)
    segments = np.searchsorted(np.array(cuts), np.arange(length), side="right") + 1
    segments = np.where(segments > len(cuts), 0, segments)  # the rest is padding
    segments = np.broadcast_to(segments, (rows, length)).astype(np.int32)
    last = np.concatenate([segments[:, 1:] != segments[:, :-1], np.ones((rows, 1), bool)], axis=1)
    weights = rng.random((rows, length)) * (rng.random((rows, length)) < 0.6) * ~last * (segments > 0)
    weights[1] *= 3.0  # rows with unequal shares of the loss
    starts = np.concatenate([[0], cuts])
    positions = np.arange(length) - starts[np.searchsorted(starts, np.arange(length), side="right") - 1]
    return {
        "tokens": jnp.asarray(rng.integers(0, CONFIG.vocab, (rows, length)), jnp.int32),
        "targets": jnp.asarray(rng.integers(0, CONFIG.vocab, (rows, length)), jnp.int32),
        "segment_ids": jnp.asarray(segments),
        "positions": jnp.asarray(np.broadcast_to(positions, (rows, length)), jnp.int32),
        "loss_weights": jnp.asarray(weights, jnp.float32),
    }


@pytest.fixture(scope="module")
def model_and_params():
    model = models.build(CONFIG, Compute(logits_chunk=20))
    return model, jax.tree.map(lambda x: x * 3, model.init(jax.random.key(0)))


def reference(model, params, data, z_loss):
    logits = np.asarray(
        models.logits(model, params, data["tokens"], data["positions"], data["segment_ids"]), np.float64
    )  # fmt: skip
    lse = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    target = np.take_along_axis(logits, np.asarray(data["targets"])[..., None], -1)[..., 0]
    weights = np.asarray(data["loss_weights"], np.float64)
    return (weights * (lse - target + z_loss * lse**2)).sum(), weights


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_is_the_weighted_mean_over_trained_tokens(model_and_params, z_loss):
    model, params = model_and_params
    data = batch()
    total, weights = reference(model, params, data, z_loss)
    loss = language_modelling(model, z_loss=z_loss)(params, data, jax.random.key(0), {})
    assert float(loss.total) == pytest.approx(total, rel=2e-6)
    assert float(loss.denominator) == pytest.approx(weights.sum(), rel=1e-6)
    nll, count = loss.metrics["cross_entropy"]
    assert float(nll / count) == pytest.approx(reference(model, params, data, 0.0)[0] / weights.sum(), rel=2e-6)
    assert float(loss.metrics["tokens"][0]) == (np.asarray(data["segment_ids"]) > 0).sum()


def test_sequence_sum_divides_by_documents_that_are_trained(model_and_params):
    model, params = model_and_params
    data = batch()
    data["loss_weights"] = data["loss_weights"].at[0, :9].set(0.0)  # one document of row 0 has nothing to learn
    loss = language_modelling(model, reduction="sequence_sum")(params, data, jax.random.key(0), {})
    trained = {
        (row, int(segment))
        for row in range(4)
        for segment, weight in zip(data["segment_ids"][row], data["loss_weights"][row], strict=True)
        if weight > 0
    }
    assert float(loss.denominator) == len(trained)
    assert (0, 1) not in trained


def test_trained_documents_counts_each_segment_once():
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2]])
    weights = jnp.array([[0, 1, 1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 1, 0, 0.5]])
    assert float(trained_documents(segments, weights)) == 4
    assert float(trained_documents(segments, jnp.zeros_like(weights))) == 0


def test_gradient_equals_that_of_whole_logits_and_whole_scores(model_and_params):
    """Chunked head and blocked attention against the formula written out plainly, z-loss included."""
    model, params = model_and_params
    data = batch(3)
    dense = models.build(CONFIG, Compute(attention="dense"))

    def plain(params):
        logits = models.logits(dense, params, data["tokens"], data["positions"], data["segment_ids"])
        lse = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.take_along_axis(logits, data["targets"][..., None], axis=-1)[..., 0]
        weights = data["loss_weights"]
        return (weights * (lse - target + 1e-2 * lse**2)).sum() / weights.sum()

    step = jax.jit(functools.partial(gradients, language_modelling(model, z_loss=1e-2)))
    got, loss, _ = step(params, data, jax.random.key(0), {})
    want_loss, want = jax.jit(jax.value_and_grad(plain))(params)
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6 * float(jnp.abs(b).max())), got, want)


def test_a_batch_without_trained_tokens_has_a_zero_gradient(model_and_params):
    model, params = model_and_params
    data = {**batch(), "loss_weights": jnp.zeros((4, 24))}
    grads, loss, metrics = gradients(language_modelling(model, z_loss=1e-3), params, data, jax.random.key(0), {})
    assert float(loss) == 0.0 and float(metrics["trained_tokens"]) == 0.0
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads))


def test_targets_and_weights_of_padding_do_not_matter(model_and_params):
    model, params = model_and_params
    objective = language_modelling(model, z_loss=1e-3)
    data = batch()
    padding = data["segment_ids"] == 0
    changed = {
        **data,
        "tokens": jnp.where(padding, (data["tokens"] + 7) % CONFIG.vocab, data["tokens"]),
        "targets": jnp.where(padding, 0, data["targets"]),
    }
    before, after = (objective(params, d, jax.random.key(0), {}) for d in (data, changed))
    assert float(before.total) == float(after.total)
    assert float(before.denominator) == float(after.denominator)
