"""Every algorithm: the numbers of optax's own, the guard round it, exact resumption, devices, settings in one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_optimizer as kit
from jax.sharding import Mesh, NamedSharding
from test_optimizer import assert_same, global_norm, named, scaled, update

from easylm_jax.checkpoint.checkpointer import Checkpointer
from easylm_jax.config.optimizer import OptimizerConfig, SkipStep
from easylm_jax.runtime import sharding
from easylm_jax.train.algorithms import OPTIMIZERS, AdamState
from easylm_jax.train.guard import guarded
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.step import REPLICATED_STATE, new_state
from models.decoder import SHARDING_RULES
from models.errors import UserError
from models.trees import leaf_names

FACTORED = {"min_dim_size_to_factor": 8}  # the parameters here are small
CASES = {
    "adamw": {},
    "lion": {"b2": 0.99},
    "adafactor": {"options": FACTORED},
    "muon": {},
    "sgd": {},
    "sgd-nesterov": {"name": "sgd", "options": {"nesterov": True}},
    "sgd-plain": {"name": "sgd", "b1": 0.0},
    "lion-bfloat16": {"name": "lion", "moment_dtype": "bfloat16"},
    "muon-bfloat16": {"name": "muon", "moment_dtype": "bfloat16", "second_moment_dtype": "bfloat16"},
}
every_algorithm = pytest.mark.parametrize("case", OPTIMIZERS)
SHAPES = {
    "embed": {"table": (16, 8)},
    "layers": {"mlp": {"up": {"kernel": (2, 8, 16)}}, "post_ffn_norm": {"scale": (2, 8)}},
    "head": {"kernel": (8, 16)},
}


def draw(seed=0):
    """Parameters or gradients: one leaf of each kind, since compiling them all takes most of the time."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(random.normal(size=s), jnp.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple)
    )


def config_of(case, **fields):
    return OptimizerConfig(**{"lr": "1e-2 cosine to 10% warmup 2 steps", "name": case, **CASES[case], **fields})


def test_every_algorithm_has_a_case():
    assert {config_of(case).name for case in CASES} == set(OPTIMIZERS)


# --- the numbers of optax --------------------------------------------------------------------------------------------


def matrices_of(params):
    """Muon's, for optax: an axis before the last two is a batch of matrices."""
    dims = optax.contrib.MuonDimensionNumbers(-2, -1)
    return {name: dims if name.startswith("layers") and name.endswith("kernel") else None for name in params}


PUBLIC = {  # optax's alias, and what of it stands in our configuration; a mask is of leaves by name
    "adamw": (lambda lr, mask: optax.adamw(lr, b1=0.9, b2=0.95, weight_decay=0.1, mask=mask), {}),
    "lion": (lambda lr, mask: optax.lion(lr, b1=0.9, b2=0.99, weight_decay=0.1, mask=mask), {}),
    "sgd": (lambda lr, mask: optax.sgd(lr, momentum=0.9), {"weight_decay": 0.0}),
    "sgd-nesterov": (lambda lr, mask: optax.sgd(lr, momentum=0.9, nesterov=True), {"weight_decay": 0.0}),
    "sgd-plain": (lambda lr, mask: optax.sgd(lr), {"weight_decay": 0.0}),
    "adafactor": (lambda lr, mask: optax.adafactor(lr, **FACTORED), {"weight_decay": 0.0}),
    "muon": (
        lambda lr, mask: optax.contrib.muon(
            lr, weight_decay=0.1, consistent_rms=0.2, muon_weight_dimension_numbers=matrices_of
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_updates_are_those_of_the_public_alias(case):
    alias, fields = PUBLIC[case]
    opt = make_optimizer(config_of(case, clip=None, **fields), total_steps=6)
    params = draw()
    theirs = named(params)
    reference = alias(opt.schedule, {name: name != "embed.table" for name in theirs})
    state, their_state = opt.init(params), reference.init(theirs)
    for step in range(6):
        grads = draw(step + 1)
        params, state, _ = update(opt, grads, 1.0, state, params, step)
        changes, their_state = jax.jit(reference.update)(named(grads), their_state, theirs)
        theirs = optax.apply_updates(theirs, changes)
    for name, value in named(params).items():
        if case == "muon" and matrices_of([name])[name] is None:
            continue  # optax's alias makes these by Adam with Nesterov momentum, ours by AdamW: the next test
        np.testing.assert_allclose(value, theirs[name], rtol=3e-6, atol=3e-6, err_msg=name)


def test_muon_makes_adamw_updates_of_what_is_no_hidden_matrix():
    params, ends = draw(), []
    for case in ("muon", "adamw"):
        opt = make_optimizer(config_of(case), total_steps=4)
        state, new = opt.init(params), params
        for step in range(4):
            new, state, _ = update(opt, draw(step + 1), 1.0, state, new, step)
        ends.append(named(new))
    same = {name for name in ends[0] if (ends[0][name] == ends[1][name]).all()}
    assert same == set(ends[0]) - {"layers.mlp.up.kernel"}


def test_muon_makes_every_layer_of_a_stack_orthogonal_on_its_own():
    opt = make_optimizer(OptimizerConfig(1.0, name="muon", weight_decay=0.0), total_steps=1)
    params = {"layers": {"up": {"kernel": jnp.zeros((3, 4, 6))}}}
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
    whole = update(opt, grads, 1.0, opt.init(params), params, 0)[0]["layers"]["up"]["kernel"]
    for layer in range(3):
        one = {"layers": {"up": {"kernel": grads["layers"]["up"]["kernel"][layer]}}}
        start = jax.tree.map(jnp.zeros_like, one)
        alone = update(opt, one, 1.0, opt.init(start), start, 0)[0]["layers"]["up"]["kernel"]
        np.testing.assert_allclose(whole[layer], alone, rtol=1e-4, atol=1e-5)
        stretch = np.linalg.svd(alone, compute_uv=False) / (0.2 * np.sqrt(6))
        assert (stretch > 0.5).all() and (stretch < 1.3).all()


def test_adafactor_keeps_rows_and_columns_in_place_of_matrices():
    opt = make_optimizer(config_of("adafactor"), total_steps=10)
    shapes = {name: leaf.shape for name, leaf in named(opt.init(draw())).items()}
    assert shapes["v_row.layers.mlp.up.kernel"] == (2, 8) and shapes["v_col.layers.mlp.up.kernel"] == (2, 16)
    assert shapes["v.layers.mlp.up.kernel"] == (1,) and shapes["v.layers.post_ffn_norm.scale"] == (2, 8)


@pytest.mark.parametrize("case", ["adamw", "muon"])
def test_the_transformation_of_optax_gives_the_same_parameters(case):
    opt = make_optimizer(config_of(case, trainable=("layers", "head")), total_steps=4)
    params = theirs = draw()
    state = their_state = opt.transform.init(params)
    apply = jax.jit(lambda g, s, p, n: opt.transform.update(g, s, p, step=n, loss=2.0))
    for step in range(4):
        grads = draw(step + 1)
        params, state, _ = update(opt, grads, 2.0, state, params, step)
        changes, their_state = apply(grads, their_state, theirs, step)
        theirs = optax.apply_updates(theirs, changes)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, theirs)
    assert_same(params["embed"], theirs["embed"])


# --- the guard, resumption, devices ----------------------------------------------------------------------------------


@every_algorithm
def test_an_update_that_is_not_finite_leaves_every_bit_and_is_counted(case):
    opt = make_optimizer(config_of(case), total_steps=10)
    params = draw()
    params["embed"]["table"] = params["embed"]["table"].at[0, 0].set(-0.0)
    params, state, _ = update(opt, draw(1), 2.0, opt.init(params), params, 0)
    grads = draw(2)
    grads["layers"]["mlp"]["up"]["kernel"] = grads["layers"]["mlp"]["up"]["kernel"].at[1, 2, 3].set(np.nan)
    new, skipped, info = update(opt, grads, 2.0, state, params, 1)
    assert info["skipped"] == 1
    bits = lambda tree: [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]  # noqa: E731
    assert bits(new) == bits(params)
    assert bits(skipped) == bits(state._replace(skipped_total=jnp.int32(1), skipped_in_row=jnp.int32(1)))
    after, state, info = update(opt, draw(3), 2.5, skipped, new, 2)
    assert info["skipped"] == 0 and state.recorded == 2 and state.losses[1] == 2.5
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves((after, state)))


def test_the_guard_goes_round_any_transformation_of_optax():
    whole = guarded(optax.chain(optax.clip(1.0), optax.adam(0.1)), SkipStep(window=4, min_values=3))
    params = {"w": jnp.array([1.0, -0.0])}
    state = whole.init(params)
    run = jax.jit(lambda g, s, p, loss: whole.update(g, s, p, loss=loss))
    for loss in (1.0, 1.1, 0.9):
        changes, state = run({"w": jnp.ones(2)}, state, params, loss)
        params = optax.apply_updates(params, changes)
    for bad, loss in ((np.nan, 1.0), (1.0, 99.0)):
        changes, after = run({"w": jnp.array([1.0, bad])}, state, params, loss)
        assert np.asarray(optax.apply_updates(params, changes)["w"]).tobytes() == np.asarray(params["w"]).tobytes()
        assert_same(after.inner, state.inner)
        assert after.skipped_in_row == 1


@every_algorithm
def test_a_checkpoint_in_mid_run_gives_the_same_bytes(case, tmp_path):
    opt = make_optimizer(config_of(case, skip_step=SkipStep(window=4, min_values=3)), total_steps=8)
    directions = [scaled(tree, 1 / global_norm(tree)) for tree in map(draw, (1, 2))]
    loss = [2.0, 2.1, 1.9, 2.05, 30.0, 2.0, 1.95, 2.1]

    def run(state, steps):
        for step in steps:
            params, inner, info = update(opt, directions[step % 2], loss[step], state.opt, state.params, step)
            state = state._replace(params=params, opt=inner)
        return state, info

    first = lambda: new_state(draw(), opt.init(draw()), 0)  # noqa: E731
    whole, info = run(first(), range(8))
    half, _ = run(first(), range(5))
    with Checkpointer(tmp_path, asynchronous=False) as checkpointer:
        checkpointer.save(5, half, {})
        restored, _ = checkpointer.restore(jax.eval_shape(first))
    resumed, _ = run(jax.tree.map(jnp.asarray, restored), range(5, 8))
    assert info["skipped_total"] == 1
    assert_same(whole, resumed)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py simulates them)")
@every_algorithm
def test_sharded_updates_equal_those_on_a_single_device(case):
    opt = make_optimizer(config_of(case), total_steps=8)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(1, 1, 4, 1, 1, 2), ("slice", "dp", "fsdp", "cp", "ep", "tp"))
    abstract = jax.eval_shape(lambda: new_state(draw(), opt.init(draw()), 0))
    layout = sharding.state_shardings(abstract, SHARDING_RULES, mesh, REPLICATED_STATE)
    placed = lambda tree: jax.device_put(tree, layout.params)  # noqa: E731
    single, sharded = draw(), placed(draw())
    state, sharded_state = opt.init(single), jax.device_put(opt.init(single), layout.opt)
    run = jax.jit(opt.update, out_shardings=(layout.params, layout.opt, None))
    for step in range(4):
        grads = draw(step + 1)
        single, state, info = update(opt, grads, 1.0, state, single, step)
        sharded, sharded_state, sharded_info = run(placed(grads), 1.0, sharded_state, sharded, step)
    np.testing.assert_allclose(sharded_info["grad_norm"], info["grad_norm"], rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)
    jax.tree.map(close, (sharded, sharded_state), (single, state))
    for name, place in zip(leaf_names(layout.opt), jax.tree.leaves(layout.opt), strict=True):
        whole = name.split(".")[-1] in ("count", "ns_coeffs") or "." not in name
        assert isinstance(place, NamedSharding) and (len(place.spec) == 0) >= whole, name
    moments = [x for x in jax.tree.leaves(sharded_state) if x.shape == (2, 8, 16)]
    assert all(len(x.sharding.device_set) == 8 and x.addressable_shards[0].data.size == 32 for x in moments)


@pytest.mark.parametrize("case", ["adafactor", "muon"])  # test_layouts.py has AdamW
def test_moments_on_the_host_give_the_same_numbers(case):
    """The layout with moments in the hosts' memory: what has a parameter's axes goes there and comes back there."""
    mesh = Mesh(np.array(jax.devices()[:1]).reshape((1,) * 6), ("slice", "dp", "fsdp", "cp", "ep", "tp"))
    ends = []
    for offload in (False, True):
        opt = make_optimizer(config_of(case, offload=offload), total_steps=4)
        abstract = jax.eval_shape(lambda opt=opt: new_state(draw(), opt.init(draw()), 0))
        layout = sharding.state_shardings(abstract, SHARDING_RULES, mesh, REPLICATED_STATE)
        layout = sharding.with_moments_on_host(layout) if offload else layout
        params = jax.device_put(draw(), layout.params)
        state = jax.device_put(opt.init(draw()), layout.opt)
        run = jax.jit(opt.update, out_shardings=(layout.params, layout.opt, None))
        params, state, _ = run(draw(1), 1.0, state, params, 2)
        ends.append(jax.device_get((params, state)))
        there = {n for n, x in named(state).items() if x.sharding.memory_kind == sharding.HOST_MEMORY}
        moments = {n for n, x in named(state).items() if x.shape in ((2, 8, 16), (16, 8), (8, 16))}
        assert moments <= there if offload else not there
        assert not any(name.split(".")[-1] in ("count", "losses", "recorded") for name in there)
    assert_same(*ends)


@pytest.mark.parametrize("case", CASES)
def test_moments_have_the_configured_types(case):
    config = config_of(case)
    state = jax.eval_shape(make_optimizer(config, total_steps=10).init, draw())
    found = {name: x.dtype for name, x in named(state).items() if {"mu", "trace", "nu"} & set(name.split("."))}
    for name, dtype in found.items():
        assert dtype == (config.second_moment_dtype if "nu" in name.split(".") else config.moment_dtype), name


# --- settings that cannot work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": "adamv"}, r"optimizer 'adamv' is not known \(did you mean 'adamw'\?\); there are adamw, lion"),
        ({"name": "lion", "eps": 1e-6}, "optimizer lion has no eps; leave it at 1e-08"),
        ({"name": "adafactor", "moment_dtype": "bfloat16"}, "adafactor has no moment_dtype"),
        ({"name": "sgd", "options": {"nestorov": True}}, r"no option 'nestorov' \(did you mean 'nesterov'\?\)"),
        ({"options": {"nesterov": True}}, "optimizer adamw has no option 'nesterov'; it has none"),
    ],
)
def test_settings_that_an_algorithm_does_not_have_are_one_line(fields, why):
    with pytest.raises(UserError, match=why) as error:
        make_optimizer(OptimizerConfig(1e-3, **fields), total_steps=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [("nesterov",), ((1, 2),), (("a", 1, 2),)])
def test_options_without_values_are_refused_when_written(options):
    with pytest.raises(UserError, match="must be names with values"):
        OptimizerConfig(1e-3, name="sgd", options=options)


def test_options_are_written_on_the_command_line_as_names_with_values():
    from easylm_jax.config import fields

    config = fields.override(OptimizerConfig(1e-3, name="muon"), "options", "nesterov=false, ns_steps=3")
    assert config.options == (("nesterov", False), ("ns_steps", 3))
    assert fields.override(config, "options", "consistent_rms=none").options == (("consistent_rms", None),)


def test_the_state_is_the_algorithm_s_with_the_guard_beside_it():
    opt = make_optimizer(OptimizerConfig(1e-3), total_steps=1)
    state = opt.init(draw())
    assert isinstance(state.inner, AdamState) and state.mu is state.inner.mu
    assert leaf_names(state)[-5:] == ["losses", "grad_norms", "recorded", "skipped_total", "skipped_in_row"]
    assert jax.tree.structure(jax.tree.map(lambda x: x, state)) == jax.tree.structure(state)
    assert state._replace(count=3, recorded=2).inner.count == 3
    with pytest.raises(AttributeError):
        _ = state.nothing
    assert kit.CONSTANT.name == "adamw"
