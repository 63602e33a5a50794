"""Log-likelihoods are those of a whole forward pass, and the same bits whatever stands beside a request."""

import jax
import numpy as np
import pytest
from tiny_models import CASES, VOCAB, random_params

import models
from easylm_jax.decode import likelihood
from easylm_jax.decode.likelihood import token_logprobs
from easylm_jax.evaluate import loglikelihood
from easylm_jax.runtime.mesh import make_mesh
from models.errors import UserError

whole_logits = jax.jit(models.logits, static_argnums=0)


@pytest.fixture(scope="module", params=["gemma2", pytest.param("olmoe", marks=pytest.mark.slow)])
def model(request):
    made = models.build(CASES[request.param])
    return made, random_params(made)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Contexts of some pieces at the size of a test."""
    monkeypatch.setattr(likelihood, "CHUNK", 16)


def requests(seed=0):
    """Contexts with and without whole pieces, one of them a beginning of another, with one to many continuations."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, VOCAB, 40).tolist()
    contexts = [first[:17], [*first, 3]]
    same = rng.integers(0, VOCAB, 2).tolist()
    made = []
    for context in contexts:
        for continuation in ([1], [2], [*same, 4], [*same, 5], rng.integers(0, VOCAB, 20).tolist()):
            made.append((context, continuation))
    return made


def reference(model, params, context, continuation):
    """float64 log-softmax of a whole forward pass at each token of the continuation, and whether it is the largest."""
    row = np.zeros((1, 64), np.int32)  # one shape; a causal model does not look ahead
    row[0, : len(context) + len(continuation)] = [*context, *continuation]
    logits = np.asarray(whole_logits(model, params, row), np.float64)[0]
    logits = logits[len(context) - 1 :][: len(continuation)]
    largest = logits.max(axis=-1, keepdims=True)
    logprobs = logits - largest - np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True))
    at = np.arange(len(continuation))
    return logprobs[at, continuation], logits.argmax(axis=-1) == continuation


def test_scores_are_those_of_a_whole_forward_pass(model):
    asked = requests()
    found = token_logprobs(*model, asked)
    for (context, continuation), (logprobs, greedy) in zip(asked, found, strict=True):
        expected, largest = reference(*model, context, continuation)
        np.testing.assert_allclose(logprobs, expected, atol=2e-5)
        np.testing.assert_array_equal(greedy, largest)
    sums = loglikelihood(*model, asked)
    assert sums == [(float(p.sum(dtype=np.float32)), bool(g.all())) for p, g in found]


def test_a_score_has_the_same_bits_whatever_stands_beside_it():
    made = models.build(CASES["olmo2"])
    params, asked = random_params(made), requests()
    together = loglikelihood(made, params, asked)
    for size in (1, 7):
        parts = [asked[i : i + size] for i in range(0, len(asked), size)]
        assert [one for part in parts for one in loglikelihood(made, params, part)] == together
    order = np.random.default_rng(1).permutation(len(asked))
    others = [(context[::-1], continuation) for context, continuation in requests(seed=2)]
    mixed = loglikelihood(made, params, [*others, *(asked[i] for i in order), *others])
    assert mixed[len(others) : len(others) + len(order)] == [together[i] for i in order]


def test_a_mesh_that_splits_rows_changes_no_bit():
    made = models.build(CASES["olmo2"])
    params, asked = random_params(made), requests()[:4]
    mesh = make_mesh("fsdp=2,dp=2", jax.devices()[:4])
    assert loglikelihood(made, params, asked, mesh=mesh) == loglikelihood(made, params, asked)


@pytest.mark.slow
def test_a_mesh_that_splits_heads_gives_the_same_scores():
    made = models.build(CASES["llama3-grouped-tied"].replace(vocab=68, vocab_used=0))
    params, asked = random_params(made), requests()
    mesh = make_mesh("fsdp=2,tp=2", jax.devices()[:4])
    alone, split = loglikelihood(made, params, asked), loglikelihood(made, params, asked, mesh=mesh)
    np.testing.assert_allclose([p for p, _ in split], [p for p, _ in alone], rtol=1e-5)


def test_slots_that_are_not_alike_are_not_used(monkeypatch):
    """Where a library sums the rows of a product in another order, a pass answers one continuation alone."""
    made = models.build(CASES["olmo2"])
    params, asked = random_params(made), requests()[:5]
    together = loglikelihood(made, params, asked)
    passes = []
    run = likelihood._Scorer._run_score
    monkeypatch.setattr(
        likelihood._Scorer, "_run_score",
        lambda self, state, inputs, targets: passes.append(len(inputs)) or run(self, state, inputs, targets),
    )  # fmt: skip
    monkeypatch.setattr(likelihood._Scorer, "_rows_are_even", lambda *_: False)
    monkeypatch.setattr(likelihood, "_EVEN", {})
    alone = loglikelihood(made, params, asked)
    assert set(passes) == {1}
    np.testing.assert_allclose([p for p, _ in alone], [p for p, _ in together], rtol=1e-5)


def test_an_empty_context_is_the_token_that_begins_a_text():
    made = models.build(CASES["olmo2"].replace(bos_id=None, eos_id=5))
    params = random_params(made)
    assert loglikelihood(made, params, [((), (1, 2))]) == loglikelihood(made, params, [((5,), (1, 2))])
    assert loglikelihood(made, params, [((1,), ())]) == [(0.0, True)]


def test_what_cannot_be_scored_is_told():
    made = models.build(CASES["olmo2"])
    for request, message in (
        (([1] * 100, [1] * 30), "request 0 has 130 tokens, and the model a context of 128"),
        (([1], [VOCAB]), f"request 0 has the token {VOCAB}, and the model {VOCAB} tokens"),
    ):
        with pytest.raises(UserError, match=message):
            loglikelihood(made, {}, [request])
