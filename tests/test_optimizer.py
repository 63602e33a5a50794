"""AdamW, the clip, decay masks, frozen leaves, and the guard that skips bad updates."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from easylm_jax.config.optimizer import OptimizerConfig, SkipStep
from easylm_jax.train.optimizer import global_norm, make_optimizer
from models.errors import UserError
from models.trees import leaf_names, merge_trees

CONSTANT = OptimizerConfig(lr=1e-2)


def params_like_olmo2(seed=0):
    """A tree with every kind of leaf: embedding, kernels, biases, norms and head."""
    random = np.random.default_rng(seed)
    shapes = {
        "embed": {"table": (16, 8)},
        "layers": {
            "attn": {"q": {"kernel": (2, 8, 8), "bias": (2, 8)}, "q_norm": {"scale": (2, 8)}},
            "mlp": {"up": {"kernel": (2, 8, 16)}},
            "post_attn_norm": {"scale": (2, 8)},
        },
        "final_norm": {"scale": (8,)},
        "head": {"kernel": (8, 16)},
    }
    return jax.tree.map(
        lambda s: jnp.asarray(random.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


@functools.partial(jax.jit, static_argnums=0)
def update(opt, grads, loss, state, params, step):
    return opt.update(grads, loss, state, params, step)


def scaled(tree, factor):
    return jax.tree.map(lambda x: x * factor, tree)


def assert_same(a, b):
    """Every leaf bit-identical."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def adamw_in_double(params, gradients, rates, *, b1, b2, eps, decay, clip, decayed):
    """The textbook loop in float64, leaf names to arrays."""
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
    for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = {k: np.asarray(x, np.float64) for k, x in grads.items()}
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        for k in p:
            scaled = g[k] * min(1.0, clip / (norm + 1e-6))
            m[k] = b1 * m[k] + (1 - b1) * scaled
            v[k] = b2 * v[k] + (1 - b2) * scaled**2
            p[k] = p[k] * (1 - lr * decay * (k in decayed))
            p[k] = p[k] - lr * (m[k] / (1 - b1**t)) / (np.sqrt(v[k] / (1 - b2**t)) + eps)
    return p, m, v


def named(tree):
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


@pytest.mark.parametrize("b2", [0.95, 0.999])
def test_twenty_updates_agree_with_double_precision(b2):
    config = OptimizerConfig(lr="1e-2 linear to 0 warmup 4 steps from 10%", b2=b2, clip=3.0)
    opt = make_optimizer(config, total_steps=20)
    params = params_like_olmo2()
    state, gradients, rates, start = opt.init(params), [], [], named(params)
    for step in range(20):
        grads = scaled(params_like_olmo2(seed=100 + step), 0.02 if step % 2 else 1.0)
        gradients.append(named(grads))
        params, state, info = update(opt, grads, 1.0, state, params, step)
        rates.append(float(info["lr"]))
    decayed = set(start) - {"embed.table"}
    expected, m, v = adamw_in_double(
        start, gradients, rates, b1=0.9, b2=b2, eps=1e-8, decay=0.1, clip=3.0, decayed=decayed
    )
    for name, value in named(params).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(named(state.mu)[name], m[name], rtol=1e-5, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(named(state.nu)[name], v[name], rtol=1e-5, atol=1e-9, err_msg=name)
    assert state.count == 20 and state.skipped_total == 0


def test_updates_agree_with_optax_adamw():
    config = OptimizerConfig(lr="1e-2 cosine to 10% warmup 5 steps", clip=None)
    opt = make_optimizer(config, total_steps=20)
    params = params_like_olmo2()
    mask = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "embed", tree)  # noqa: E731
    reference = optax.adamw(opt.schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask)
    theirs, their_state, state = params, reference.init(params), opt.init(params)
    for step in range(20):
        grads = params_like_olmo2(seed=step + 1)
        params, state, _ = update(opt, grads, 1.0, state, params, step)
        changes, their_state = reference.update(grads, their_state, theirs)
        theirs = optax.apply_updates(theirs, changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-6), params, theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state.mu, their_state[0].mu)


def test_first_update_with_slow_second_moment_is_the_sign_of_the_gradient():
    """1 − 0.999 has lost five digits in float32; the bias correction must not show it."""
    opt = make_optimizer(OptimizerConfig(lr=1.0, b2=0.999, weight_decay=0.0, clip=None), total_steps=1)
    params = {"w": {"kernel": jnp.zeros(3)}}
    new, _, _ = update(opt, {"w": {"kernel": jnp.array([0.5, -2.0, 3.0])}}, 1.0, opt.init(params), params, 0)
    np.testing.assert_allclose(new["w"]["kernel"], [-1, 1, -1], rtol=5e-7)


@pytest.mark.parametrize("clip", [0.5, 1.0, 100.0, None])
def test_clip_multiplies_the_gradient_by_the_published_factor(clip):
    params = {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.zeros(1)}}
    grads = {"a": {"kernel": jnp.array([3.0, 0.0])}, "b": {"kernel": jnp.array([4.0])}}
    opt = make_optimizer(OptimizerConfig(lr=1e-3, clip=clip), total_steps=1)
    _, state, info = update(opt, grads, 1.0, opt.init(params), params, 0)
    factor = 1.0 if clip is None else min(1.0, clip / (5.0 + 1e-6))
    assert info["grad_norm"] == 5.0
    np.testing.assert_allclose(state.mu["a"]["kernel"], [0.1 * 3 * factor, 0], rtol=1e-6)
    np.testing.assert_allclose(state.mu["b"]["kernel"], [0.1 * 4 * factor], rtol=1e-6)
    np.testing.assert_allclose(state.nu["b"]["kernel"], [0.05 * (4 * factor) ** 2], rtol=1e-6)


def test_clip_factor_stays_finite_at_vanishing_norms():
    """The 1e-6 beside the norm: at a norm of 5e-6 and a bound of 1e-6 the factor is 1/6, not 1/5."""
    params = {"a": {"kernel": jnp.zeros(2)}}
    opt = make_optimizer(OptimizerConfig(lr=1e-3, clip=1e-6), total_steps=1)
    grads = {"a": {"kernel": jnp.array([3e-6, 4e-6])}}
    _, state, _ = update(opt, grads, 1.0, opt.init(params), params, 0)
    np.testing.assert_allclose(state.mu["a"]["kernel"], [0.1 * 3e-6 / 6, 0.1 * 4e-6 / 6], rtol=1e-5)
    _, state, _ = update(opt, scaled(grads, 0.0), 1.0, opt.init(params), params, 0)
    np.testing.assert_array_equal(state.mu["a"]["kernel"], [0, 0])


@pytest.mark.parametrize(
    ("config", "spared"),
    [
        (OptimizerConfig(lr=1e-2), {"embed.table"}),
        (OptimizerConfig(lr=1e-2, decay_embeddings=True), set()),
        (
            OptimizerConfig(lr=1e-2, decay_norms_and_biases=False),
            {
                "embed.table",
                "layers.attn.q.bias",
                "layers.attn.q_norm.scale",
                "layers.post_attn_norm.scale",
                "final_norm.scale",
            },
        ),
        (OptimizerConfig(lr=1e-2, weight_decay=0.0), None),
    ],
    ids=["olmo2", "olmo1-and-olmoe", "tulu25", "no-decay"],
)
def test_decay_spares_exactly_the_leaves_of_the_family(config, spared):
    """With no gradient, a decayed leaf shrinks by 1 − lr·wd and any other keeps its bits."""
    opt = make_optimizer(config, total_steps=1)
    params = params_like_olmo2()
    spared = set(leaf_names(params)) if spared is None else spared
    new, _, _ = update(opt, jax.tree.map(jnp.zeros_like, params), 1.0, opt.init(params), params, 0)
    old, new = named(params), named(new)
    assert {name for name in old if (old[name] == new[name]).all()} == spared
    for name in set(old) - spared:
        np.testing.assert_allclose(new[name], old[name] * (1 - 1e-2 * 0.1), rtol=1e-6, err_msg=name)
    listed = opt.describe(params)
    undecayed = listed[listed.index("not decayed") :] if spared else ""
    assert {line.split()[0] for line in undecayed.splitlines()[1:]} == spared
    assert ("not decayed" in listed) == bool(spared)


def test_description_lists_every_leaf_with_its_shape_and_the_totals():
    opt = make_optimizer(OptimizerConfig(lr=1e-3, trainable=("head", "embed")), total_steps=1)
    lines = opt.describe(params_like_olmo2()).splitlines()
    assert lines[:4] == [
        "decayed by 0.1: 1 leaves, 128 parameters",
        "  head.kernel [8, 16]",
        "not decayed: 1 leaves, 128 parameters",
        "  embed.table [16, 8]",
    ]
    assert lines[4] == "frozen: 6 leaves, 440 parameters" and len(lines) == 11


def test_frozen_leaves_keep_their_bits_and_have_no_moments():
    opt = make_optimizer(OptimizerConfig(lr=1e-2, trainable=("layers.mlp", "attn.*.bias")), total_steps=1)
    params, grads = params_like_olmo2(), params_like_olmo2(seed=1)
    state = opt.init(params)
    trained = {"layers.mlp.up.kernel", "layers.attn.q.bias"}
    assert set(leaf_names(state.mu)) == set(leaf_names(state.nu)) == trained
    new, new_state, info = update(opt, grads, 1.0, state, params, 0)
    assert {name for name, value in named(new).items() if (value != named(params)[name]).any()} == trained
    kept = opt.trainable(grads)
    np.testing.assert_allclose(info["grad_norm"], optax.tree.norm(kept), rtol=1e-6)
    again = update(opt, kept, 1.0, state, params, 0)
    assert_same((new, new_state, info), again)


def test_trained_part_is_taken_out_and_put_back():
    opt = make_optimizer(OptimizerConfig(lr=1e-2, trainable=("mlp",)), total_steps=1)
    params = params_like_olmo2()
    part = opt.trainable(params)
    assert list(part) == ["layers"] and list(part["layers"]) == ["mlp"]
    changed = merge_trees(params, jax.tree.map(lambda x: x + 1, part))
    assert leaf_names(changed) == leaf_names(params)
    assert (changed["layers"]["mlp"]["up"]["kernel"] == params["layers"]["mlp"]["up"]["kernel"] + 1).all()
    assert changed["embed"]["table"] is params["embed"]["table"]


def test_pattern_that_trains_nothing_lists_the_parameters():
    opt = make_optimizer(OptimizerConfig(lr=1e-2, trainable=("mpl",)), total_steps=1)
    with pytest.raises(
        UserError, match=r"optimizer.trainable: 'mpl' matches no parameter; there are embed\.table, .*head"
    ):
        opt.init(params_like_olmo2())


def test_gradients_of_another_tree_are_refused():
    opt = make_optimizer(CONSTANT, total_steps=1)
    params = params_like_olmo2()
    grads = {k: v for k, v in params.items() if k != "head"}
    with pytest.raises(ValueError, match="differ in head.kernel"):
        opt.update(grads, 1.0, opt.init(params), params, 0)


def test_norms_are_those_of_the_change_and_of_the_new_parameters():
    opt = make_optimizer(OptimizerConfig(lr=1e-2, update_norm=True), total_steps=1)
    params = params_like_olmo2()
    new, _, info = update(opt, params_like_olmo2(seed=1), 1.0, opt.init(params), params, 0)
    change = jax.tree.map(lambda a, b: a - b, new, params)
    np.testing.assert_allclose(info["update_norm"], optax.tree.norm(change), rtol=1e-6)
    np.testing.assert_allclose(info["param_norm"], optax.tree.norm(new), rtol=1e-6)


def test_global_norm_of_half_precision_leaves_is_summed_in_float32():
    ones = jnp.full(70_000, 1.0, jnp.bfloat16)  # a bfloat16 sum of ones stops growing at 256
    np.testing.assert_allclose(global_norm({"a": ones}), np.sqrt(70_000), rtol=1e-6)


# --- the guard -------------------------------------------------------------------------------------------------------

BAD = {"nan in one gradient": (np.nan, 1.0), "infinite gradient": (np.inf, 1.0), "nan loss": (1.0, np.nan)}


@pytest.mark.parametrize(("gradient", "loss"), BAD.values(), ids=BAD.keys())
def test_update_that_is_not_finite_changes_nothing_and_is_counted(gradient, loss):
    opt = make_optimizer(OptimizerConfig(lr="1e-2 linear to 0"), total_steps=10)
    params, state = params_like_olmo2(), opt.init(params_like_olmo2())
    params, state, _ = update(opt, params_like_olmo2(1), 2.0, state, params, 0)
    grads = params_like_olmo2(2)
    grads["layers"]["mlp"]["up"]["kernel"] = grads["layers"]["mlp"]["up"]["kernel"].at[1, 2, 3].set(gradient)
    new, skipped, info = update(opt, grads, loss, state, params, 1)
    assert_same(new, params)
    counters = {"skipped_total": 1, "skipped_in_row": 1}
    assert_same(skipped, state._replace(**counters))
    assert info["skipped"] == 1 and info["skipped_total"] == 1
    new, after, info = update(opt, params_like_olmo2(3), 2.0, skipped, new, 2)
    assert info["skipped"] == 0 and after.skipped_in_row == 0 and after.skipped_total == 1 and after.count == 2
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves((new, after))])).all()
    np.testing.assert_allclose(info["lr"], 1e-2 * 0.8, rtol=1e-6)


def test_very_first_update_may_be_skipped():
    opt = make_optimizer(CONSTANT, total_steps=10)
    params = params_like_olmo2()
    new, state, _ = update(opt, params, np.nan, opt.init(params), params, 0)
    assert_same(new, params)
    with_skip = update(opt, params_like_olmo2(1), 1.0, state, new, 1)[0]
    without = update(opt, params_like_olmo2(1), 1.0, opt.init(params), params, 1)[0]
    assert_same(with_skip, without)


@functools.partial(jax.jit, static_argnums=0)
def run_guard(opt, losses, norms):
    """Updates of a single parameter, with gradients of the given norms; whether each was skipped, and the state."""
    params = {"w": {"kernel": jnp.ones(())}}

    def one(carry, x):
        params, state, step = carry
        params, state, info = opt.update({"w": {"kernel": x[1]}}, x[0], state, params, step)
        return (params, state, step + 1), (info["skipped"], params["w"]["kernel"], state.count, info["loss_deviation"])

    (_, state, _), out = jax.lax.scan(one, (params, opt.init(params), 0), (losses, norms))
    return *out, state


def guard_in_double(losses, norms, window=128, min_values=64, sigma=6.0):
    """The published rule with plain lists."""
    past, skipped = [], []
    for pair in zip(losses.astype(np.float64), norms.astype(np.float64), strict=True):
        recent = np.array(past[-window:])
        bad = not np.isfinite(pair).all()
        if not bad and len(recent) + 1 >= min_values:
            bad = bool(((np.array(pair) - recent.mean(0)) > sigma * recent.std(0, ddof=1)).any())
        if np.isfinite(pair).all():
            past.append(pair)
        skipped.append(bad)
    return np.array(skipped)


def noise(n, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(2.0, 0.1, n)).astype(np.float32), (random.normal(0.5, 0.02, n)).astype(np.float32)


SPIKING = OptimizerConfig(lr=1e-3, skip_step=True)


def test_guard_decides_as_the_published_rule_through_spikes_of_every_kind():
    losses, norms = noise(600)
    losses[[20, 100, 300]] = 20.0  # the first comes before there are 64 values
    norms[[150, 301, 302]] = 9.0
    losses[200], norms[210] = np.nan, np.inf
    losses[450:] += 3.0  # a lasting change of level
    losses[500] = -50.0  # far below the mean is no spike
    opt = make_optimizer(SPIKING, total_steps=600)
    skipped, _, count, _, state = run_guard(opt, losses, norms)
    expected = guard_in_double(losses, norms)
    np.testing.assert_array_equal(skipped, expected)
    assert {100, 150, 200, 210} <= set(np.flatnonzero(skipped)) and 20 not in np.flatnonzero(skipped)
    assert 0 < expected[450:].sum() < 10
    np.testing.assert_array_equal(count, np.cumsum(~expected))
    assert state.recorded == 598 and state.skipped_total == expected.sum()


@pytest.mark.parametrize("spiking", ["loss", "norm"])
def test_spike_in_either_value_alone_changes_no_parameter_moment_or_count(spiking):
    losses, norms = noise(71)
    (losses if spiking == "loss" else norms)[70] = 30.0
    opt = make_optimizer(SPIKING, total_steps=100)
    skipped, values, _, deviations, state = run_guard(opt, losses, norms)
    _, _, _, _, before = run_guard(opt, losses[:70], norms[:70])
    assert np.flatnonzero(skipped).tolist() == [70]
    assert values[70] == values[69]
    assert_same((state.mu, state.nu, state.count), (before.mu, before.nu, before.count))
    assert state.recorded == 71 and state.losses[70] == losses[70]  # a finite value stays in the window
    assert (deviations[70] > 100) == (spiking == "loss")


@pytest.mark.parametrize(("earlier", "skips"), [(62, 0), (63, 1)])
def test_guard_starts_at_64_values_the_current_one_included(earlier, skips):
    losses, norms = noise(earlier + 1)
    losses[-1] = 50.0
    assert run_guard(make_optimizer(SPIKING, total_steps=100), losses, norms)[0].sum() == skips


def test_values_that_are_not_finite_do_not_count_towards_the_64():
    losses, norms = noise(65)
    losses[5], norms[6] = np.nan, np.inf
    losses[-1] = 50.0
    assert run_guard(make_optimizer(SPIKING, total_steps=100), losses, norms)[0].tolist() == [0] * 5 + [1, 1] + [0] * 58


@pytest.mark.parametrize(("value", "skips"), [(9.4, 0), (9.6, 1)])
def test_guard_measures_in_sample_deviations_of_the_earlier_values(value, skips):
    """Of 0 and 2 the mean is 1 and the sample deviation √2, so that the bound is 1 + 6√2 = 9.49."""
    rule = SkipStep(window=128, min_values=3, sigma=6.0)
    opt = make_optimizer(OptimizerConfig(lr=1e-3, skip_step=rule), total_steps=10)
    losses, norms = np.array([0.0, 2.0, value], np.float32), np.ones(3, np.float32)
    skipped, *_, deviations, _ = run_guard(opt, losses, norms)
    assert skipped.sum() == skips
    np.testing.assert_allclose(deviations[-1], (value - 1) / np.sqrt(2), rtol=1e-6)


def test_spikes_pass_when_the_guard_is_off():
    losses, norms = noise(101)
    losses[100] = 1e6
    assert run_guard(make_optimizer(OptimizerConfig(lr=1e-3), total_steps=200), losses, norms)[0].sum() == 0


def test_guard_of_another_size_follows_its_numbers():
    losses, norms = noise(60, seed=3)
    losses[[9, 26, 43]] += 1.5  # each when the one before has left the window
    rule = SkipStep(window=16, min_values=8, sigma=4.0)
    opt = make_optimizer(OptimizerConfig(lr=1e-3, skip_step=rule), total_steps=60)
    expected = guard_in_double(losses, norms, window=16, min_values=8, sigma=4.0)
    np.testing.assert_array_equal(run_guard(opt, losses, norms)[0], expected)
    assert set(np.flatnonzero(expected)) >= {9, 26, 43}


def test_state_saved_and_restored_in_mid_window_gives_the_same_bytes():
    opt = make_optimizer(SPIKING, total_steps=200)
    losses, norms = noise(140)
    losses[120] = 30.0
    params = params_like_olmo2()
    directions = [scaled(tree, 1 / global_norm(tree)) for tree in map(params_like_olmo2, (1, 2))]

    def run(params, state, steps):
        for step in steps:
            grads = scaled(directions[step % 2], norms[step])
            params, state, info = update(opt, grads, losses[step], state, params, step)
        return params, state, info

    whole = run(params, opt.init(params), range(140))
    half = run(params, opt.init(params), range(90))[:2]
    saved = pickle.dumps(jax.tree.map(np.asarray, half))
    resumed = run(*jax.tree.map(jnp.asarray, pickle.loads(saved)), range(90, 140))
    assert whole[1].skipped_total == 1
    assert_same(whole, resumed)


def test_run_is_ended_after_the_configured_number_of_skips_in_a_row():
    opt = make_optimizer(OptimizerConfig(lr=1e-3, abort_after=3), total_steps=10)
    metrics = {"loss": float("nan"), "grad_norm": 2.0}
    opt.check(metrics | {"skipped_in_row": 2}, step=7)
    with pytest.raises(UserError, match="step 8: the last 3 updates were all skipped .loss nan, gradient norm 2."):
        opt.check(metrics | {"skipped_in_row": 3}, step=8)
    patient = make_optimizer(OptimizerConfig(lr=1e-3, abort_after=None), total_steps=10)
    patient.check(metrics | {"skipped_in_row": 10_000}, step=8)


# --- types, memory, devices ------------------------------------------------------------------------------------------


def test_moments_in_bfloat16_take_half_the_memory_and_stay_close():
    half = OptimizerConfig(lr=1e-2, moment_dtype="bfloat16", second_moment_dtype="bfloat16")
    results = []
    for config in (CONSTANT, half):
        opt = make_optimizer(config, total_steps=20)
        params = params_like_olmo2()
        state = opt.init(params)
        for step in range(20):
            params, state, _ = update(opt, params_like_olmo2(step + 1), 1.0, state, params, step)
        results.append((params, state))
    (exact, _), (rounded, state) = results
    assert {x.dtype for x in jax.tree.leaves((state.mu, state.nu))} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, exact, params_like_olmo2()))
    apart = optax.tree.norm(jax.tree.map(lambda a, b: a - b, exact, rounded))
    assert 0 < apart < 0.01 * moved


def test_parameters_in_bfloat16_are_rounded_once_from_float32():
    opt = make_optimizer(OptimizerConfig(lr=1e-2, clip=None), total_steps=1)
    full = {"w": {"kernel": jnp.asarray([1.0, -0.5, 0.25], jnp.float32)}}
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full)
    grads = {"w": {"kernel": jnp.asarray([0.3, 0.2, -0.1], jnp.float32)}}
    expected = update(opt, grads, 1.0, opt.init(full), full, 0)[0]
    new, state, _ = update(opt, grads, 1.0, opt.init(half), half, 0)
    assert state.mu["w"]["kernel"].dtype == jnp.float32
    assert_same(new, jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected))


def test_donated_update_works_in_place():
    """Every parameter and moment comes back in the buffer that it arrived in, and nothing large is held beside."""
    opt = make_optimizer(OptimizerConfig(lr=1e-3, skip_step=True), total_steps=10)
    params = {f"w{i}": {"kernel": jnp.ones((256, 256))} for i in range(4)}
    state = opt.init(params)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    step = jax.jit(lambda p, s, g, loss, n: opt.update(g, loss, s, p, n), donate_argnums=(0, 1))
    grads = jax.tree.map(jnp.ones_like, params)
    memory = step.lower(params, state, grads, jnp.float32(1), 0).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * size
    assert memory.temp_size_in_bytes < size / 8
    before = jax.tree.leaves((params, state.mu, state.nu))
    step(params, state, grads, jnp.float32(1), 0)
    assert all(x.is_deleted() for x in before)


def test_state_has_a_shape_before_there_are_parameters():
    opt = make_optimizer(CONSTANT, total_steps=1)
    params = params_like_olmo2()
    shapes = jax.eval_shape(opt.init, jax.eval_shape(lambda: params))
    state = opt.init(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py simulates them)")
def test_sharded_update_equals_the_one_on_a_single_device():
    config = OptimizerConfig(lr=1e-2, skip_step=SkipStep(window=8, min_values=3), update_norm=True)
    opt = make_optimizer(config, total_steps=10)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("fsdp", "tp"))

    def place(tree):
        def put(x):
            # The last axes over the mesh; stacked layers, and the two-row leaves, stay whole on that axis.
            axes = ("tp",) if x.shape[0] == 2 and x.ndim == 2 or x.ndim == 1 else ("fsdp", "tp")
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*(None,) * (x.ndim - len(axes)), *axes)))

        return jax.tree.map(put, tree)

    single, sharded = params_like_olmo2(), place(params_like_olmo2())
    state, sharded_state = opt.init(single), jax.jit(opt.init)(sharded)
    for step in range(8):
        grads = params_like_olmo2(step + 1)
        if step == 4:  # one bad number, on one device
            grads["layers"]["mlp"]["up"]["kernel"] = grads["layers"]["mlp"]["up"]["kernel"].at[1, 7, 15].set(jnp.nan)
        if step == 6:
            grads = scaled(grads, 1e3)
        single, state, info = update(opt, grads, 1.0, state, single, step)
        sharded, sharded_state, sharded_info = update(opt, place(grads), 1.0, sharded_state, sharded, step)
        assert info["skipped"] == sharded_info["skipped"] == (step in (4, 6))
        np.testing.assert_allclose(sharded_info["grad_norm"], info["grad_norm"], rtol=1e-6)
        np.testing.assert_allclose(sharded_info["update_norm"], info["update_norm"], rtol=1e-5)
    assert len(sharded["head"]["kernel"].sharding.device_set) == 8
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, (sharded, sharded_state.mu, sharded_state.nu), (single, state.mu, state.nu))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"lr": "soon"}, "'soon' is not a number"),
        ({"b1": 1.0}, "optimizer.b1: 1.0 is not a number below 1"),
        ({"eps": 0.0}, "optimizer.eps: 0.0 is not a number above 0"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay: -0.1 is not a number of at least 0"),
        ({"clip": 0.0}, "optimizer.clip: 0.0 is not a number above 0"),
        ({"abort_after": 0}, "abort_after: 0 is not a whole number of at least 1"),
        ({"moment_dtype": "float16"}, "must be one of float32, bfloat16"),
        ({"second_moment_dtype": "bfloat16", "b2": 0.999}, "cannot follow b2 0.999"),
        ({"trainable": "head"}, "must be a tuple of patterns"),
    ],
)
def test_configuration_that_cannot_work_is_refused_when_written(fields, why):
    with pytest.raises(UserError, match=why):
        OptimizerConfig(**({"lr": 1e-3} | fields))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"min_values": 2}, "between 3 and"),
        ({"window": 10}, "between 3 and"),
        ({"sigma": 0.0}, "skip_step.sigma: 0.0 is not a number above 0"),
        ({"window": 9.5}, "whole"),
    ],
)
def test_guard_that_cannot_work_is_refused_when_written(fields, why):
    with pytest.raises(UserError, match=why):
        SkipStep(**fields)


def test_guard_is_switched_by_true_and_false():
    assert OptimizerConfig(lr=1e-3, skip_step=True).skip_step == SkipStep()
    assert OptimizerConfig(lr=1e-3, skip_step=False).skip_step is None
