"""Router replay: the experts that computed a token when it was sampled compute it in the update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rl_kit
from test_moe import QUICK, TINY, close, draw

import models
from easylm_jax.config import Compute, Upcycle
from easylm_jax.decode import Engine
from easylm_jax.decode.rollout import columns_of
from easylm_jax.runtime.monitor.metrics import read_metrics
from models.errors import UserError
from models.moe import ExpertKernels, RoutingDecoder, mixture


@pytest.fixture(scope="module")
def kernels():
    shapes = ((16, 6), (6, 16, 8), (6, 16, 8), (6, 8, 16))
    return ExpertKernels(*(jnp.asarray(draw(seed, *shape)) for seed, shape in enumerate(shapes, 1)))


def test_given_experts_compute_a_token_with_the_routers_own_probabilities(kernels):
    x = jnp.asarray(draw(0, 2, 5, 16))
    given = np.array([[[3, 1], [0, 5], [-1, -1], [2, 4], [5, 0]]] * 2, np.int16)

    def ours(x, kernels):
        return mixture(x, kernels, 2, backend="blocks", given=jnp.asarray(given))

    def reference(x, kernels):
        p = jax.nn.softmax(x @ kernels.router)
        outputs = jnp.stack(
            [(jax.nn.silu(x @ kernels.gate[e]) * (x @ kernels.up[e])) @ kernels.down[e] for e in range(6)], axis=-2
        )
        experts = jnp.where(given >= 0, given, jax.lax.top_k(p, 2)[1])
        weights = (jax.nn.one_hot(experts, 6) * jnp.take_along_axis(p, experts, -1)[..., None]).sum(axis=-2)
        return (weights[..., None] * outputs).sum(axis=-2), ()

    def both(of):
        def loss(x, kernels):
            y, _ = of(x, kernels)
            return (y**2).sum(), y

        run = jax.value_and_grad(loss, (0, 1), has_aux=True)
        return jax.jit(run).lower(x, kernels).compile(QUICK)(x, kernels)

    jax.tree.map(lambda a, b: close(a, b, 1e-4), both(ours), both(reference))

    def again(x, kernels):
        free = mixture(x, kernels, 2, backend="blocks")
        return free, mixture(x, kernels, 2, backend="blocks", given=free[1].chosen)

    free, same = jax.jit(again).lower(x, kernels).compile(QUICK)(x, kernels)
    jax.tree.map(np.testing.assert_array_equal, free, same)  # its own choice changes nothing


@pytest.mark.parametrize("unroll", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_engine_tells_the_experts_of_every_token(unroll):
    model = models.build(TINY)
    params = jax.jit(model.init)(jax.random.key(0))
    engine = Engine(model, slots=2, max_length=40, block=4, unroll=unroll)
    prompts = [[5, 9, 3, 7], [8], [11, 2, 6, 6, 1, 9, 30], [5, 9, 3, 7]]
    out = engine.generate(params, prompts, max_new_tokens=6, samples=2, scores=True, routing=True, eos_ids=(7, 20))
    assert out.routing.shape == (8, 7 + 6, TINY.layers, 2)
    plain = engine.generate(params, prompts, max_new_tokens=6, samples=2, scores=True, eos_ids=(7, 20))
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert plain.routing is None
    look = jax.jit(RoutingDecoder(TINY))
    for row, length in enumerate(out.lengths):
        prompt = prompts[row // 2]
        tokens = np.array([*prompt, *out.tokens[row, :length]], np.int32)
        chosen = np.asarray(look(params, np.pad(tokens, (0, 13 - len(tokens)))[None]).aux["chosen"])[:, 0]
        routed = out.routing[row]
        np.testing.assert_array_equal(routed[: len(tokens) - 1], chosen.transpose(1, 0, 2)[: len(tokens) - 1])
        assert (routed[len(tokens) - 1 :] == -1).all()
    dense = Engine(models.build(TINY.replace(experts=None)), slots=2)
    with pytest.raises(UserError, match="routing is of a mixture of experts"):
        dense.generate({}, prompts, max_new_tokens=6, scores=True, routing=True)


def test_updates_replay_the_rollouts_experts_and_say_what_that_does_to_the_gap(tmp_path):
    rl_kit.made()
    moe = Upcycle("moe", init="sft", experts=8, active=2, noise=0.5)
    stage = rl_kit.grpo(init="moe", router_replay=True, compute=Compute(dtype="bfloat16"), steps=1)
    run = rl_kit.experiment(tmp_path, moe, stage)
    with rl_kit.devices(1):
        for each in (moe, stage):
            run.run(each)
    line = read_metrics(run.folder("grpo") / "metrics.jsonl")[-1]
    print({name: line[name] for name in ("sampler_gap", "sampler_gap_without_replay")})
    assert 0 < line["sampler_gap"] <= line["sampler_gap_without_replay"]
    dense = dataclasses.replace(stage, name="dense", init="sft")
    with rl_kit.devices(1), pytest.raises(UserError, match="stage dense: router_replay .*its policy is a dense model"):
        rl_kit.experiment(tmp_path / "dense", dense).run(dense)


def test_the_column_of_a_batch_is_as_wide_as_its_rows():
    from easylm_jax.decode.rollout import Rollout, concatenate, select

    rows, prompt, new = 4, 5, 3
    routing = np.arange(rows * (prompt + new) * 2 * 2).reshape(rows, prompt + new, 2, 2).astype(np.int16)
    zeros = np.zeros((rows, new), np.float32)
    made = Rollout(
        np.ones((rows, prompt), np.int32), np.array([5, 4, 3, 2]), np.arange(rows), np.ones((rows, new), np.int32),
        np.array([3, 2, 1, 3]), np.ones(rows, bool), zeros, zeros, zeros, np.zeros(rows), samples=2, routing=routing,
    )  # fmt: skip
    column = columns_of(made)["routing"]
    assert column.shape == (rows, 16, 2, 2) and (column[:, 8:] == -1).all()
    np.testing.assert_array_equal(column[:, :8], routing)
    np.testing.assert_array_equal(select(concatenate([made, made]), np.array([4, 5])).routing, routing[:2])
    without = dataclasses.replace(made, routing=None)
    assert "routing" not in columns_of(select(concatenate([without, without]), np.array([0, 1])))
