"""Chunked token scores equal the scores of whole logits, and so do their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.heads import head_logits, token_scores


def inputs(rows=3, length=23, width=16, vocab=50):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, length, width))
    kernel = jax.random.normal(keys[1], (width, vocab)) * 0.5
    return hidden, kernel, jax.random.randint(keys[2], (rows, length), 0, vocab)


def whole(hidden, kernel, targets, temperature=1.0, softcap=None):
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    logits = (logits if softcap is None else softcap * np.tanh(logits / softcap)) / temperature
    lse = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    logp = logits - lse[..., None]
    target = np.take_along_axis(logp, np.asarray(targets)[..., None], -1)[..., 0]
    return target, lse, -(np.exp(logp) * logp).sum(-1), (np.argmax(logits, -1) == targets).astype(float)


@pytest.mark.parametrize("chunk", [1, 9, 12, 64, 10_000])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (0.7, 2.0)])
def test_scores_equal_those_of_whole_logits(chunk, temperature, softcap):
    scores = token_scores(*inputs(), chunk=chunk, temperature=temperature, softcap=softcap)
    for got, want in zip(scores, whole(*inputs(), temperature, softcap), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (0.7, 2.0)])
def test_gradients_equal_those_of_whole_logits(temperature, softcap):
    hidden, kernel, targets = inputs()
    weights = jax.random.normal(jax.random.key(5), (3, *targets.shape))

    def combine(logprobs, lse, entropy):
        return (weights[0] * logprobs + weights[1] * lse**2 + weights[2] * entropy).sum()

    def chunked(hidden, kernel):
        s = token_scores(hidden, kernel, targets, chunk=15, temperature=temperature, softcap=softcap)
        return combine(s.logprobs, s.logsumexp, s.entropy)

    def plain(hidden, kernel):
        logits = head_logits(hidden, kernel, softcap) / temperature
        logp = jax.nn.log_softmax(logits)
        target = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
        return combine(target, jax.nn.logsumexp(logits, -1), -(jnp.exp(logp) * logp).sum(-1))

    got, want = (jax.grad(f, argnums=(0, 1))(hidden, kernel) for f in (chunked, plain))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_no_array_of_the_whole_batch_by_the_vocabulary_is_ever_made():
    """Walks the jaxpr of value and gradient: the largest intermediate holds one chunk of logits."""
    hidden, kernel, targets = inputs(rows=2, length=64, width=8, vocab=512)
    step = jax.make_jaxpr(jax.value_and_grad(lambda h, w: token_scores(h, w, targets, chunk=16).logprobs.sum(), (0, 1)))

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
                inner = getattr(value, "jaxpr", None)
                if inner is not None:
                    yield from sizes(inner)

    largest = max(sizes(step(hidden, kernel).jaxpr))
    assert largest <= 16 * 512 < hidden.shape[0] * hidden.shape[1] * 512


def test_sixteen_bit_hidden_states_give_float32_scores():
    hidden, kernel, targets = inputs()
    scores = token_scores(hidden.astype(jnp.bfloat16), kernel, targets)
    assert all(field.dtype == jnp.float32 for field in scores)
    np.testing.assert_allclose(scores.logprobs, whole(hidden, kernel, targets)[0], atol=0.05)
