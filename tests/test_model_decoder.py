"""The decoder: packing, windows, rematerialisation and initialisation do what the specification says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.config import Compute, DecoderConfig, RopeScaling
from models.decoder import score_kernel, segment_positions
from models.errors import UserError
from models.layers import RMSNorm, rope_frequencies, rope_table, rotate

TINY = DecoderConfig(
    family="olmo2", layers=4, width=32, heads=4, kv_heads=2, ffn=48, vocab=96, context=64, qk_norm=True
)  # fmt: skip
VARIANTS = {
    "olmo2": TINY,
    "olmo1": TINY.replace(
        norm="layernorm", norm_placement="pre", qk_norm=False, qkv_clip=0.5, tie_embeddings=True, init="mitchell"
    ),
    "olmo3": TINY.replace(window=5),
    "olmo3-uneven": TINY.replace(window=5, layers=3),
    "qwen2": TINY.replace(norm_placement="pre", qk_norm=False, qkv_bias=True, tie_embeddings=True),
}


def packed(seed=0, rows=2, length=40, cut=17):
    tokens = jax.random.randint(jax.random.key(seed), (rows, length), 0, TINY.vocab)
    segments = jnp.broadcast_to(jnp.where(jnp.arange(length) < cut, 1, 2), tokens.shape)
    return tokens, segments.at[:, -4:].set(0)


def randomised(params, seed=1):
    """Norm scales and biases away from one and zero, so that a swapped or forgotten one shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.standard_normal(x.shape, np.float32), params)


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents_score_as_they_do_alone(name):
    model = models.build(VARIANTS[name])
    params = randomised(model.init(jax.random.key(0)))
    tokens, segments = packed()
    together = models.logits(model, params, tokens, segment_ids=segments)
    first, second = (models.logits(model, params, part) for part in (tokens[:, :17], tokens[:, 17:36]))
    np.testing.assert_allclose(together[:, :17], first, atol=2e-5)
    np.testing.assert_allclose(together[:, 17:36], second, atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_perturbing_one_packed_document_leaves_the_others_bit_identical(name):
    model = models.build(VARIANTS[name])
    params = randomised(model.init(jax.random.key(0)))
    tokens, segments = packed()
    scored = functools.partial(models.logits, model, params, segment_ids=segments)
    before, after = scored(tokens), scored(tokens.at[:, 3:9].add(1) % TINY.vocab)
    np.testing.assert_array_equal(before[:, 17:], after[:, 17:])
    assert np.abs(before[:, 9:17] - after[:, 9:17]).max() > 1e-3


@pytest.mark.parametrize("name", ["olmo2", "olmo3"])
@pytest.mark.parametrize("remat", ["full", "attention", "outputs", "dots"])
def test_rematerialisation_changes_no_gradient(name, remat):
    tokens, segments = packed()

    def gradient(compute):
        model = models.build(VARIANTS[name], compute)
        params = randomised(model.init(jax.random.key(0)))
        return jax.jit(jax.grad(lambda p: (models.logits(model, p, tokens, segment_ids=segments) ** 2).mean()))(params)

    plain, remade = gradient(Compute()), gradient(Compute(remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, remade)


@pytest.mark.parametrize("remat, products", [("full", 7), ("attention", 4), ("outputs", 2), ("dots", 0)])
def test_what_a_block_keeps_is_not_computed_again(remat, products):
    """Of a block's seven products, so many more than where everything is kept. The norms of OLMo 2 want what they were
    given in the backward pass too, so that only what is kept spares a product."""
    config = TINY.replace(layers=2, window=None)
    tokens = jnp.zeros((1, 16), jnp.int32)

    def count(remat):
        model = models.build(config, Compute(remat=remat, platform="gpu"))
        loss = jax.grad(lambda params: model(params, tokens).hidden.sum())
        return str(jax.make_jaxpr(loss)(model.abstract_params())).count("dot_general[")

    scores_and_values = 2  # of attention in blocks, which keeps its output alone
    assert count(remat) - count("none") == products + scores_and_values


@pytest.mark.parametrize("change", [{"unroll": 4}, {"platform": "gpu"}, {"attention": "dense"}])
def test_how_it_is_computed_does_not_change_what_is_computed(change):
    tokens, segments = packed()
    model = models.build(TINY)
    params = randomised(model.init(jax.random.key(0)))
    other = models.build(TINY, dataclasses.replace(Compute(), **change))
    np.testing.assert_allclose(
        models.logits(model, params, tokens, segment_ids=segments),
        models.logits(other, params, tokens, segment_ids=segments),
        atol=2e-5,
    )


def test_bfloat16_activations_stay_close_to_float32():
    tokens, segments = packed()
    model = models.build(TINY)
    params = model.init(jax.random.key(0))
    half = models.build(TINY, Compute(dtype="bfloat16"))
    a, b = (models.logits(m, params, tokens, segment_ids=segments) for m in (model, half))
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.03 * float(np.abs(a).max()))


def test_a_sliding_layer_sees_exactly_its_window():
    config = TINY.replace(window=5, layers=1, full_attention_every=2)
    assert config.pattern == (5,)
    model = models.build(config)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 20), 0, config.vocab)
    before = models.logits(model, params, tokens)
    after = models.logits(model, params, tokens.at[0, 4].add(1) % config.vocab)
    moved = np.abs(before - after).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), [4, 5, 6, 7, 8])


def test_window_pattern_is_three_sliding_layers_then_a_full_one():
    assert TINY.replace(layers=8, window=5).pattern == (5, 5, 5, None) * 2


def test_full_attention_layers_are_those_that_are_named_and_a_regular_pattern_compiles_one_period():
    windows = TINY.replace(layers=8, window=5)
    assert windows.replace(full_attention_layers=(0, 6)).pattern == (None, 5, 5, 5, 5, 5, None, 5)
    with pytest.raises(UserError, match="names layer 8; there are 0 to 7"):
        windows.replace(full_attention_layers=(0, 8))

    def products(config):
        model = models.build(config)
        program = jax.make_jaxpr(functools.partial(models.logits, model))(
            model.abstract_params(), jax.ShapeDtypeStruct((1, 8), jnp.int32)
        )
        return str(program).count("dot_general")

    assert products(windows) == products(windows.replace(layers=16))
    assert products(windows) == products(windows.replace(full_attention_layers=(3, 7)))
    assert products(windows) < products(windows.replace(full_attention_layers=(0, 6)))


def test_positions_restart_in_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0]])
    np.testing.assert_array_equal(segment_positions(segments), [[0, 1, 2, 0, 1, 0, 0, 1]])


def test_dropout_needs_a_key_and_keeps_the_mean():
    config = TINY.replace(dropout=0.5)
    model = models.build(config)
    params = model.init(jax.random.key(0))
    tokens, segments = packed()
    plain = model(params, tokens, segment_ids=segments).hidden
    one = model(params, tokens, segment_ids=segments, dropout_key=jax.random.key(1)).hidden
    again = model(params, tokens, segment_ids=segments, dropout_key=jax.random.key(1)).hidden
    assert np.abs(plain - one).max() > 0.1
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(plain, models.build(TINY)(params, tokens, segment_ids=segments).hidden)


def test_embeddings_can_be_added_at_marked_tokens():
    model = models.build(TINY)
    params = model.init(jax.random.key(0))
    tokens = jnp.array([[5, 6, 7, 8]])
    delta = params["embed"]["table"][9] - params["embed"]["table"][7]
    added = jnp.zeros((1, 4, TINY.width)).at[0, 2].set(delta)
    swapped = model(params, jnp.array([[5, 6, 9, 8]])).hidden
    np.testing.assert_allclose(model(params, tokens, add_embeddings=added).hidden, swapped, atol=1e-5)


def test_flat_initialisation_is_cut_at_three_deviations():
    params = models.build(TINY.replace(width=64, ffn=256)).init(jax.random.key(0))
    for leaf in (params["layers"]["mlp"]["down"]["kernel"], params["head"]["kernel"], params["embed"]["table"]):
        assert np.abs(leaf).max() <= 0.06
        np.testing.assert_allclose(np.std(leaf), 0.02 * 0.9866, rtol=0.05)  # of a normal cut at ±3σ
    np.testing.assert_array_equal(params["layers"]["post_attn_norm"]["scale"], 1.0)


def test_mitchell_initialisation_shrinks_residual_writers_with_depth():
    config = VARIANTS["olmo1"].replace(width=64, ffn=256, heads=4, kv_heads=4)
    layers = models.build(config).init(jax.random.key(0))["layers"]

    def std(kernel):
        return np.std(kernel, axis=(1, 2)) / 0.9866

    depth = np.sqrt(np.arange(config.layers) + 1)
    np.testing.assert_allclose(std(layers["attn"]["q"]["kernel"]), 1 / np.sqrt(64), rtol=0.08)
    np.testing.assert_allclose(std(layers["attn"]["o"]["kernel"]), 1 / np.sqrt(2 * 64) / depth, rtol=0.08)
    np.testing.assert_allclose(std(layers["mlp"]["down"]["kernel"]), 1 / np.sqrt(2 * 256) / depth, rtol=0.08)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tpu_rotates_by_a_product_to_the_same_bits(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 9, 3, 16)).astype(dtype)
    rope = rope_table(jnp.arange(100, 109)[None], 16, 10000.0, None)
    halves, product = (rotate(x, rope, platform) for platform in ("cpu", "tpu"))
    assert halves.dtype == product.dtype == dtype
    np.testing.assert_array_equal(np.asarray(halves, np.float32), np.asarray(product, np.float32))


def test_a_tpu_s_rotation_has_the_same_gradient():
    x, weight = jax.random.normal(jax.random.key(0), (2, 2, 9, 3, 16))
    rope = rope_table(jnp.arange(9)[None], 16, 10000.0, None)
    halves, product = (
        jax.grad(lambda x, p=platform: (rotate(x, rope, p) * weight).sum())(x) for platform in ("cpu", "tpu")
    )
    np.testing.assert_allclose(product, halves, rtol=1e-6, atol=1e-6)


def test_a_norm_over_all_heads_is_that_of_the_flat_projection():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    params = {"params": {"scale": 1 + jax.random.normal(jax.random.key(1), (24,))}}
    norm = RMSNorm(24, 1e-6)
    flat = norm.apply(params, x.reshape(2, 5, 24))
    np.testing.assert_allclose(norm.apply(params, x).reshape(flat.shape), flat, rtol=1e-6, atol=1e-6)


def test_yarn_frequencies_ramp_between_the_specified_dimensions():
    """Spec olmo §2.4: hd 128, θ 5e5, factor 8 ramps over dimensions 18 to 35; attention factor 0.1 ln 8 + 1."""
    scaling = RopeScaling("yarn", 8.0, original_context=8192)
    base, scaled = rope_frequencies(128, 5e5, None), rope_frequencies(128, 5e5, scaling)
    np.testing.assert_array_equal(scaled[:19], base[:19])
    assert scaled[19] < base[19] and scaled[34] > base[34] / 8
    np.testing.assert_allclose(scaled[35:], base[35:] / 8)
    assert scaling.magnitude == pytest.approx(1.20794, abs=1e-5)


def test_llama3_frequencies_keep_short_waves_and_stretch_long_ones():
    scaling = RopeScaling("llama3", 8.0, original_context=8192)
    base, scaled = rope_frequencies(128, 5e5, None), rope_frequencies(128, 5e5, scaling)
    wavelength = 2 * np.pi / base
    np.testing.assert_array_equal(scaled[wavelength < 8192 / 4], base[wavelength < 8192 / 4])
    np.testing.assert_allclose(scaled[wavelength > 8192], base[wavelength > 8192] / 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width 32 is not divisible"),
        ({"kv_heads": 3}, "not a multiple"),
        ({"layers": 0}, "layers must be a whole number from 1"),
        ({"vocab_used": 97}, "larger than vocab"),
        ({"wdith": 3}, "no field 'wdith'"),
    ],
)
def test_impossible_shapes_are_refused_in_one_line(change, message):
    with pytest.raises(models.UserError, match=message):
        TINY.replace(head_dim=0, **change) if "heads" in change else TINY.replace(**change)


def test_an_unknown_model_is_answered_with_the_nearest_names():
    with pytest.raises(models.UserError, match="olmo2-7b"):
        models.build("olmo2-7")


@pytest.mark.parametrize("std", [None, 0.02])
def test_a_fresh_scalar_head_has_the_deviation_that_is_asked_for(std):
    """Without one, that of its width (Tülu 3); 0.02 is Tülu 2.5's, whatever the width."""
    head = np.asarray(score_kernel(jax.random.key(0), 4096, std))
    assert head.shape == (4096, 1)
    assert head.std() == pytest.approx(4097**-0.5 if std is None else std, rel=0.05)
