"""Sampling: frequencies match the probabilities that are reported, truncated or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm_jax.decode.sampling import Mode, Settings, keep_top_k, keep_top_p, row_keys, sample_tokens

VOCAB = 300  # three groups of the two-level sample_tokens, the last one ragged
DRAWS = 40_000


def logits_of(seed=0, spread=2.0):
    return np.random.default_rng(seed).normal(0, spread, VOCAB).astype(np.float32)


def reference(logits, temperature=1.0, top_k=None, top_p=None):
    """Probabilities in float64, by sorting: what the bisection must agree with."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    if top_k is not None:
        p[p < np.sort(p)[-top_k]] = 0
    if top_p is not None:
        ordered = np.sort(p)[::-1]
        count = np.searchsorted(np.cumsum(ordered), top_p * ordered.sum()) + 1
        p[p < ordered[count - 1]] = 0
    return p / p.sum()


def draws(logits, temperature=1.0, top_k=None, top_p=None, scores=False, vocab_used=VOCAB, count=DRAWS):
    mode = Mode(temperature == 0, top_k is not None, top_p is not None, scores)
    settings = Settings(np.float32(temperature), np.int32(top_k or 0), np.float32(top_p or 0))
    numbers = np.arange(count, dtype=np.int32)

    @jax.jit
    def run(logits):
        keys = row_keys(np.uint32(0), numbers // 100, numbers % 100)
        rows = jnp.broadcast_to(logits, (count, VOCAB))
        return sample_tokens(rows, keys, numbers % 7, settings, mode, vocab_used)

    return jax.device_get(run(logits))


def chi_squared(tokens, p):
    """(statistic − degrees) / √(2 · degrees): about standard normal when `tokens` were drawn from `p`."""
    observed, expected = np.bincount(tokens, minlength=VOCAB), p * len(tokens)
    assert not observed[p == 0].any(), "a token without probability was drawn"
    rare = expected < 5  # pooled, as the test asks for
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    degrees = len(observed) - 1
    return (((observed - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 20},
        {"top_p": 0.8},
        {"temperature": 1.5, "top_k": 60, "top_p": 0.7},
    ],
    ids=str,
)
def test_frequencies_and_logprobs_match_the_probabilities(settings):
    logits = logits_of()
    p = reference(logits, **settings)
    out = draws(logits, **settings)
    statistic = chi_squared(out.token, p)
    print(f"{settings}: {(p > 0).sum()} tokens possible, chi-squared {statistic:.2f} standard deviations from its mean")
    assert abs(statistic) < 4
    assert np.abs(out.logprob - np.log(p[out.token])).max() < 1e-5


def test_frequencies_of_a_wrong_distribution_are_told_apart():
    p = reference(logits_of())
    assert chi_squared(draws(logits_of()).token, 0.9 * p + 0.1 / VOCAB) > 10


def test_a_position_a_sample_and_a_prompt_have_random_numbers_of_their_own():
    """Among a thousand equally likely tokens, no coordinate of the key may repeat what its neighbour drew."""
    rows = 64
    logits = jnp.zeros((rows, 1000))
    settings, index, none = Settings(1.0, 0, 0.0), np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)

    def tokens(seed, prompt, sample, position):
        return sample_tokens(
            logits, row_keys(np.uint32(seed), prompt, sample), position, settings, Mode(), 1000
        ).token.tolist()

    varied = [tokens(0, index, none, none), tokens(0, none, index, none), tokens(0, none, none, index)]
    varied.append(tokens(1, index, none, none))
    for drawn in varied:
        assert len(set(drawn)) > rows * 0.9
    assert len({tuple(drawn) for drawn in varied}) == 4
    assert set(tokens(0, none, none, none)) == {varied[0][0]}


def test_greedy_takes_the_largest_logit_and_scores_the_whole_distribution():
    logits = logits_of()
    out = draws(logits, temperature=0, top_k=3, count=4)
    assert (out.token == logits.argmax()).all()
    assert np.allclose(out.logprob, np.log(reference(logits).max()), atol=1e-5)
    cut = draws(logits, temperature=0, vocab_used=int(logits.argmax()), count=4)
    assert (cut.token == logits[: logits.argmax()].argmax()).all()


def test_unused_rows_of_the_vocabulary_are_not_drawn_but_count_where_nothing_is_truncated():
    logits = logits_of()
    p = reference(logits)
    out = draws(logits, vocab_used=200)
    assert abs(chi_squared(out.token, np.where(np.arange(VOCAB) < 200, p, 0) / p[:200].sum())) < 4
    assert np.abs(out.logprob - np.log(p[out.token])).max() < 1e-5
    cut = draws(logits, vocab_used=200, top_k=200)
    assert np.abs(cut.logprob - np.log(p[cut.token] / p[:200].sum())).max() < 1e-5


@pytest.mark.parametrize("k", [1, 2, 17, 299, 300, 1000])
def test_top_k_keeps_exactly_k(k):
    p = np.stack([reference(logits_of(seed)) for seed in range(5)]).astype(np.float32)
    p /= p.max(axis=-1, keepdims=True)
    kept = np.asarray(keep_top_k(p, np.int32(k)))
    assert (np.count_nonzero(kept, axis=-1) == min(k, VOCAB)).all()
    for row, cut in zip(p, kept, strict=True):
        assert np.array_equal(np.sort(cut[cut > 0]), np.sort(row)[-min(k, VOCAB) :])


@pytest.mark.parametrize("share", [1e-6, 0.3, 0.5, 0.95, 0.999, 1.0])
def test_top_p_keeps_the_fewest_that_hold_the_share(share):
    p = np.stack([reference(logits_of(seed)) for seed in range(5)]).astype(np.float32)
    p /= p.max(axis=-1, keepdims=True)
    kept = np.asarray(keep_top_p(p, np.float32(share))).astype(np.float64)
    total = p.astype(np.float64).sum(axis=-1)
    held = kept.sum(axis=-1) / total
    least = np.where(kept > 0, kept, np.inf).min(axis=-1) / total
    assert (held >= share - 1e-6).all()
    assert (held - least < share + 1e-6).all()
    assert (np.where(kept > 0, 0, p).max(axis=-1) / total <= least).all()


def test_tokens_that_tie_at_the_cut_are_all_kept():
    p = np.array([[1.0, 0.5, 0.5, 0.5, 0.25]], np.float32)
    assert np.count_nonzero(np.asarray(keep_top_k(p, np.int32(2)))) == 4
    assert np.count_nonzero(np.asarray(keep_top_p(p, np.float32(0.5)))) == 4
    assert np.count_nonzero(np.asarray(keep_top_p(p, np.float32(0.3)))) == 1


def test_a_distribution_on_one_token_always_gives_it():
    logits = np.full(VOCAB, -200.0, np.float32)
    logits[[0, 131]] = [-170.0, 0.0]
    out = draws(logits, count=500, scores=True)
    assert (out.token == 131).all()
    assert np.abs(out.logprob).max() < 1e-6 and np.abs(out.entropy).max() < 1e-6
