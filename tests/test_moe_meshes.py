"""Expert parallelism on eight simulated devices: the same loss and gradients however experts and rows are sharded."""

import functools

import jax
import numpy as np
import pytest
from test_moe import QUICK, TINY, alone

import models
from easylm_jax.decode import generate
from easylm_jax.objectives import language_modelling
from easylm_jax.runtime import sharding
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.train.step import gradients
from models.trees import leaf_names

LAYOUTS = ("fsdp=8", "fsdp=4,ep=2", "fsdp=2,ep=4", "ep=8", "cp=2,ep=2,tp=2")


@functools.cache
def parameters():
    model = models.build(TINY)
    params = jax.jit(model.init).lower(jax.random.key(0)).compile(QUICK)(jax.random.key(0))
    params["layers"]["moe"]["router"]["kernel"] *= 30  # uneven loads
    return jax.device_get(params)


def run(text):
    """Gradients, loss and metrics of the tiny model's first parameters on a mesh, or on one device ("")."""
    mesh = make_mesh(text, jax.devices() if text else jax.devices()[:1])
    model = models.build(TINY, placement=sharding.placement_of(mesh))
    step = functools.partial(gradients, language_modelling(model), frozen={})
    with jax.set_mesh(mesh):
        params = jax.device_put(parameters(), sharding.parameter_shardings(parameters(), model.sharding_rules, mesh))
        batch = jax.device_put(alone(), sharding.batch_sharding(mesh))
        inputs = params, batch, jax.random.key(0)
        return jax.device_get(jax.jit(step).lower(*inputs).compile(QUICK)(*inputs))


@functools.cache
def one_device():
    return run("")


@pytest.mark.parametrize(
    "layout", [pytest.param(layout, marks=pytest.mark.slow) if layout == "fsdp=8" else layout for layout in LAYOUTS]
)
def test_sharded_experts_give_the_loss_and_gradients_of_one_device(layout, record_property):
    grads, loss, metrics = run(layout)
    want, loss_wanted, metrics_wanted = one_device()
    record_property("relative difference of the loss", abs(loss - loss_wanted) / loss_wanted)
    assert abs(loss - loss_wanted) <= 1e-6 * loss_wanted
    assert metrics["dropped_copies"] == 0
    assert metrics.keys() == metrics_wanted.keys()
    for name, value in metrics_wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    leaves = [tuple(map(np.float64, pair)) for pair in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True)]
    difference = np.sqrt(sum(((mine - other) ** 2).sum() for mine, other in leaves))
    assert difference <= 1e-6 * np.sqrt(sum((other**2).sum() for _, other in leaves))
    for name, (mine, other) in zip(leaf_names(want), leaves, strict=True):
        assert np.abs(mine - other).max() <= 4e-6 * np.abs(other).max(), name


def test_experts_and_what_else_a_layer_has_are_split_over_ep():
    mesh = make_mesh("fsdp=2,ep=4")
    model = models.build(TINY, placement=sharding.placement_of(mesh))
    layout = sharding.parameter_shardings(parameters(), model.sharding_rules, mesh)["layers"]
    shapes = jax.tree.map(lambda leaf, place: place.shard_shape(leaf.shape), parameters()["layers"], layout)
    assert shapes["moe"]["up"]["kernel"] == (2, 8 // 4, 32 // 2, 16)
    assert shapes["moe"]["down"]["kernel"] == (2, 8 // 4, 16, 32 // 2)
    assert shapes["moe"]["router"]["kernel"] == (2, 32 // 8, 8)
    assert shapes["attn"]["q"]["kernel"] == (2, 32 // 8, 32)


def test_experts_that_ep_does_not_divide_are_told_in_one_line():
    mesh = make_mesh("ep=3", jax.devices()[:3])
    model = models.build(TINY.replace(width=48, head_dim=12))
    with pytest.raises(models.UserError) as told:
        sharding.parameter_shardings(model.abstract_params(), model.sharding_rules, mesh)
    assert "cannot be split 3 ways along ep; choose a size of ep that divides 8" in str(told.value)
    assert "moe" in str(told.value) and "\n" not in str(told.value)


def test_generation_with_sharded_experts_says_what_one_device_says():
    model, params = models.build(TINY), parameters()
    prompts = [[1, 2, 3], [9, 8], [5, 5, 5, 7, 20], [30]]
    want = generate(model, params, prompts, max_new_tokens=6, temperature=0, slots=8)
    got = generate(model, params, prompts, max_new_tokens=6, temperature=0, slots=8, mesh=make_mesh("fsdp=2,ep=4"))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)
