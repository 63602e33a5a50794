"""The decoder that sees: sizes, released weights, and that pictures and texts meet only where they should."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from molmo_reference import TINY, VISION, Reference
from safetensors.numpy import load_file
from tiny_models import random_params

import models
from easylm_jax.objectives.language_modelling import language_modelling
from models import UserError, trees
from models.config import BRANCH
from models.hf import convert, names
from models.molmo import image
from models.molmo.batch import collate

SIZES = {
    "molmoe-1b": (7_221_875_712, 290_909_184, 11_542_528),
    "molmo-7b-o": (7_665_032_192, 290_909_184, 74_981_376),
    "molmo-7b-d": (8_021_025_280, 290_909_184, 114_040_832),
    "molmo-72b": (73_308_285_952, 290_909_184, 310_124_544),
}


def picture(seed=0, size=(31, 40), most=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return image.tokenize(pixels, most, VISION)


def row(*parts, length=None):
    """int32 [1, S]: tokens, and those of pictures."""
    tokens = np.concatenate([part.tokens if isinstance(part, image.TokenizedImage) else part for part in parts])
    return np.pad(tokens, (0, (length or len(tokens)) - len(tokens)))[None].astype(np.int32)


@functools.cache
def built(name):
    model = models.build(TINY[name])
    return model, random_params(model)


@pytest.mark.parametrize("name", SIZES)
def test_released_sizes(name):
    params = models.build(name).abstract_params()
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert (count(params), count(params["vision"]), count(params["connector"])) == SIZES[name]


def test_released_names_and_shapes():
    """Those of spec molmo §16 for Molmo-7B-D."""
    model = models.build("molmo-7b-d")
    leaves = trees.flatten(model.abstract_params())
    stored = {}
    for name, place in names.places(convert.family_of(model.config).hf_table(model.config), leaves):
        stored.setdefault(name.removeprefix("model."), []).append(place.row.stored_shape(leaves[place.row.path].shape))
    shapes = {name: (sum(s[0] for s in all_), *all_[0][1:]) for name, all_ in stored.items()}
    block, vit = "transformer.blocks.27.", "vision_backbone.image_vit."
    expected = {
        "transformer.wte.embedding": (152064, 3584), "transformer.wte.new_embedding": (128, 3584),
        f"{block}att_proj.weight": (4608, 3584), f"{block}att_proj.bias": (4608,),
        f"{block}attn_out.weight": (3584, 3584), f"{block}ff_proj.weight": (37888, 3584),
        f"{block}ff_out.weight": (3584, 18944), f"{block}attn_norm.weight": (3584,), f"{block}ff_norm.weight": (3584,),
        "transformer.ln_f.weight": (3584,), "transformer.ff_out.weight": (152064, 3584),
        f"{vit}class_embedding": (1024,), f"{vit}positional_embedding": (577, 1024),
        f"{vit}patch_embedding.weight": (1024, 588), f"{vit}pre_ln.bias": (1024,),
        f"{vit}transformer.resblocks.22.attention.wq.weight": (1024, 1024),
        f"{vit}transformer.resblocks.22.feed_forward.w1.weight": (4096, 1024),
        f"{vit}transformer.resblocks.22.feed_forward.w2.bias": (1024,),
        f"{vit}transformer.resblocks.22.ffn_norm.weight": (1024,),
        "vision_backbone.pad_embed": (2, 2048), "vision_backbone.image_pooling_2d.wk.weight": (1024, 2048),
        "vision_backbone.image_pooling_2d.wo.weight": (1024, 1024),
        "vision_backbone.image_projector.w3.weight": (18944, 1024),
        "vision_backbone.image_projector.w2.weight": (3584, 18944),
    }  # fmt: skip
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 28 * 7 + 4 + 23 * 16 + 5 + 1 + 8 + 3  # blocks, text, vision blocks, the rest of each


@pytest.mark.parametrize("name", TINY)
def test_the_whole_model_is_the_reference_on_released_tensors(name, tmp_path):
    """Two pictures in one row, in the released layout, beside float64 NumPy that reads the released names."""
    model, params = built(name)
    model = dataclasses.replace(
        model, config=model.config.replace(vision=dataclasses.replace(VISION, legacy_image_mask=True))
    )
    models.save_hf(model, params, tmp_path / "m")
    loaded, again = models.load_hf(tmp_path / "m")
    assert loaded.config == model.config.replace(bos_id=None, vocab_used=70)
    for path, leaf in trees.flatten(again).items():
        np.testing.assert_array_equal(leaf, trees.flatten(params)[path], err_msg=path)
    pictures = [picture(0), picture(1, (20, 60), 6)]
    tokens = row([3], pictures[0], [5, 6, 7], pictures[1], [8, 9, 10, 2])
    ours = np.asarray(models.logits(loaded, again, tokens, images=[pictures]))[0]
    theirs = Reference(loaded.config, load_file(tmp_path / "m" / "model.safetensors")).logits(tokens[0], pictures)
    assert np.abs(ours - theirs).max() <= 2e-4


def test_released_configurations_have_the_legacy_masks():
    from models.families import molmo

    released = {
        "model_type": "molmo", "hidden_size": 3584, "intermediate_size": 37888, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "embedding_size": 152064,
        "max_position_embeddings": 4096, "layer_norm_eps": 1e-6, "layer_norm_type": "rms", "rope_theta": 1000000.0,
        "qkv_bias": True, "attention_layer_norm": False, "norm_after": False, "weight_tying": False, "clip_qkv": None,
        "initializer_range": 0.02, "tie_word_embeddings": False, "use_cache": True,
    }  # fmt: skip
    config = molmo.from_hf(released)
    preset = models.preset("molmo-7b-d")
    vision = dataclasses.replace(preset.vision, legacy_image_mask=True, legacy_tiny_side=True)
    assert config == preset.replace(vision=vision, eos_id=None, pad_id=None)
    assert molmo.from_hf(molmo.to_hf(preset)) == preset


def test_the_legacy_mask_changes_only_where_padding_embeddings_go():
    model, params = built("7b-d")
    legacy = dataclasses.replace(
        model, config=model.config.replace(vision=dataclasses.replace(VISION, legacy_image_mask=True))
    )
    seen = picture(2, (10, 50))
    tokens = row([1], seen, [4])
    a, b = (models.logits(m, params, tokens, images=[seen]) for m in (model, legacy))
    assert not np.array_equal(a, b)
    blank = {**params, "connector": {**params["connector"], "padding": {"table": jnp.zeros((2, 32))}}}
    a, b = (models.logits(m, blank, tokens, images=[seen]) for m in (model, legacy))
    np.testing.assert_array_equal(a, b)


def test_features_of_each_picture_land_on_its_own_tokens():
    model, params = built("7b-d")
    first, second, other = picture(0), picture(1), picture(5)
    tokens = row([1], first, [4, 5], second, [6])
    embed = lambda *own: np.asarray(  # noqa: E731
        model.embed_images(params, collate(tokens, [own], VISION), tokens.shape[1])
    )[0]
    a, b = embed(first, second), embed(first, other)
    where = np.flatnonzero(tokens[0] == VISION.patch_id)
    assert (a[where] != 0).any(1).all() and not a[tokens[0] != VISION.patch_id].any()
    half = len(first.patch_at)
    np.testing.assert_array_equal(a[where[:half]], b[where[:half]])
    assert (a[where[half:]] != b[where[half:]]).any(1).all()


def test_the_ids_of_added_tokens_are_rows_of_their_own():
    model, params = built("7b-d")
    tokens = np.array([[0, 69, 70, 74, 77]])
    both = np.concatenate([params["embed"]["table"], params["embed"]["new"]["table"]])
    np.testing.assert_array_equal(model.embed(params["embed"], tokens, "float32"), both[tokens])


def branched(prefix, texts):
    """A row of a picture and several texts about it: tokens, segments and positions."""
    tokens = np.concatenate([prefix, *texts])
    segments = np.concatenate([np.full(len(part), 1 + k * BRANCH) for k, part in enumerate([prefix, *texts])])
    places = [np.arange(len(prefix)), *(len(prefix) + np.arange(len(text)) for text in texts)]
    return tokens[None].astype(np.int32), segments[None].astype(np.int32), np.concatenate(places)[None].astype(np.int32)


@pytest.mark.parametrize("kernel", ["blocked", "dense"])
def test_texts_about_one_picture_cannot_see_each_other(kernel):
    model, params = built("7b-d")
    model = dataclasses.replace(model, compute=dataclasses.replace(model.compute, attention=kernel))
    seen = picture(3)
    prefix = row([1], seen)[0]
    texts = [np.array([5, 6, 7, 8]), np.array([9, 10, 11]), np.array([12, 13, 14, 15, 16])]
    tokens, segments, positions = branched(prefix, texts)
    run = functools.partial(models.logits, model, params, positions=positions, segment_ids=segments, images=[seen])
    before = np.asarray(run(tokens))[0]
    changed = tokens.copy()
    middle = slice(len(prefix) + 4, len(prefix) + 7)
    changed[0, middle] = [20, 21, 22]
    after = np.asarray(run(changed))[0]
    same = np.ones(len(before), bool)
    same[middle] = False
    np.testing.assert_array_equal(before[same], after[same])
    assert (before[middle] != after[middle]).any(1).all()
    # Each text has the logits that it has alone behind the picture.
    start = len(prefix)
    for text in texts:
        alone = np.asarray(models.logits(model, params, row(prefix, text), images=[seen]))[0]
        np.testing.assert_allclose(before[start : start + len(text)], alone[len(prefix) :], atol=2e-5)
        start += len(text)


def test_a_packed_row_has_the_loss_of_its_documents_alone():
    """Two pictures with two and one texts and a text without a picture in one row, beside rows of their own."""
    model, params = built("7b-o")
    objective = jax.jit(language_modelling(model))
    pictures = [picture(0), picture(1, (50, 30))]
    texts = [[np.array([5, 6, 7, 2]), np.array([9, 10, 2])], [np.array([12, 13, 14, 2])]]
    plain = np.array([20, 21, 22, 23, 2])
    rows = [branched(row([1], p)[0], own) for p, own in zip(pictures, texts, strict=True)]
    rows.append((plain[None].astype(np.int32), np.ones((1, 5), np.int32), np.arange(5, dtype=np.int32)[None]))
    weights = [np.concatenate([np.zeros(r[0].shape[1] - 4), [1, 0.5, 1, 0]])[None] for r in rows]

    def batch(parts, own):
        tokens, segments, positions, weight = (np.concatenate(column, 1) for column in zip(*parts, strict=True))
        targets = np.concatenate([tokens[:, 1:], tokens[:, :1]], 1)
        images = collate(tokens, [own], VISION)._asdict()
        return {"tokens": tokens, "targets": targets, "segment_ids": segments, "positions": positions,
                "loss_weights": weight.astype(np.float32), **images}  # fmt: skip

    def loss(batch):
        return jax.tree.map(float, objective(params, batch, jax.random.key(0), {})[:2])

    numbered = [(t, s + i, p) for i, (t, s, p) in enumerate(rows)]
    together = loss(batch([(*r, w) for r, w in zip(numbered, weights, strict=True)], pictures))
    alone = [loss(batch([(*r, w)], pictures[i : i + 1])) for i, (r, w) in enumerate(zip(rows, weights, strict=True))]
    total, count = np.sum(alone, axis=0)
    assert together[1] == count
    assert abs(together[0] / count - total / count) <= 1e-6


@pytest.mark.parametrize(
    ("tokens", "pictures", "line"),
    [
        ([1, 5, 6], [0], "row 0 has 0 picture tokens, but its 1 picture"),
        ([1, 72, 6], [], "row 0 has 1 picture tokens, but its 0 picture"),
        ("shuffled", [0], "the tokens of picture 0 are not where its first picture token is"),
    ],
)
def test_tokens_without_their_picture_are_one_line(tokens, pictures, line):
    model, params = built("7b-d")
    own = [picture(number) for number in pictures]
    if tokens == "shuffled":
        tokens = np.concatenate([[1], own[0].tokens[::-1]])
    with pytest.raises(UserError, match=line):
        models.logits(model, params, np.array([tokens], np.int32), images=[own])


def test_models_of_text_refuse_pictures(tiny_model_config):
    with pytest.raises(UserError, match="a olmo2 model sees no pictures"):
        models.logits(models.build(tiny_model_config), {}, np.zeros((1, 4), np.int32), images=[None])


def test_every_parameter_has_one_sharding_rule():
    from easylm_jax.runtime.mesh import make_mesh
    from easylm_jax.runtime.sharding import parameter_shardings

    mesh = make_mesh("fsdp=2,tp=2,dp=2")
    for name in SIZES:
        model = models.build(name)
        parameter_shardings(model.abstract_params(), model.sharding_rules, mesh)


def test_a_mesh_computes_what_one_device_computes():
    from easylm_jax.runtime.mesh import make_mesh
    from easylm_jax.runtime.sharding import parameter_shardings, placement_of

    config = TINY["7b-d"].replace(vocab=72, vision=dataclasses.replace(VISION, start_id=72, end_id=73, patch_id=74))
    config = config.replace(vision=dataclasses.replace(config.vision, column_id=75))
    mesh = make_mesh("fsdp=2,tp=2,dp=2")
    model = models.build(config, models.Compute(remat="full"))
    params = random_params(model)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 33, 3), dtype=np.uint8)
    own = [image.tokenize(p, 2, config.vision) for p in pixels]
    tokens = np.concatenate([row([1], p, [4, 5, 6]) for p in own])
    images = collate(tokens, own, config.vision)
    alone = jax.jit(lambda p: model(p, tokens, images=images).hidden)(params)
    split = dataclasses.replace(model, placement=placement_of(mesh))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(params, split.sharding_rules, mesh))
        program = jax.jit(lambda p: split(p, tokens, images=images).hidden).lower(placed).compile()
        together = program(placed)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    rows, crops, patches = images.crops.shape[:3]
    tower = {int(n) for n in re.findall(rf"f32\[(\d+),{patches + 1},{VISION.width}\]", program.as_text())}
    assert tower == {rows * crops // 4}  # a device has the crops of its own rows
