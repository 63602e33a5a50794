"""Every layout trains alike: losses, gradients and checkpoints are those of one device, on eight simulated ones.

One table: a mesh, what else is chosen, and whether it is slow. Compared in float32, to 1e-6 relative.
"""

import functools

import jax
import numpy as np
import pair_batches
import pytest
import test_meshes as kit
from test_model_attention import random_inputs

import models
from easylm_jax.checkpoint.checkpointer import Checkpointer
from easylm_jax.objectives import policy_optimization, preference_optimization, reward_modelling, value_regression
from easylm_jax.runtime import sharding
from easylm_jax.runtime.mesh import BATCH_AXES, make_mesh
from easylm_jax.train.step import gradients
from models.attention import _splash, attention, balanced_order
from models.config import Compute, Placement
from models.decoder import _REMAT
from models.errors import UserError

LAYOUTS = [
    ("dp=8", {}),
    ("fsdp=8", {}),
    ("fsdp=4,tp=2", {}),
    ("slice=2,fsdp=4", {}),
    ("fsdp=2,cp=2,tp=2", {}),
]
SLOW = [
    ("tp=4", {}),
    ("dp=2,fsdp=2,tp=2", {"shape": "qwen2"}),  # biases, tied embeddings
    ("slice=2,dp=2,fsdp=2", {}),
    ("cp=8", {}),
    ("slice=2,cp=2,tp=2", {}),
    ("dp=2,fsdp=2,cp=2", {"shape": "qwen2"}),
    ("fsdp=8", {"offload": True}),
    ("fsdp=4,cp=2", {"offload": True}),
    *[(mesh, {"remat": name}) for mesh in ("fsdp=4,tp=2", "fsdp=4,cp=2") for name in _REMAT],
]


@pytest.mark.parametrize(
    ("mesh", "choices"),
    [*LAYOUTS, *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_losses_and_gradient_norms_of_every_layout_equal_those_of_one_device(mesh, choices, record_property):
    """One device keeps all that the backward pass needs, and its moments beside the parameters."""
    losses, norms, state = kit.program(mesh, **choices).train()
    same = {name: value for name, value in choices.items() if name not in ("remat", "offload")}
    expected, expected_norms, _ = kit.one_device(**same)
    record_property("largest relative difference", kit.relative([*losses, *norms], [*expected, *expected_norms]))
    assert len(set(expected)) == kit.STEPS  # the parameters did move
    assert kit.relative(losses, expected) <= 1e-6
    assert kit.relative(norms, expected_norms) <= 1e-6
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves((state.opt.mu, state.opt.nu))}
    assert kinds == {sharding.HOST_MEMORY if choices.get("offload") else "device"}


SIDES = ("chosen", "rejected")


def pairs():
    """Rows of preference pairs side by side, and what a reference model said of them."""
    made = [pair_batches.packed(seed) for seed in range(3)]
    batch = {name: np.concatenate([np.asarray(one[name]) for one in made])[:8] for name in made[0]}
    rng = np.random.default_rng(0)
    sides = {f"reference_{side}": rng.normal(-15, 2, batch["margins"].shape).astype("f4") for side in SIDES}
    return batch | sides


def responses():
    """Rows of a prompt and a response, and what a rollout found out about every token."""
    rng, batch = np.random.default_rng(1), pairs()
    mask = batch["loss_weights"] * (batch["segment_ids"] == 1)
    numbers = {name: rng.normal(size=mask.shape).astype("f4") for name in ("advantages", "old_values", "returns")}
    return {**batch, "mask": mask, "old_logprobs": rng.normal(-4, 1, mask.shape).astype("f4"), **numbers}


OBJECTIVES = {
    "dpo": (lambda model: preference_optimization(model, "dpo", beta=0.1, reference="cached"), pairs, False),
    "reward model": (reward_modelling, pairs, True),
    "policy": (policy_optimization, responses, False),
    "value": (lambda model: value_regression(model, clip=0.2, coefficient=0.5), responses, True),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_over_parts_of_sequences_have_the_loss_and_gradient_of_whole_ones(name):
    objective, batch, scalar = OBJECTIVES[name]
    config = pair_batches.CONFIG.replace(scalar_head=scalar)
    params = jax.device_get(jax.jit(models.build(config).init)(jax.random.key(2)))
    found = []
    for mesh in (make_mesh("dp=1", jax.devices()[:1]), make_mesh("fsdp=2,cp=2,tp=2")):
        model = models.build(config, sharding.with_mesh_axes(Compute(), mesh))
        placed = jax.device_put(params, sharding.parameter_shardings(params, model.sharding_rules, mesh))
        with jax.set_mesh(mesh):
            run = jax.jit(functools.partial(gradients, objective(model), frozen={}))
            inputs = placed, jax.device_put(batch(), sharding.batch_sharding(mesh)), jax.random.key(0)
            found.append(jax.device_get(run.lower(*inputs).compile(kit.QUICK)(*inputs)))
    (want, loss, _), (got, parted, _) = found
    assert loss != 0 and kit.relative(parted, loss) <= 1e-6
    kit.assert_tree_close(got, want, 2e-6)


@pytest.mark.parametrize(("saved", "restored"), [("fsdp=4,tp=2", "fsdp=2,cp=2,tp=2"), ("fsdp=2,cp=2,tp=2", "dp=8")])
def test_a_checkpoint_of_one_layout_comes_back_on_another(saved, restored, tmp_path):
    """Also where the moments lie in the host's memory on one side."""
    first, then = kit.program(saved), kit.program(restored, offload=True)
    state = first.state()
    with Checkpointer(tmp_path, asynchronous=False) as checkpointer:
        checkpointer.save(1, state, {})
        abstract = jax.eval_shape(then.fresh, then.model.abstract_params())
        back, _ = checkpointer.restore(sharding.with_shardings(abstract, then.layout), 1)
    for leaf, place, before in zip(*map(jax.tree.leaves, (back, then.layout, state)), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim) and leaf.sharding.memory_kind == place.memory_kind
        np.testing.assert_array_equal(leaf, before)


def test_lengths_that_parts_do_not_divide_are_told_in_one_line():
    with pytest.raises(UserError, match="cp=4 cannot split a sequence of 66 tokens; choose a size that divides 66"):
        sharding.check_length(66, make_mesh("fsdp=2,cp=4"))
    sharding.check_length(64, make_mesh("fsdp=2,cp=4"))


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
        over = functools.partial(run, placement=Placement(BATCH_AXES, "cp", "tp"))
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
        splash = lambda q, k, v: _splash(q, k, v, segments, window, Placement(BATCH_AXES, "cp", "tp"), interpret=True)  # noqa: E731
        got, parted = out_and_gradients(splash, weights)(*inputs)
    np.testing.assert_allclose(parted * real, out * real, atol=2e-5)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("parts", [2, 3, 4, 8])
def test_balanced_queries_are_all_queries_and_every_part_has_the_same_work(parts):
    order = balanced_order(48 * parts, parts)
    assert sorted(order) == list(range(48 * parts))
    assert len(set(order.reshape(parts, -1).sum(axis=1))) == 1
