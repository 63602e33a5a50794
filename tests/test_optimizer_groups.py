"""Groups of parameters with a rate, a decay and a clip of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_optimizer import assert_same, named, scaled, update
from test_optimizers import draw

from easylm_jax.config.optimizer import OptimizerConfig, ParameterGroup
from easylm_jax.train.optimizer import make_optimizer
from models.errors import UserError
from models.trees import leaf_names

OUTER = {"embed.table", "head.kernel"}


def run(steps=3, norm=1.0, **fields):
    """The parameters, the state and the report after some updates."""
    opt = make_optimizer(OptimizerConfig(**{"lr": 1e-2, "clip": None, **fields}), total_steps=10)
    params = draw()
    state = opt.init(params)
    for step in range(steps):
        params, state, info = update(opt, scaled(draw(step + 1), norm), 1.0, state, params, step)
    return named(params), state, info


def test_a_group_follows_its_own_schedule_with_its_warm_up():
    own = ParameterGroup("outer", ("embed", "head"), lr="3e-3 linear to 0 warmup 2 steps")
    mixed, state, info = run(groups=(own,))
    everywhere, whole, there = run(lr=own.lr)
    plain, *_ = run()
    for name, value in mixed.items():
        np.testing.assert_array_equal(value, (everywhere if name in OUTER else plain)[name], err_msg=name)
    assert info["lr"] == np.float32(1e-2) and info["lr_outer"] == there["lr"]
    assert leaf_names(state) == leaf_names(whole)  # a checkpoint does not depend on groups


def test_a_group_s_decay_holds_for_all_of_it():
    """An embedding table, which the default spares, and a norm; with no gradient only the decay moves them."""
    group = ParameterGroup("g", ("embed", "post_ffn_norm"), weight_decay=0.5)
    after, _, _ = run(steps=1, norm=0.0, groups=(group,))
    for name, before in named(draw()).items():
        decay = 0.5 if name in ("embed.table", "layers.post_ffn_norm.scale") else 0.1
        np.testing.assert_allclose(after[name], before * (1 - 1e-2 * decay), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("bound", [0.1, None])
def test_a_group_s_clip_is_of_its_own_norm_and_the_others_share_theirs(bound):
    group = ParameterGroup("outer", ("embed", "head"), clip=bound)
    _, state, info = run(steps=1, clip=1.0, groups=(group,))
    grads = named(draw(1))
    norm = lambda names: np.sqrt(sum((np.asarray(grads[n], np.float64) ** 2).sum() for n in names))  # noqa: E731
    np.testing.assert_allclose(info["grad_norm"], norm(grads), rtol=1e-6)
    for name, moment in named(state.mu).items():
        members = OUTER if name in OUTER else set(grads) - OUTER
        limit = bound if name in OUTER else 1.0
        factor = 1.0 if limit is None else limit / (norm(members) + 1e-6)
        np.testing.assert_allclose(moment, 0.1 * factor * grads[name], rtol=1e-5, err_msg=name)


def test_a_group_without_a_clip_of_its_own_is_under_the_common_one():
    rate = ParameterGroup("outer", ("embed", "head"), lr=1e-3)
    mixed, plain = run(steps=1, clip=0.5, groups=(rate,))[1], run(steps=1, clip=0.5)[1]
    assert_same((mixed.mu, mixed.nu), (plain.mu, plain.nu))


def test_the_guard_looks_at_all_gradients_together():
    opt = make_optimizer(OptimizerConfig(1e-2, groups=(ParameterGroup("outer", ("embed",), clip=0.1),)), total_steps=10)
    params, grads = draw(), draw(1)
    grads["embed"]["table"] = grads["embed"]["table"].at[0, 0].set(jnp.nan)
    new, state, info = update(opt, grads, 1.0, opt.init(params), params, 0)
    assert_same(new, params)
    assert info["skipped"] == state.skipped_total == 1


def test_groups_work_with_another_algorithm_and_with_frozen_parameters():
    own = ParameterGroup("outer", ("embed",), lr=1e-3)
    mixed, *_ = run(name="lion", b2=0.99, trainable=("embed", "mlp"), groups=(own,), weight_decay=0.0, steps=1)
    moved = {name: np.unique(np.round(np.abs(mixed[name] - before), 5)) for name, before in named(draw()).items()}
    assert moved["embed.table"].tolist() == [np.float32(1e-3)]
    assert moved["layers.mlp.up.kernel"].tolist() == [np.float32(1e-2)]
    assert moved["head.kernel"].tolist() == [0]


def test_the_description_says_what_each_group_has():
    group = ParameterGroup("outer", ("embed", "head"), lr="1e-3 linear to 0", weight_decay=0.0, clip=None)
    lines = make_optimizer(OptimizerConfig(1e-2, groups=(group,)), total_steps=10).describe(draw()).splitlines()
    assert lines[0] == "decayed by 0.1: 2 leaves, 272 parameters"
    at = lines.index("group outer, lr 1e-3 linear to 0, clip none, not decayed: 2 leaves, 256 parameters")
    assert [line.split()[0] for line in lines[at + 1 :]] == ["embed.table", "head.kernel"]


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ((("a", ("embed",)), ("b", ("table",))), "embed.table belongs to the groups 'a' and 'b'"),
        ((("a", ("embd",)),), "optimizer group 'a': 'embd' matches no parameter; there are embed.table"),
    ],
)
def test_patterns_that_cannot_be_are_one_line_before_anything_runs(groups, why):
    config = OptimizerConfig(1e-3, groups=tuple(ParameterGroup(*group, lr=1e-4) for group in groups))
    with pytest.raises(UserError, match=why) as error:
        jax.eval_shape(make_optimizer(config, total_steps=1).init, draw())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": "two words", "lr": 1e-3}, "a name is one word"),
        ({"patterns": "head", "lr": 1e-3}, "must be a tuple of patterns"),
        ({"lr": "soon"}, "'soon' is not a number"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0 is not a number of at least 0"),
        ({"clip": 0.0}, "clip: 0.0 is not a number above 0"),
        ({"clip": "own"}, "must be a number, None"),
        ({}, "changes nothing"),
    ],
)
def test_groups_that_cannot_work_are_refused_when_written(fields, why):
    with pytest.raises(UserError, match=why):
        ParameterGroup(**{"name": "g", "patterns": ("head",), **fields})


def test_two_groups_of_one_name_are_refused():
    group = ParameterGroup("g", ("head",), lr=1e-3)
    with pytest.raises(UserError, match="two groups are called 'g'"):
        OptimizerConfig(1e-3, groups=(group, group))
