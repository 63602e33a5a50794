"""Models made of models: soups, upcycled mixtures, held-out losses beside each other, and names of revisions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_kit import corpus, sentencepiece, write_jsonl

import models
from easylm_jax.checkpoint import revision
from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.config import (
    AddVision,
    Average,
    DataSpec,
    DecoderConfig,
    Entry,
    HeldOut,
    Losses,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Source,
    Upcycle,
)
from easylm_jax.data import load_tokenizer
from easylm_jax.evaluate.losses import Sums, loss_difference, mean_loss
from easylm_jax.experiment import Experiment
from easylm_jax.plan import shapes
from models.config import VisionConfig
from models.errors import UserError

MODEL = DecoderConfig("olmo2", layers=2, width=16, heads=2, ffn=24, vocab=420, context=32, qk_norm=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three models as checkpoints of `run:` folders, and a held-out set."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = sentencepiece(folder / "tokenizer")
    meta = {
        "model": dataclasses.asdict(MODEL),
        "tokenizer": tokenizer,
        "tokenizer_hash": load_tokenizer(tokenizer).hash,
    }
    model = models.build(MODEL)
    for number in range(3):
        with Checkpointer(folder / f"m{number}" / "checkpoints", asynchronous=False) as checkpointer:
            checkpointer.save(10 + number, {"params": jax.jit(model.init)(jax.random.key(number))}, meta)
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in corpus(40)])
    return folder


def held_out(runs, name="texts"):
    data = DataSpec(Source(str(runs / f"{name}.jsonl")), f"sp:{runs}/tokenizer/tokenizer.model", 32)
    return HeldOut(name, data)


def ran(folder, *stages):
    experiment = Experiment(Recipe("kit", stages, mesh="fsdp=1"), folder)
    for stage in experiment.in_order():
        experiment.run(stage)
    return experiment


def names(runs):
    return tuple(f"run:{runs}/m{number}" for number in range(3))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    from easylm_jax.runtime import mesh

    devices = jax.devices()[:1]
    monkeypatch.setattr(mesh.jax, "devices", lambda *_: devices)


def test_a_soup_is_the_mean_of_its_ingredients_and_later_stages_start_from_it(runs, tmp_path):
    entries = (
        Entry("ingredients", names(runs)),
        Entry("soup", ("soup",), over="ingredients"),
        Entry("same", ("same",), over="one"),
        Entry("one", names(runs)[:1]),
    )
    table = Losses("table", title="Soup", sets=(held_out(runs),), entries=entries, batch=4)
    same = Average("same", ingredients=names(runs)[:1] * 2)
    experiment = ran(tmp_path, Average("soup", ingredients=names(runs)), same, table)
    parts = [restore_params(runs / f"m{number}") for number in range(3)]
    soup = restore_params(experiment.folder("soup"))
    expected = jax.tree.map(lambda *leaves: np.mean([np.asarray(leaf, np.float64) for leaf in leaves], axis=0), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), soup, expected)
    of_one = restore_params(experiment.folder("same"))  # the soup of a model with itself is that model, bit for bit
    jax.tree.map(np.testing.assert_array_equal, of_one, parts[0])
    assert experiment.result("soup").name == "12"
    found = json.loads((tmp_path / "kit" / "table" / "losses.json").read_text())
    rows = {row["method"]: row for row in found["rows"]}
    assert rows["same"]["over"]["difference"] == 0.0 and rows["same"]["score"] == rows["one"]["score"]
    assert rows["soup"]["score"] == pytest.approx(reference_loss(expected, runs), rel=1e-4)
    assert rows["soup"]["over"]["difference"] == pytest.approx(rows["soup"]["score"] - rows["ingredients"]["score"])
    assert json.loads((tmp_path / "kit" / "table.json").read_text()) == found


def reference_loss(params, runs):
    """The loss of the held-out set, by whole logits in float64."""
    from easylm_jax.data import build_cache

    cache = build_cache(held_out(runs).data, runs / "reference")
    batch = cache.read(np.arange(cache.rows))
    place = {name: jnp.asarray(batch[name]) for name in ("positions", "segment_ids")}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    logits = np.asarray(models.logits(models.build(MODEL), params, jnp.asarray(batch["tokens"]), **place), np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(scores, batch["targets"][..., None], axis=-1)[..., 0]
    return -(chosen * batch["loss_weights"]).sum() / batch["loss_weights"].sum()


@pytest.mark.parametrize("keep_scale", [False, True])
def test_an_upcycled_mixture_starts_as_the_dense_model(keep_scale, runs, tmp_path):
    """OLMo 2 normalises the output of a feed-forward layer, so that only its direction counts."""
    stage = Upcycle("moe", init=names(runs)[0], experts=4, active=2, keep_scale=keep_scale)
    experiment = ran(tmp_path, stage)
    dense, mixture = restore_params(runs / "m0"), restore_params(experiment.folder("moe"))
    scale = 2.0 if keep_scale else 1.0
    for name, factor in (("gate", 1.0), ("up", 1.0), ("down", scale)):
        experts = mixture["layers"]["moe"][name]["kernel"]
        assert experts.shape[:2] == (2, 4)
        for expert in range(4):
            np.testing.assert_array_equal(experts[:, expert], factor * dense["layers"]["mlp"][name]["kernel"])
    router = np.asarray(mixture["layers"]["moe"]["router"]["kernel"])
    assert router.shape == (2, 16, 4) and 0.015 < router.std() < 0.025
    config = stage.derived(MODEL)
    tokens = jnp.asarray(np.random.default_rng(0).integers(4, 420, (2, 8)), jnp.int32)
    ours, theirs = (
        models.logits(models.build(each.replace(norm_eps=1e-12)), params, tokens)  # small outputs, so a small epsilon
        for each, params in ((config, mixture), (MODEL, dense))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert (config.experts.count, config.experts.active) == (4, 2)


def test_noise_draws_its_share_of_the_experts_anew(runs, tmp_path):
    experiment = ran(tmp_path, Upcycle("moe", init=names(runs)[0], experts=4, active=2, noise=0.5))
    dense, mixture = restore_params(runs / "m0"), restore_params(experiment.folder("moe"))
    kept = mixture["layers"]["moe"]["up"]["kernel"] == dense["layers"]["mlp"]["up"]["kernel"][:, None]
    assert abs(float(kept.mean()) - 0.5) < 0.03


def test_training_goes_on_from_an_upcycled_model_and_plans_know_its_shape(runs, tmp_path):
    data = held_out(runs).data
    upcycle = Upcycle("moe", init=names(runs)[0], experts=4, active=2)
    train = Pretrain("train", init="moe", data=data, batch=4, steps=2, optimizer=OptimizerConfig("1e-3"))
    experiment = ran(tmp_path, upcycle, train)
    metrics = json.loads((experiment.folder("train") / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["dropped_copies"] == 0 and metrics["load_balancing"] > 0.9
    assert shapes.stage_config(train, experiment.recipe).experts.count == 4


def test_losses_are_ratios_of_sums_with_the_errors_of_rows():
    random = np.random.default_rng(0)
    tokens = random.integers(5, 30, 4000).astype(float)
    loss = tokens * (3 + random.normal(size=4000)) + random.normal(size=4000)
    whole = mean_loss([Sums(loss, tokens)])
    assert whole.value == loss.sum() / tokens.sum()
    means = [mean_loss([Sums(loss[part], tokens[part])]).value for part in np.array_split(np.arange(4000), 100)]
    assert whole.stderr == pytest.approx(np.std(means, ddof=1) / 10, rel=0.2)
    better = loss - 0.01 * tokens
    apart = loss_difference([Sums(better, tokens)], [Sums(loss, tokens)])
    assert (apart.value, apart.stderr) == (pytest.approx(-0.01), pytest.approx(0, abs=1e-9))
    seeds = [Sums(loss, tokens), Sums(loss + tokens, tokens)]
    assert mean_loss(seeds).stderr == pytest.approx((whole.stderr**2 + 0.5 / 2) ** 0.5)


def test_what_cannot_be_derived_is_one_line(runs, tmp_path):
    with pytest.raises(UserError, match="stage soup: ingredients needs at least two, 1 given"):
        Average("soup", ingredients=("a",))
    wider = models.build(MODEL.replace(ffn=32))
    with Checkpointer(runs / "wider" / "checkpoints", asynchronous=False) as checkpointer:
        meta = {"model": dataclasses.asdict(wider.config), "tokenizer": held_out(runs).data.tokenizer}
        checkpointer.save(
            1, {"params": jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f4"), wider.abstract_params())}, meta
        )
    with pytest.raises(UserError, match="cannot be averaged with .*: params.* differs in shape"):
        ran(tmp_path / "a", Average("soup", ingredients=(f"run:{runs}/wider", names(runs)[0])))
    moe = Upcycle("moe", init=names(runs)[0], experts=2, active=1)
    with pytest.raises(UserError, match="stage again: init moe is a mixture of experts already"):
        ran(tmp_path / "b", moe, Upcycle("again", init="moe", experts=2, active=1))
    with pytest.raises(UserError, match="active 3 is larger than count 2"):
        ran(tmp_path / "c", Upcycle("moe", init=names(runs)[0], experts=2, active=3))
    with pytest.raises(UserError, match="stage table: b is compared with 'a', which is no entry"):
        Losses("table", title="", sets=(held_out(runs),), entries=(Entry("b", ("m",), over="a"),))


RELEASED = {
    "stage1-step928646-tokens3896B": (928_646, 3896, "stage1", None),  # of 3895.05e9 tokens, rounded up
    "stage2-ingredient1-step11931-tokens50B": (11_931, 50, "stage2", 1),  # of 50.04e9, rounded down
    "step10000-tokens41B": (10_000, 41, None, None),
    "stage2-ingredient3-step35773-tokens301B": (35_773, 301, "stage2", 3),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_come_back_as_they_are(name):
    found = revision.parse(f"hf:allenai/OLMo-2-1124-7B@{name}")
    assert dataclasses.astuple(found) == RELEASED[name]
    assert str(found) == name
    for other in ("main", f"{name}-hf", name.upper(), f"x{name}"):
        assert revision.parse(other) is None


def test_steps_of_a_run_are_named_as_released_ones():
    tokens = 1024 * 4096
    assert str(revision.of_stage("stage1", 1000, tokens)) == "stage1-step1000-tokens4B"
    assert str(revision.of_stage("stage2-50b-seed42", 11_931, tokens)) == "stage2-step11931-tokens50B"
    assert str(revision.of_stage("pretrain", 10, 2048)) == "step10-tokens0B"


def clip_folder(folder, vision):
    """A folder with a random CLIP vision model of these sizes, as `transformers` writes it."""
    from safetensors.numpy import save_file

    random, w, layers = np.random.default_rng(5), vision.width, vision.layers + 1
    shapes = {
        "embeddings.class_embedding": (w,), "embeddings.position_embedding.weight": (vision.grid**2 + 1, w),
        "embeddings.patch_embedding.weight": (w, 3, vision.patch, vision.patch), "post_layernorm.weight": (w,),
        "pre_layrnorm.weight": (w,), "pre_layrnorm.bias": (w,),
    }  # fmt: skip
    for layer in range(layers):
        at = f"encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{at}self_attn.{name}.weight": (w, w), f"{at}self_attn.{name}.bias": (w,)}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{at}{name}.weight": (w,), f"{at}{name}.bias": (w,)}
        shapes |= {f"{at}mlp.fc1.weight": (vision.ffn, w), f"{at}mlp.fc1.bias": (vision.ffn,)}
        shapes |= {f"{at}mlp.fc2.weight": (w, vision.ffn), f"{at}mlp.fc2.bias": (w,)}
    tensors = {f"vision_model.{name}": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    return tensors


VISION = VisionConfig(
    image=12, patch=3, margin=1, width=8, heads=2, ffn=12, layers=2, features=(-1, -2), connector_ffn=10,
    start_id=420, end_id=421, patch_id=422, column_id=423, image_id=424, extra_rows=5,
)  # fmt: skip


def test_a_model_that_sees_is_made_of_a_language_model_and_a_tower(runs, tmp_path):
    tensors = clip_folder(tmp_path / "clip", VISION)
    stage = AddVision("seeing", init=names(runs)[0], vision=VISION, tower=f"hf:{tmp_path / 'clip'}")
    experiment = ran(tmp_path / "out", stage)
    dense, seeing = restore_params(runs / "m0"), restore_params(experiment.folder("seeing"))
    model = models.build(stage.derived(MODEL))
    shape_of = lambda leaf: leaf.shape  # noqa: E731
    assert jax.tree.map(shape_of, model.abstract_params()) == jax.tree.map(shape_of, seeing)
    np.testing.assert_array_equal(seeing["embed"]["table"], dense["embed"]["table"])
    query = tensors["vision_model.encoder.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(seeing["vision"]["blocks"]["attn"]["q"]["kernel"][1], query.T)
    patch = tensors["vision_model.embeddings.patch_embedding.weight"]  # [width, channel, row, column]
    kernel = np.asarray(seeing["vision"]["patch"]["kernel"]).reshape(3, 3, 3, 8)  # row, column, channel, width
    np.testing.assert_array_equal(kernel, patch.transpose(2, 3, 1, 0))
    # Without pictures it is the language model.
    tokens = np.random.default_rng(0).integers(4, 420, (2, 8)).astype(np.int32)
    ours, theirs = models.logits(model, seeing, tokens), models.logits(models.build(MODEL), dense, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    other = dataclasses.replace(stage, name="other", vision=dataclasses.replace(VISION, encoder="siglip"))
    with pytest.raises(UserError, match="is a clip model, but vision.encoder is 'siglip'"):
        ran(tmp_path / "b", other)
    with pytest.raises(UserError, match="'clip' must be hf:"):
        AddVision("seeing", init="hf:x", vision=VISION, tower="clip")
