"""Attention kernels: the same numbers as the plain score matrix, whatever the shape, window and packing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import _splash, attention, choose_kernel
from models.config import Placement
from models.errors import UserError


def random_inputs(seed, batch=2, length=200, heads=4, kv_heads=2, head_dim=16, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    q = jax.random.normal(keys[0], (batch, length, heads, head_dim), dtype)
    k, v = (jax.random.normal(key, (batch, length, kv_heads, head_dim), dtype) for key in keys[1:3])
    cuts = np.sort(np.random.default_rng(seed).integers(1, length, (batch, 3)), axis=1)
    segments = 1 + (np.arange(length)[None, :, None] >= cuts[:, None]).sum(-1)
    segments[0, -17:] = 0  # padding
    return q, k, v, jnp.asarray(segments, jnp.int32)


def reference(q, k, v, segment_ids, window):
    """Float64, one query at a time, straight from the definition."""
    q, k, v, segment_ids = (np.asarray(x, np.float64) for x in (q, k, v, segment_ids))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, i, h in itertools.product(range(q.shape[0]), range(q.shape[1]), range(q.shape[2])):
        seen = [
            j for j in range(i + 1)
            if segment_ids[b, j] == segment_ids[b, i] and (window is None or i - j < window)
        ]  # fmt: skip
        scores = k[b, seen, h // group] @ q[b, i, h] / np.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max())
        out[b, i, h] = (p / p.sum()) @ v[b, seen, h // group]
    return out


@pytest.mark.parametrize("kernel", ["dense", "blocked"])
@pytest.mark.parametrize("window", [None, 1, 37])
def test_attention_equals_its_definition(kernel, window):
    q, k, v, segments = random_inputs(0, length=150)
    got = attention(q, k, v, segment_ids=segments, window=window, kernel=kernel)
    np.testing.assert_allclose(got, reference(q, k, v, segments, window), atol=2e-6)


@pytest.mark.parametrize("length", [63, 200, 1100])
@pytest.mark.parametrize("window", [None, 50])
def test_blocked_gradients_equal_dense_gradients(length, window):
    """Also past 1,024 tokens, where blocks are recomputed in the backward pass."""
    q, k, v, segments = random_inputs(1, batch=1, length=length, heads=2, kv_heads=1)
    weights = jax.random.normal(jax.random.key(9), q.shape)

    def loss(kernel, q, k, v):
        return (attention(q, k, v, segment_ids=segments, window=window, kernel=kernel) * weights).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(1, 2, 3)), static_argnums=0)
    blocked, dense = (gradient(name, q, k, v) for name in ("blocked", "dense"))
    for got, want in zip(blocked, dense, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (60, None), (60, 0.5)])
def test_splash_in_interpret_mode_equals_dense(window, softcap):
    q, k, v, segments = random_inputs(2, batch=1, length=256, heads=2, kv_heads=1, head_dim=128)
    want = attention(q, k, v, segment_ids=segments, window=window, kernel="dense", softcap=softcap)
    got = _splash(q, k, v, segments, window, Placement(), softcap, interpret=True)
    real = np.asarray(segments)[..., None, None] > 0
    np.testing.assert_allclose(np.where(real, got, 0), np.where(real, want, 0), atol=2e-5)


def test_a_token_sees_nothing_of_other_segments_or_of_the_future():
    q, k, v, segments = random_inputs(3)
    segments = jnp.asarray(np.repeat([[1] * 90 + [2] * 110], 2, axis=0), jnp.int32)
    before = attention(q, k, v, segment_ids=segments)
    changed = attention(q, k.at[:, :90].add(5.0), v.at[:, :90].add(5.0), segment_ids=segments)
    np.testing.assert_array_equal(before[:, 90:], changed[:, 90:])
    future = attention(q, k.at[:, 150:].add(5.0), v.at[:, 150:].add(5.0), segment_ids=segments)
    np.testing.assert_array_equal(before[:, :150], future[:, :150])


def test_kernel_choice_follows_the_platform():
    assert choose_kernel("auto", "cpu", 512, 64, jnp.float32) == "blocked"
    assert choose_kernel("auto", "tpu", 4096, 128, jnp.bfloat16) == "splash"
    assert choose_kernel("auto", "tpu", 100, 128, jnp.bfloat16) == "blocked"
    assert choose_kernel("auto", "gpu", 4096, 128, jnp.bfloat16) == "cudnn"
    assert choose_kernel("auto", "gpu", 4096, 128, jnp.float32) == "blocked"
    assert choose_kernel("auto", "gpu", 4096, 128, jnp.bfloat16, 50.0) == "blocked"  # cuDNN's kernel has no soft cap
    with pytest.raises(UserError, match="no soft cap"):
        choose_kernel("cudnn", "gpu", 4096, 128, jnp.bfloat16, 50.0)
    with pytest.raises(UserError, match="unknown attention kernel 'flash'"):
        choose_kernel("flash", "cpu", 512, 64, jnp.float32)
