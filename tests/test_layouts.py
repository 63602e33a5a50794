"""Context parallelism: attention over parts of the sequence."""

import functools

import jax
import numpy as np
import pytest
from test_model_attention import random_inputs

from easylm_jax.mesh import BATCH_AXES, make_mesh
from models.attention import _splash, attention, balanced_order


def out_and_gradients(attend, weights):
    """What `attend` gives for (q, k, v), and the gradients of its sum weighted so."""

    def loss(*inputs):
        out = attend(*inputs)
        return (out * weights).sum(), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize("kernel", ["blocked", "dense"])
def test_attention_over_parts_of_the_sequence_equals_that_of_whole_rows(kernel, window):
    *inputs, segments = random_inputs(0, length=256, heads=4, kv_heads=2)
    weights = jax.random.normal(jax.random.key(9), inputs[0].shape)
    run = functools.partial(attention, segment_ids=segments, window=window, kernel=kernel)
    want, out = out_and_gradients(run, weights)(*inputs)
    with jax.set_mesh(make_mesh("fsdp=2,cp=2,tp=2")):
        over = functools.partial(run, batch_axes=BATCH_AXES, sequence_axis="cp")
        got, parted = out_and_gradients(over, weights)(*inputs)
    np.testing.assert_allclose(parted, out, atol=2e-6)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(("length", "window", "mesh"), [(1024, None, "cp=4,tp=2"), (512, 60, "fsdp=2,cp=4")])
def test_splash_over_parts_of_the_sequence_equals_dense(length, window, mesh):
    *inputs, segments = random_inputs(2, batch=2, length=length, heads=4, kv_heads=2, head_dim=128)
    real = (np.asarray(segments) > 0)[..., None, None]
    weights = jax.random.normal(jax.random.key(9), inputs[0].shape) * real
    dense = functools.partial(attention, segment_ids=segments, window=window, kernel="dense")
    want, out = out_and_gradients(dense, weights)(*inputs)
    with jax.set_mesh(make_mesh(mesh)):
        splash = lambda q, k, v: _splash(q, k, v, segments, window, BATCH_AXES, "cp", interpret=True)  # noqa: E731
        got, parted = out_and_gradients(splash, weights)(*inputs)
    np.testing.assert_allclose(parted * real, out * real, atol=2e-5)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("parts", [2, 3, 4, 8])
def test_balanced_queries_are_all_queries_and_every_part_has_the_same_work(parts):
    order = balanced_order(48 * parts, parts)
    assert sorted(order) == list(range(48 * parts))
    assert len(set(order.reshape(parts, -1).sum(axis=1))) == 1
