"""Mixtures of experts: what the experts compute, that no token is dropped, the routers' losses, and the decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contributing_examples import rows_of

import models
from easylm_jax.objectives import language_modelling
from easylm_jax.train.step import gradients
from models import moe
from models.config import Experts
from models.decoder import cast_kernels
from models.flops import matmul_parameters
from models.grouped_matmul import grouped_matmul
from models.hf.convert import family_of
from models.moe import ExpertKernels, aux_losses, mixture

# Less of LLVM's work halves the time to compile.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
BACKENDS = ("blocks", "megablox")
TINY = models.preset("olmoe-tiny").replace(
    layers=2, width=32, heads=4, head_dim=8, ffn=16, vocab=64, vocab_used=64, context=64, experts=Experts(8, 2)
)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got, want, tolerance=1e-5):
    """Within `tolerance` of the largest element."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1e-30)


# ---------------------------------------------------------------------------------------------------------------------
# Products by group

ROWS, GROUPS, INPUTS, OUTPUTS = 150, 5, 12, 20
SIZES = {
    "even": (30, 30, 30, 30, 30),
    "skewed": (1, 130, 2, 9, 8),
    "empty groups": (0, 70, 0, 80, 0),
    "all in one": (0, 0, 150, 0, 0),
    "all in the last": (0, 0, 0, 0, 150),
    "one row": (0, 0, 0, 1, 0),
    "rows of no group": (17, 0, 40, 3, 0),
    "no row": (0, 0, 0, 0, 0),
}


@functools.cache
def product(backend):
    """(x, kernels, gradient of the result, sizes) → the result and the gradients of x and kernels; compiled once."""

    def run(x, kernels, gradient, sizes):
        def of(x, kernels):
            return grouped_matmul(x, kernels, sizes, backend=backend, interpret=backend == "megablox")

        y, back = jax.vjp(of, x, kernels)
        return y, *back(gradient)

    shapes = ((ROWS, INPUTS), (GROUPS, INPUTS, OUTPUTS), (ROWS, OUTPUTS))
    abstract = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(run).lower(*abstract, jax.ShapeDtypeStruct((GROUPS,), jnp.int32)).compile(QUICK)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_multiplies_each_row_by_the_matrix_of_its_group(backend, sizes):
    x, kernels, gradient = draw(0, ROWS, INPUTS), draw(1, GROUPS, INPUTS, OUTPUTS), draw(2, ROWS, OUTPUTS)
    y, d_x, d_kernels = (np.zeros_like(part) for part in (gradient, x, kernels))
    for group, (start, size) in enumerate(zip(np.cumsum((0, *sizes)), sizes, strict=False)):
        rows = slice(start, start + size)
        y[rows], d_x[rows] = x[rows] @ kernels[group], gradient[rows] @ kernels[group].T
        d_kernels[group] = x[rows].T @ gradient[rows]
    got = product(backend)(x, kernels, gradient, np.array(sizes, np.int32))
    for mine, want in zip(got, (y, d_x, d_kernels), strict=True):
        close(mine, want)
        assert (np.asarray(mine)[want == 0] == 0).all()  # nothing is written for rows and groups without work


# ---------------------------------------------------------------------------------------------------------------------
# A layer

TOKENS, EXPERTS, CHOSEN = 24, 6, 2


def kernels_of(bias=None):
    """Kernels of a layer; `bias` is added to the logits of each expert, by way of a feature that is 1 in all tokens."""
    router = draw(3, 12, EXPERTS)
    router[-1] = 0 if bias is None else bias
    return ExpertKernels(router, draw(4, EXPERTS, 12, 8), draw(5, EXPERTS, 12, 8), draw(6, EXPERTS, 8, 12))


def tokens_of(count):
    x = draw(7, 1, count, 12)
    x[..., -1] = 1
    return x


def one_by_one(x, kernels, k):
    """Every expert computes every token, and the weights of those that were not chosen are 0."""
    probabilities = jax.nn.softmax(x @ kernels.router)
    kept = jnp.sort(probabilities)[..., -k][..., None]
    weights = jnp.where(probabilities >= kept, probabilities, 0)
    gate, up = (jnp.einsum("btd,edf->btef", x, kernel) for kernel in (kernels.gate, kernels.up))
    return jnp.einsum("btef,efd,bte->btd", jax.nn.silu(gate) * up, kernels.down, weights)


@functools.cache
def layer(name, count):
    """(x, kernels) → the output, its routing, and the gradients of Σ output · direction; compiled once."""

    def run(x, kernels):
        def of(x, kernels):
            if name == "one by one":
                return one_by_one(x, kernels, CHOSEN), None
            return mixture(x, kernels, CHOSEN, backend=name, interpret=name == "megablox")

        y, back, routing = jax.vjp(of, x, kernels, has_aux=True)
        return y, routing, back(jnp.asarray(draw(8, *x.shape)))

    return jax.jit(run).lower(tokens_of(count), kernels_of()).compile(QUICK)


ROUTINGS = {
    "by chance": None,
    "skewed": (3, 0, 0, 0, 0, 1),
    "two experts get everything": (50, -50, -50, 50, -50, -50),
    "one expert gets nothing": (0, 0, -50, 0, 0, 0),
}


@pytest.mark.parametrize("bias", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_is_the_weighted_sum_of_the_chosen_experts_and_drops_nothing(backend, bias):
    x, kernels = tokens_of(TOKENS), kernels_of(bias)
    want, _, gradients_wanted = layer("one by one", TOKENS)(x, kernels)
    got, routing, gradients_got = layer(backend, TOKENS)(x, kernels)
    close(got, want)
    jax.tree.map(close, gradients_got, gradients_wanted)
    assert (np.asarray(routing.computed) == CHOSEN).all()
    loads = np.bincount(np.asarray(routing.chosen).reshape(-1), minlength=EXPERTS)
    assert loads.sum() == TOKENS * CHOSEN
    if bias == ROUTINGS["two experts get everything"]:
        assert loads.tolist() == [TOKENS, 0, 0, TOKENS, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_token_is_computed_as_among_others(backend):
    x, kernels = tokens_of(1), kernels_of()
    got, _, gradients_got = layer(backend, 1)(x, kernels)
    want, _, gradients_wanted = layer("one by one", 1)(x, kernels)
    close(got, want)
    jax.tree.map(close, gradients_got, gradients_wanted)


# ---------------------------------------------------------------------------------------------------------------------
# Auxiliary losses


@functools.partial(jax.jit, static_argnums=1)
def both_forms(logits, k, mask=None):
    return aux_losses(logits, k, "olmoe", mask), aux_losses(logits, k, "hf", mask)


@pytest.mark.parametrize("k", (1, 2, 8))
def test_balanced_routing_has_the_published_values(k):
    """Spec olmo §13.2: 1 in OLMoE's form, k in that of `transformers`; the z-losses differ by k."""
    cycle = np.arange(16)[:, None] + np.arange(k)[None]  # every expert is chosen equally often
    logits = np.full((3, 16, 16), -1.0, np.float32)
    logits[:, np.arange(16)[:, None], cycle % 16] = -0.999999
    olmoe, hf = both_forms(logits, k)
    np.testing.assert_allclose(olmoe.load_balancing, 1, rtol=1e-5)
    np.testing.assert_allclose(hf.load_balancing, k, rtol=1e-5)
    np.testing.assert_allclose(hf.router_z / olmoe.router_z, k, rtol=1e-5)
    np.testing.assert_allclose(hf.router_z, (np.log(16) - 1) ** 2, rtol=1e-4)


def test_the_losses_are_those_of_the_formulas():
    layers, tokens, experts, k = 3, 10, 7, 2
    logits = 2 * draw(0, layers, tokens, experts)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counts = np.zeros((layers, experts))
    for each in range(layers):
        for token in range(tokens):
            counts[each, np.argsort(-logits[each, token])[:k]] += 1
    squares = (np.log(np.exp(logits).sum(-1)) ** 2).sum()
    olmoe, hf = both_forms(logits, k)
    by_layer = experts / (layers * tokens * k) * (counts * p.mean(axis=1)).sum()
    pooled = experts * (counts.sum(0) / (layers * tokens) * p.mean(axis=(0, 1))).sum()
    np.testing.assert_allclose([olmoe.load_balancing, hf.load_balancing], [by_layer, pooled], rtol=1e-5)
    np.testing.assert_allclose(olmoe.router_z, squares / (layers * tokens * k), rtol=1e-5)
    np.testing.assert_allclose(hf.router_z, squares / (layers * tokens), rtol=1e-5)
    padded = np.concatenate([logits, 9 * draw(1, layers, 4, experts)], axis=1)
    masked = both_forms(padded, k, np.arange(tokens + 4) < tokens)
    np.testing.assert_allclose(masked, (olmoe, hf), rtol=1e-5)


def test_the_balancing_loss_moves_logits_away_from_crowded_experts():
    logits = np.zeros((1, 6, 4), np.float32)
    logits[..., 1] = 1  # everyone chooses expert 1
    slope = jax.jit(jax.grad(lambda logits: aux_losses(logits, 1).load_balancing))(logits)
    assert (slope[..., 1] > 0).all() and (slope[..., [0, 2, 3]] < 0).all()


def test_a_decoder_reports_its_routers_without_padding():
    model = models.build(TINY)
    chosen = np.zeros((2, 1, 4, 2), np.int32)
    chosen[0, 0] = [[0, 1], [0, 2], [0, 3], [5, 6]]  # the last token is padding
    chosen[1, 0] = [[1, 0], [2, 3], [4, 5], [6, 7]]
    logits = np.zeros((2, 1, 4, 8), np.float32)
    computed = np.full((2, 1, 4), 2, np.int32)
    computed[1, 0, 1], computed[1, 0, 3] = 0, 1  # and what is lost of padding is no loss
    reports = {"logits": logits, "chosen": chosen, "computed": computed}
    found = jax.jit(model.auxiliary)(reports, np.array([[1, 1, 1, 0]]))
    value = {name: it.total / jnp.where(it.denominator > 0, it.denominator, 1) for name, it in found.items()}
    mean = 3 * 2 / 8
    np.testing.assert_allclose(value["expert_load_max"], (3 / mean + 1 / mean) / 2, rtol=1e-6)
    np.testing.assert_allclose(value["expert_load_min"], 0)
    np.testing.assert_allclose(value["router_entropy"], np.log(8), rtol=1e-6)
    np.testing.assert_allclose(value["load_balancing"], 1, rtol=1e-6)
    np.testing.assert_allclose(value["router_z"], np.log(8) ** 2 / 2, rtol=1e-6)
    assert value["dropped_copies"] == 2
    assert {name: it.weight for name, it in found.items() if it.weight} == {"load_balancing": 0.01, "router_z": 0.001}


# ---------------------------------------------------------------------------------------------------------------------
# The decoder


@functools.cache
def model_and_params():
    """A tiny OLMoE whose routers are decided and whose tokens are spread unevenly."""
    model = models.build(TINY)
    params = jax.jit(model.init).lower(jax.random.key(0)).compile(QUICK)(jax.random.key(0))
    params["layers"]["moe"]["router"]["kernel"] *= 30
    return model, params


@functools.cache
def documents():
    return [np.random.default_rng(i).integers(1, 64, 4 + 3 * (i % 3)) for i in range(8)]


@functools.cache
def alone():
    return rows_of(documents(), [[i] for i in range(8)], 20)


@functools.cache
def program(accumulate):
    model, params = model_and_params()
    step = functools.partial(gradients, language_modelling(model), frozen={}, accumulate=accumulate)
    return jax.jit(step).lower(params, alone(), jax.random.key(0)).compile(QUICK)


def run(batch, accumulate=1):
    """Gradients, loss and metrics of a batch [8, 20]."""
    return jax.device_get(program(accumulate)(model_and_params()[1], batch, jax.random.key(0)))


@functools.cache
def whole():
    return run(alone())


def test_packed_documents_train_a_mixture_as_they_do_alone():
    grads, loss, metrics = run(rows_of(documents(), [[i, i + 4] for i in range(4)] + [[]] * 4, 20))
    want, loss_wanted, metrics_wanted = whole()
    assert metrics["dropped_copies"] == 0 and metrics["expert_load_max"] > 1.2
    assert metrics["router_z"] > 0 and 0 < metrics["router_entropy"] < np.log(8)
    weighted = 0.01 * metrics["load_balancing"] + 0.001 * metrics["router_z"]
    np.testing.assert_allclose(loss, metrics["cross_entropy"] + weighted, rtol=1e-6)
    np.testing.assert_allclose(loss, loss_wanted, rtol=1e-6)
    for name in ("load_balancing", "router_z", "router_entropy", "expert_load_max", "expert_load_min"):
        np.testing.assert_allclose(metrics[name], metrics_wanted[name], rtol=1e-5, err_msg=name)
    jax.tree.map(functools.partial(close, tolerance=2e-6), grads, want)


def test_micro_batches_balance_their_own_tokens_and_add_up_by_them():
    """What is a sum over tokens is exact; the balance of a batch is that of its micro-batches, by their tokens."""
    grads, loss, metrics = run(alone(), accumulate=2)
    _, _, metrics_whole = whole()
    mine = np.arange(8)[:, None] % 2
    parts = [run({name: np.where(mine == i, column, 0) for name, column in alone().items()}) for i in range(2)]
    tokens = np.array([part["tokens"] for _, _, part in parts])
    assert tokens[0] != tokens[1]
    share = tokens / tokens.sum()
    np.testing.assert_allclose(loss, share @ [part for _, part, _ in parts], rtol=1e-6)
    mean = jax.tree.map(lambda a, b: share[0] * a + share[1] * b, parts[0][0], parts[1][0])
    jax.tree.map(functools.partial(close, tolerance=2e-6), grads, mean)
    for name in ("router_z", "router_entropy", "cross_entropy"):
        np.testing.assert_allclose(metrics[name], metrics_whole[name], rtol=1e-6, err_msg=name)
    assert abs(metrics["load_balancing"] - metrics_whole["load_balancing"]) > 1e-4


def test_routers_stay_in_float32_where_kernels_are_cast():
    _, params = model_and_params()
    cast = cast_kernels(params, "bfloat16")["layers"]["moe"]
    assert cast["router"]["kernel"].dtype == jnp.float32 and cast["up"]["kernel"].dtype == jnp.bfloat16


def test_flops_count_the_active_parameters():
    """Spec olmo §2.3: 1,282,017,280 active parameters with the embedding table and the norms."""
    config = models.preset("olmoe-1b-7b")
    norms = config.layers * 4 * config.width + config.width
    assert matmul_parameters(config) + config.vocab * config.width + norms == 1_282_017_280


def test_a_rung_of_the_ladder_has_the_active_size_of_the_dense_one():
    for size in ("14m", "30m", "60m", "100m", "190m", "370m"):
        ours, dense = models.preset(f"olmoe-{size}"), models.preset(f"olmo2-{size}")
        assert (ours.width, ours.layers, ours.heads) == (dense.width, dense.layers, dense.heads)
        assert ours.experts.active * ours.ffn == dense.ffn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count must be a positive whole number, not 0"),
        ({"active": 9}, "active 9 is larger than count 8"),
        ({"load_balancing": -0.1}, "load_balancing is a weight and must be at least 0"),
        ({"form": "mixtral"}, "form should be one of 'olmoe', 'hf', not 'mixtral'"),
    ],
)
def test_impossible_experts_are_refused_in_one_line(change, message):
    with pytest.raises(models.UserError, match=message) as told:
        Experts(**{"count": 8, "active": 2, **change})
    assert "\n" not in str(told.value)


def test_experts_decide_the_model_and_no_dense_family_exports_them():
    assert type(models.build("olmoe-tiny")) is moe.MoEDecoder
    assert type(models.build(TINY.replace(experts=None))) is models.Decoder
    for config in (models.preset("olmo2-14m").replace(experts=Experts(8, 2)), TINY.replace(experts=None)):
        with pytest.raises(models.UserError, match="cannot express .*experts"):
            family_of(config).to_hf(config)
