"""Low-rank adapters: what they touch, what they leave alone, and that merging is the same as running them beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm_jax.config.optimizer import LoraConfig, OptimizerConfig
from easylm_jax.train.lora import init_lora, merge
from easylm_jax.train.optimizer import make_optimizer
from models.errors import UserError
from models.trees import leaf_names

LAYERS, WIDTH, HIDDEN = 3, 8, 12
CONFIG = LoraConfig(rank=4, alpha=8, targets=("attn.q", "mlp.*"))


@pytest.fixture
def base():
    shapes = {
        "embed": {"table": (16, WIDTH)},
        "layers": {
            "attn": {
                "q": {"kernel": (LAYERS, WIDTH, WIDTH), "bias": (LAYERS, WIDTH)},
                "v": {"kernel": (LAYERS, WIDTH, WIDTH)},
                "q_norm": {"scale": (LAYERS, WIDTH)},
            },
            "mlp": {"up": {"kernel": (LAYERS, WIDTH, HIDDEN)}, "down": {"kernel": (LAYERS, HIDDEN, WIDTH)}},
        },
        "head": {"kernel": (WIDTH, 16)},
    }
    random = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(random.normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def trained(lora, seed=1):
    """The adapter with no zeros left, as after some training."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(random.normal(size=x.shape), jnp.float32), lora)


def forward(params, x):
    """A stack of layers that uses every kernel and bias, and a head; x [N, width]."""
    layers = params["layers"]
    for i in range(LAYERS):
        attn = layers["attn"]
        x = x + jnp.tanh(x @ attn["q"]["kernel"][i] + attn["q"]["bias"][i]) @ attn["v"]["kernel"][i]
        x = x + jnp.tanh(x @ layers["mlp"]["up"]["kernel"][i]) @ layers["mlp"]["down"]["kernel"][i]
    return x @ params["head"]["kernel"]


def forward_beside(params, lora, x, scale):
    """The same stack with each adapter run as two small products beside its kernel."""
    layers, adapters = params["layers"], lora["layers"]

    def linear(x, kernel, adapter, i):
        return x @ kernel[i] + scale * ((x @ adapter["lora_a"][i]) @ adapter["lora_b"][i])

    for i in range(LAYERS):
        attn, mlp = layers["attn"], layers["mlp"]
        q = linear(x, attn["q"]["kernel"], adapters["attn"]["q"], i) + attn["q"]["bias"][i]
        x = x + jnp.tanh(q) @ attn["v"]["kernel"][i]
        up = linear(x, mlp["up"]["kernel"], adapters["mlp"]["up"], i)
        x = x + linear(jnp.tanh(up), mlp["down"]["kernel"], adapters["mlp"]["down"], i)
    return x @ params["head"]["kernel"]


def test_adapter_sits_on_the_named_kernels_alone_with_one_pair_a_layer(base):
    lora = init_lora(jax.random.key(0), base, CONFIG)
    shapes = dict(zip(leaf_names(lora), (x.shape for x in jax.tree.leaves(lora)), strict=True))
    assert shapes == {
        "layers.attn.q.lora_a": (LAYERS, WIDTH, 4),
        "layers.attn.q.lora_b": (LAYERS, 4, WIDTH),
        "layers.mlp.down.lora_a": (LAYERS, HIDDEN, 4),
        "layers.mlp.down.lora_b": (LAYERS, 4, WIDTH),
        "layers.mlp.up.lora_a": (LAYERS, WIDTH, 4),
        "layers.mlp.up.lora_b": (LAYERS, 4, HIDDEN),
    }
    a = np.asarray(lora["layers"]["attn"]["q"]["lora_a"])
    assert np.abs(a).max() <= WIDTH**-0.5 and len(np.unique(a)) == a.size


def test_fresh_adapter_leaves_every_bit_of_the_base(base):
    merged = merge(base, init_lora(jax.random.key(0), base, CONFIG), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, merged, base)


def test_first_matrix_has_the_usual_variance():
    params = {"q": {"kernel": jax.ShapeDtypeStruct((2, 400, 300), jnp.float32)}}
    a = init_lora(jax.random.key(1), params, LoraConfig(rank=64, alpha=64, targets=("q",)))["q"]["lora_a"]
    np.testing.assert_allclose(np.var(np.asarray(a)), 1 / (3 * 400), rtol=0.02)


def test_kernel_starts_the_same_whatever_other_targets_there_are(base):
    alone = init_lora(jax.random.key(0), base, LoraConfig(rank=4, alpha=8, targets=("mlp.up",)))
    together = init_lora(jax.random.key(0), base, CONFIG)
    np.testing.assert_array_equal(alone["layers"]["mlp"]["up"]["lora_a"], together["layers"]["mlp"]["up"]["lora_a"])


def test_merged_forward_equals_the_adapter_run_beside_its_kernel(base):
    lora = trained(init_lora(jax.random.key(0), base, CONFIG))
    x = jax.random.normal(jax.random.key(2), (5, WIDTH)) * 0.1
    merged = forward(merge(base, lora, CONFIG), x)
    np.testing.assert_allclose(merged, forward_beside(base, lora, x, scale=8 / 4), rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(merged - forward(base, x)).max()) > 0.1


def test_gradient_with_respect_to_the_adapter_equals_that_of_the_explicit_products(base):
    lora = trained(init_lora(jax.random.key(0), base, CONFIG))
    lora = jax.tree.map(lambda x: x * 0.1, lora)
    x = jax.random.normal(jax.random.key(2), (5, WIDTH)) * 0.1
    ours = jax.grad(lambda t: jnp.sum(forward(merge(base, t, CONFIG), x) ** 2))(lora)
    theirs = jax.grad(lambda t: jnp.sum(forward_beside(base, t, x, 2.0) ** 2))(lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)
    assert leaf_names(ours) == leaf_names(lora)


def test_training_moves_the_adapter_and_never_the_base(base):
    lora = init_lora(jax.random.key(0), base, CONFIG)
    opt = make_optimizer(OptimizerConfig(lr=3e-2, weight_decay=0.0), total_steps=40)
    x = jax.random.normal(jax.random.key(2), (32, WIDTH))
    goal = forward(merge(base, jax.tree.map(lambda t: t * 0.1, trained(lora)), CONFIG), x)

    @jax.jit
    def step(base, lora, state, n):
        objective = lambda t: jnp.mean((forward(merge(base, t, CONFIG), x) - goal) ** 2)  # noqa: E731
        loss, grads = jax.value_and_grad(objective)(lora)
        lora, state, _ = opt.update(grads, loss, state, lora, n)
        return lora, state, loss

    before = jax.tree.map(np.asarray, base)
    state, losses = opt.init(lora), []
    assert leaf_names(state.mu) == leaf_names(lora)
    for n in range(40):
        lora, state, loss = step(base, lora, state, n)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, base, before)


def test_bfloat16_base_is_rounded_once_after_the_sum(base):
    lora = trained(init_lora(jax.random.key(0), base, CONFIG))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    merged = merge(half, lora, CONFIG)["layers"]["attn"]["q"]["kernel"]
    a, b = (np.asarray(lora["layers"]["attn"]["q"][name], np.float64) for name in ("lora_a", "lora_b"))
    expected = np.asarray(half["layers"]["attn"]["q"]["kernel"], np.float64) + 2.0 * a @ b
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float64), expected, rtol=2**-8)


def test_leading_expert_axes_get_an_adapter_each():
    params = {"moe": {"up": {"kernel": jnp.zeros((2, 4, 6, 5))}}}
    config = LoraConfig(rank=3, alpha=3, targets=("moe.up",))
    lora = trained(init_lora(jax.random.key(0), params, config))
    merged = merge(params, lora, config)["moe"]["up"]["kernel"]
    a, b = lora["moe"]["up"]["lora_a"], lora["moe"]["up"]["lora_b"]
    assert a.shape == (2, 4, 6, 3)
    np.testing.assert_allclose(merged[1, 2], np.asarray(a[1, 2]) @ np.asarray(b[1, 2]), rtol=1e-5, atol=1e-5)


def test_dropout_leaves_out_input_features_in_training_alone_and_keeps_the_mean(base):
    config = LoraConfig(rank=4, alpha=8, targets=("attn.q",), dropout=0.5)
    lora = trained(init_lora(jax.random.key(0), base, config))
    kernel = lambda key=None: merge(base, lora, config, key)["layers"]["attn"]["q"]["kernel"]  # noqa: E731
    plain = kernel() - base["layers"]["attn"]["q"]["kernel"]
    keys = jax.random.split(jax.random.key(3), 4000)
    dropped = jax.vmap(kernel)(keys) - base["layers"]["attn"]["q"]["kernel"]
    rows_left = (jnp.abs(dropped[0]) > 1e-6).any(-1)
    assert 0 < rows_left.sum() < rows_left.size
    np.testing.assert_allclose(dropped[0][rows_left], 2 * plain[rows_left], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dropped.mean(0), plain, atol=0.1 * float(jnp.abs(plain).max()))
    without = LoraConfig(rank=4, alpha=8, targets=("attn.q",))
    jax.tree.map(np.testing.assert_array_equal, merge(base, lora, config), merge(base, lora, without, keys[0]))


@pytest.mark.parametrize("target", ["attn.w", "att", "q_norm", "embed"])
def test_target_that_matches_no_kernel_lists_the_kernels(base, target):
    with pytest.raises(UserError) as error:
        init_lora(jax.random.key(0), base, LoraConfig(rank=2, alpha=2, targets=("attn.q", target)))
    assert f"target {target!r} matches no kernel; there are head.kernel, layers.attn.q.kernel" in str(error.value)


def test_rank_larger_than_the_kernel_is_refused(base):
    with pytest.raises(UserError, match=r"rank 9 is larger than a side of layers\.attn\.q\.kernel \[8, 8\]"):
        init_lora(jax.random.key(0), base, LoraConfig(rank=9, alpha=2, targets=("attn.q",)))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"rank": 0}, "lora.rank: 0 is not a whole number of at least 1"),
        ({"alpha": 0}, "lora.alpha: 0 is not a number above 0"),
        ({"targets": "attn.q"}, "must be a tuple of patterns"),
        ({"dropout": 1.0}, "lora.dropout: 1.0 is not a number below 1"),
    ],
)
def test_configuration_that_cannot_work_is_refused_when_written(fields, why):
    with pytest.raises(UserError, match=why):
        LoraConfig(**({"rank": 4, "alpha": 8} | fields))
