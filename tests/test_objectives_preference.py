"""Preference losses: golden values, float64 references, and the objective on packed pairs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_losses as reference
from pair_batches import CONFIG, Bigram, packed, unpacked

import models
from easylm_jax.objectives import kto_loss, preference_loss, preference_optimization, sequence_logprobs
from easylm_jax.train.step import gradients
from models.config import Compute
from models.errors import UserError

GOLDEN = {"policy_chosen": [-10.0], "policy_rejected": [-14.0], "reference_chosen": [-11.0],
          "reference_rejected": [-13.0], "beta": 0.1}  # fmt: skip
KINDS = ["dpo", "dpo_norm", "ipo", "simpo", "orpo", "wpo"]


def drawn(seed=0, n=7):
    """Sums of log-probabilities and lengths of n pairs."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, size=(2, n)).astype(np.float64)
    policy, base = (-lengths * rng.uniform(0.2, 2.0, size=(2, n)) for _ in range(2))
    return policy, base, lengths


def arguments(kind, seed=0):
    policy, base, lengths = drawn(seed)
    options = {"beta": 5.0 if kind == "dpo_norm" else 0.3}
    if kind in ("dpo", "dpo_norm", "wpo", "simpo"):
        options["label_smoothing"] = 0.1
    if kind == "simpo":
        options["gamma"] = 0.7
    if kind != "dpo":
        options |= {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
    references = () if kind in ("simpo", "orpo") else tuple(base)
    return policy, references, options


def test_golden_values():
    losses, metrics = preference_loss("dpo", **GOLDEN)
    assert float(losses[0]) == pytest.approx(0.598139, abs=1e-6)
    assert float(metrics["reward_chosen"][0]) == pytest.approx(0.1, abs=1e-6)
    assert float(metrics["reward_rejected"][0]) == pytest.approx(-0.1, abs=1e-6)
    assert float(metrics["accuracy"][0]) == 1.0
    smoothed, _ = preference_loss("dpo", **GOLDEN, label_smoothing=0.1)
    assert float(smoothed[0]) == pytest.approx(0.618139, abs=1e-6)
    ipo, _ = preference_loss("ipo", **GOLDEN)
    assert float(ipo[0]) == pytest.approx(9.0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_float64(kind):
    policy, references, options = arguments(kind)
    _, base, lengths = drawn()
    got, _ = preference_loss(kind, *policy, *references, **options)
    want = [
        reference.preference(kind, *policy[:, i], *base[:, i], *lengths[:, i], options["beta"],
                             options.get("label_smoothing", 0.0), options.get("gamma", 0.0))
        for i in range(policy.shape[1])
    ]  # fmt: skip
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "wpo"])
def test_gradients_equal_central_differences(kind):
    policy, references, options = arguments(kind)
    reference.assert_gradient(lambda p: preference_loss(kind, *p, *references, **options)[0].sum(), policy)


def test_wpo_weighs_dpo_and_its_weight_has_no_gradient():
    policy, references, options = arguments("wpo")
    lengths = options.pop("chosen_lengths"), options.pop("rejected_lengths")
    weight = np.exp(policy[0] / lengths[0] + policy[1] / lengths[1])
    with jax.enable_x64(True):

        def wpo(p):
            named = {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
            return preference_loss("wpo", *p, *references, **options, **named)[0].sum()

        def weighted_dpo(p):
            return (weight * preference_loss("dpo", *p, *references, **options)[0]).sum()

        np.testing.assert_allclose(wpo(policy), weighted_dpo(policy), rtol=1e-12)
        np.testing.assert_allclose(jax.grad(wpo)(policy), jax.grad(weighted_dpo)(policy), rtol=1e-12)


@pytest.mark.parametrize("kind", ["dpo", "dpo_norm", "wpo", "ipo"])
def test_the_first_step_has_the_loss_of_equal_models(kind):
    policy, _, options = arguments(kind)
    losses, metrics = preference_loss(kind, *policy, *policy, **options)
    likelihood = sum(p / n for p, n in zip(policy, drawn()[2], strict=True))
    want = {"ipo": 1 / (2 * 0.3) ** 2, "wpo": math.log(2) * np.exp(likelihood)}.get(kind, math.log(2))
    np.testing.assert_allclose(losses, np.broadcast_to(want, losses.shape), rtol=1e-6)
    assert not np.asarray(metrics["reward_margin"]).any() and not np.asarray(metrics["accuracy"]).any()


def test_simpo_takes_the_margin_itself_and_three_tenths_of_beta_without_one():
    policy, _, options = arguments("simpo")
    named, _ = preference_loss("simpo", *policy, **{**options, "gamma": 0.3 * options["beta"]})
    default, _ = preference_loss("simpo", *policy, **{**options, "gamma": None})
    np.testing.assert_array_equal(named, default)


def test_odds_of_certain_and_of_hopeless_responses_stay_finite():
    lengths = {"chosen_lengths": np.ones(4), "rejected_lengths": np.ones(4)}
    chosen, rejected = jnp.array([0.0, -1e-9, -200.0, -200.0]), jnp.array([-200.0, 0.0, -1e-9, -200.0])

    def total(c, r):
        return preference_loss("orpo", c, r, beta=0.1, **lengths)[0].sum()

    assert np.isfinite(total(chosen, rejected))
    assert all(np.isfinite(g).all() for g in jax.grad(total, argnums=(0, 1))(chosen, rejected))


def test_sixteen_bit_inputs_are_computed_in_float32():
    losses, _ = preference_loss("dpo", **{k: jnp.asarray(v, jnp.bfloat16) for k, v in GOLDEN.items() if k != "beta"},
                                beta=0.1)  # fmt: skip
    assert losses.dtype == jnp.float32 and float(losses[0]) == pytest.approx(0.598139, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dop", {}, "no kind 'dop'.*dpo, dpo_norm, ipo, simpo, orpo, wpo"),
        ("kto", {}, "use kto_loss"),
        ("dpo", {"references": ()}, "needs reference"),
        ("dpo_norm", {}, "needs chosen_lengths"),
        ("ipo", {"label_smoothing": 0.1}, "no label smoothing"),
        ("dpo", {"label_smoothing": 0.7}, r"must be in \[0, 0.5\)"),
        ("dpo", {"gamma": 0.5}, "simpo's margin"),
    ],
)
def test_what_does_not_fit_the_kind_is_refused(kind, options, message):
    options = dict(options)
    references = options.pop("references", ([-1.0], [-2.0]))
    with pytest.raises(UserError, match=message):
        preference_loss(kind, [-1.0], [-2.0], *references, beta=0.1, **options)


def test_kto_equals_its_formula_and_moves_each_side_its_way():
    policy, base, _ = drawn(3)
    policy, base = policy[0], base[0]
    good = np.array([1, 0, 1, 1, 0, 0, 1])
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    for kl, origin in ((2.0, 2.0), (-3.0, 0.0), (None, 0.0)):
        want = [
            1.5 * (1 - reference.sigmoid(0.1 * (s - origin)))
            if g
            else 0.7 * (1 - reference.sigmoid(0.1 * (origin - s)))
            for s, g in zip(policy - base, good, strict=True)
        ]
        losses, metrics = kto_loss(policy, base, good, beta=0.1, kl=kl, **weights)
        np.testing.assert_allclose(losses, want, rtol=1e-5)
        np.testing.assert_allclose(metrics["kl"], np.full(7, origin))
        np.testing.assert_allclose(metrics["reward"], 0.1 * (policy - base), rtol=1e-5)

    def total(p):
        return kto_loss(p, base, good, beta=0.1, kl=1.0, **weights)[0].sum()

    reference.assert_gradient(total, policy)
    slope = np.asarray(jax.grad(total)(policy))
    assert (slope[good == 1] < 0).all() and (slope[good == 0] > 0).all()
    assert float(jax.grad(lambda kl: kto_loss(policy, base, good, beta=0.1, kl=kl)[0].sum())(1.0)) == 0.0


def gradients_of(objective, accumulate=1):
    """`easylm_jax.train.step.gradients` of an objective, compiled once for each shape."""
    key = jax.random.key(0)
    return jax.jit(lambda params, batch, frozen: gradients(objective, params, batch, key, frozen, accumulate))


@pytest.fixture(scope="module")
def transformer():
    """A small decoder, two sets of parameters, and the compiled DPO gradient with cached references."""
    model = models.build(CONFIG, Compute(logits_chunk=20, attention="dense"))
    params, base = (jax.tree.map(lambda x: x * 3, model.init(jax.random.key(i))) for i in range(2))
    return model, params, base, gradients_of(preference_optimization(model, "dpo", beta=0.3))


@pytest.fixture(scope="module")
def bigram():
    model = Bigram()
    return model, *(model.init(jax.random.key(i)) for i in range(2))


def with_reference(model, base, batch):
    scores = jax.jit(sequence_logprobs, static_argnums=0)(model, base, batch)
    # What a cache holds for pairs that do not exist must not matter.
    filler = jnp.where(batch["pair_index"] >= 0, 0.0, jnp.nan)
    return {**batch, "reference_chosen": scores.chosen + filler, "reference_rejected": scores.rejected + filler}


def options_of(kind):
    return {"beta": 5.0 if kind == "dpo_norm" else 0.3, "gamma": 0.4 if kind == "simpo" else None}


def assert_same_gradients(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.isfinite(a).all() and np.asarray(b).any()
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_sums_of_each_side_equal_those_from_whole_logits(transformer):
    model, params, *_ = transformer
    batch = packed()
    got = jax.jit(sequence_logprobs, static_argnums=0)(model, params, batch)
    assert got.chosen.shape == batch["pair_index"].shape
    rows = unpacked()
    tokens = np.zeros((len(rows), 12), np.int32)
    for i, (_, _, side, _) in enumerate(rows):
        tokens[i, : len(side)] = side
    logp = np.asarray(jax.nn.log_softmax(models.logits(model, params, jnp.asarray(tokens))), np.float64)
    for i, (row, place, side, weights) in enumerate(rows):
        chosen = weights.max() == 1
        mine = np.flatnonzero(weights)
        want = logp[i, mine, side[mine + 1]].sum()
        assert float((got.chosen if chosen else got.rejected)[row, place]) == pytest.approx(want, rel=3e-6)
        assert float((got.chosen_lengths if chosen else got.rejected_lengths)[row, place]) == len(mine)
    absent = np.asarray(batch["pair_index"]) < 0
    assert absent.any() and all(not np.asarray(x)[absent].any() for x in got[:4])


@pytest.mark.parametrize("kind", [*KINDS, "kto"])
def test_the_objective_is_the_loss_of_its_valid_pairs(bigram, kind):
    model, params, base = bigram
    batch = with_reference(model, base, packed())
    scores = sequence_logprobs(model, params, batch)
    valid = np.asarray(batch["pair_index"]) >= 0
    columns = scores.chosen, scores.rejected, batch["reference_chosen"], batch["reference_rejected"]
    c, r, rc, rr = (np.asarray(x)[valid] for x in columns)
    loss = preference_optimization(model, kind, **options_of(kind))(params, batch, jax.random.key(0), {})
    if kind == "kto":
        kl = max(0.0, float(np.concatenate([c - rc, r - rr]).mean()))
        both = np.concatenate([c, r]), np.concatenate([rc, rr]), np.repeat([1, 0], len(c))
        want = kto_loss(*both, beta=0.3, kl=kl)[0]
        assert float(loss.denominator) == 2 * valid.sum()
    else:
        lengths = [np.asarray(x)[valid] for x in (scores.chosen_lengths, scores.rejected_lengths)]
        named = {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1], **options_of(kind)}
        want = preference_loss(kind, c, r, rc, rr, **named)[0]
        assert float(loss.denominator) == valid.sum()
    assert float(loss.metrics["pairs"][0]) == valid.sum() == 5
    assert float(loss.total) == pytest.approx(float(want.sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["dpo_norm", "wpo", "orpo", "kto"])
def test_gradients_do_not_depend_on_how_pairs_are_packed(bigram, kind):
    model, params, base = bigram
    gradient = gradients_of(preference_optimization(model, kind, **options_of(kind)))
    one, several = (gradient(params, with_reference(model, base, packed(pairs_per_row=n)), {}) for n in (1, 3))
    assert float(one[1]) == pytest.approx(float(several[1]), rel=1e-5)
    used = {k: v for k, v in one[0].items() if k != "score"}
    assert_same_gradients({k: several[0][k] for k in used}, used)


def test_a_decoder_sees_packed_pairs_as_if_they_were_alone(transformer):
    model, params, base, gradient = transformer
    one, several = (gradient(params, with_reference(model, base, packed(pairs_per_row=n)), {}) for n in (1, 2))
    assert float(one[1]) == pytest.approx(float(several[1]), rel=1e-5)
    assert_same_gradients(several[0], one[0])


@pytest.mark.parametrize("kind", ["dpo"])
def test_accumulation_gives_the_same_gradient_whatever_pairs_a_micro_batch_holds(bigram, kind):
    model, params, base = bigram
    batch = with_reference(model, base, packed())
    assert len({int(n) for n in (batch["pair_index"] >= 0).sum(axis=1)}) > 1, "rows hold unequal numbers of pairs"
    objective = preference_optimization(model, kind, **options_of(kind))
    whole, parts = (gradients_of(objective, n)(params, batch, {}) for n in (1, batch["tokens"].shape[0]))
    assert float(whole[1]) == pytest.approx(float(parts[1]), rel=1e-6)
    for name, value in whole[2].items():
        assert float(value) == pytest.approx(float(parts[2][name]), rel=1e-5, abs=1e-6), name
    used = {k: v for k, v in whole[0].items() if k != "score"}
    assert_same_gradients({k: parts[0][k] for k in used}, used)


def test_a_cached_and_a_computed_reference_are_the_same_and_start_at_ln_2(bigram):
    model, params, base = bigram
    batch = with_reference(model, base, packed())
    key = jax.random.key(0)
    for kind in ("dpo", "kto"):
        cached = jax.jit(preference_optimization(model, kind, **options_of(kind)))
        computed = jax.jit(preference_optimization(model, kind, **options_of(kind), reference="model"))
        for policy in (params, base):
            a, b = cached(policy, batch, key, {}), computed(policy, batch, key, {"reference": base})
            assert float(a.total) == pytest.approx(float(b.total), rel=1e-6)
        first = 0.5 if kind == "kto" else math.log(2)
        assert float(b.total / b.denominator) == pytest.approx(first, abs=1e-6)
        assert float(b.metrics["reward_margin"][0]) == 0.0


def test_no_gradient_reaches_the_reference(bigram):
    model, params, base = bigram
    objective = preference_optimization(model, "dpo", beta=0.3, reference="model")
    batch = packed()
    slope = jax.grad(lambda base: objective(params, batch, jax.random.key(0), {"reference": base}).total)(base)
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(slope))


def test_steps_against_the_gradient_raise_accuracy_on_their_own_pairs(transformer):
    model, params, _, gradient = transformer
    batch = with_reference(model, params, packed())
    _, first, _ = gradient(params, batch, {})
    assert float(first) == pytest.approx(math.log(2), abs=1e-6)
    for _ in range(4):
        grads, loss, metrics = gradient(params, batch, {})
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, grads)
    assert float(loss) < float(first) and float(metrics["accuracy"]) > 0.9


@pytest.mark.parametrize("kind", ["dpo_norm", "orpo", "kto"])  # a length, a logarithm and a mean that could be 0 / 0
def test_a_batch_of_padding_alone_has_a_zero_gradient(bigram, kind):
    model, params, base = bigram
    batch = packed()
    empty = {name: jnp.zeros_like(batch[name]) for name in ("segment_ids", "loss_weights")}
    batch = with_reference(model, base, {**batch, **empty, "pair_index": jnp.full_like(batch["pair_index"], -1)})
    grads, loss, _ = gradients_of(preference_optimization(model, kind, **options_of(kind)))(params, batch, {})
    assert float(loss) == 0.0
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_objectives_that_lack_something_say_so(bigram):
    model, params, _ = bigram
    with pytest.raises(UserError, match="no kind 'dop'"):
        preference_optimization(model, "dop", beta=0.1)
    with pytest.raises(UserError, match="dpo needs reference"):
        preference_optimization(model, "dpo", beta=0.1, reference=None)
    with pytest.raises(UserError, match="kto needs reference"):
        preference_optimization(model, "kto", beta=0.1, reference=None)
    with pytest.raises(UserError, match="kto has neither"):
        preference_optimization(model, "kto", beta=0.1, gamma=0.3)
    with pytest.raises(UserError, match="no column reference_chosen"):
        preference_optimization(model, "dpo", beta=0.1)(params, packed(), jax.random.key(0), {})
