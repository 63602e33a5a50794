"""Responses to prompts about pictures: what a full forward pass gives, with each picture computed once."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from molmo_reference import TINY, VISION
from tiny_models import random_params

import models
from easylm_jax import decode
from easylm_jax.decode import pictures
from easylm_jax.decode.request import Prompt
from models import UserError
from models.molmo import image


def picture(seed, size=(20, 33)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return image.tokenize(pixels, 2, VISION)


@functools.cache
def both():
    return [picture(0), picture(1)]


QUESTIONS = [[5, 6, 7], [8, 9], [5, 6, 7, 10, 11]]


def prompt(seen, question):
    return [1, *([] if seen is None else seen.tokens.tolist()), *question]


@functools.cache
def built(name="7b-d"):
    model = models.build(TINY[name])
    return model, random_params(model)


@pytest.mark.parametrize("name", ["7b-d", "moe"])
def test_cached_decoding_is_the_full_forward_pass(name):
    """Three questions about each of two pictures and one without, in one batch, greedy."""
    model, params = built(name)
    asked = [(seen, question) for seen in (*both(), None) for question in QUESTIONS]
    prompts = [prompt(*pair) for pair in asked]
    done = decode.generate(
        model, params, prompts, images=[seen for seen, _ in asked], max_new_tokens=4, temperature=0.0, slots=16
    )
    assert (done.lengths == 4).all()
    length = max(map(len, prompts)) + 4
    rows = np.zeros((len(prompts), length), np.int32)
    for row, (tokens, new) in enumerate(zip(prompts, done.tokens, strict=True)):
        rows[row, : len(tokens) + 4] = [*tokens, *new]
    segments = np.array([np.arange(length) < len(tokens) + 4 for tokens in prompts]).astype(np.int32)
    logits = models.logits(model, params, rows, segment_ids=segments, images=[seen for seen, _ in asked])
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    for row, tokens in enumerate(prompts):
        at = np.arange(len(tokens) - 1, len(tokens) + 3)
        assert (logprobs[row, at].argmax(-1) == done.tokens[row]).all()
        np.testing.assert_allclose(logprobs[row, at, done.tokens[row]], done.logprobs[row], atol=1e-4)
    # The same text with the other picture is another prompt, and gets another response.
    assert np.abs(done.logprobs[:3] - done.logprobs[3:6]).max() > 1e-3


def test_a_picture_is_computed_once_for_all_questions_and_samples(monkeypatch):
    model, params = built()
    engine = decode.Engine(model, slots=16)
    crops, whole = [], engine._prefill_seeing

    def counted(weights, rows):
        crops.append(int(rows.images.crops.any((2, 3)).sum()))
        return whole(weights, rows)

    monkeypatch.setattr(engine, "_prefill_seeing", counted)
    asked = [(both()[0], question) for question in QUESTIONS] * 2
    engine.generate(
        params, [prompt(*pair) for pair in asked], images=[seen for seen, _ in asked], max_new_tokens=2, samples=2
    )
    assert sum(crops) == len(both()[0].crops)


def test_prompts_with_one_picture_share_a_row_and_others_do_not():
    tokens = [tuple(prompt(both()[0], question)) for question in QUESTIONS]
    prompts = [Prompt(t, "a") for t in tokens] + [Prompt(tokens[0], "b"), Prompt((1, 2)), Prompt((1, 3))]
    assert pictures.group(prompts, VISION) == [[0, 1, 2], [3], [4], [5]]


@pytest.mark.parametrize(
    ("images", "line"),
    [([None], "prompt 0 has tokens of a picture, but no picture"), ([], "0 entries of images for 1 prompts")],
)
def test_prompts_whose_pictures_are_missing_are_one_line(images, line):
    model, params = built()
    with pytest.raises(UserError, match=line):
        decode.generate(model, params, [prompt(both()[0], [5])], images=images, max_new_tokens=2)


@pytest.mark.parametrize(
    ("tokens", "seen", "line"),
    [
        (lambda a: [1, 5, 6], 1, "has 0 picture tokens, but its 1 picture"),
        (lambda a: [1, *a[:20], 5], 1, "has 16 picture tokens, but its 1 picture"),
        (lambda a: [1, *a, *a, 5], 1, "has 80 picture tokens, but its 1 picture"),
        (lambda a: [1, *a, 5], 2, r"has 40 picture tokens, but its 2 picture\(s\) have 80"),
        (lambda a: [1, *a[::-1], 5], 1, "the tokens of picture 0 are not where its first picture token is"),
    ],
)
def test_pictures_without_their_tokens_are_one_line(tokens, seen, line):
    """Features of a picture never land on the tokens of another, or on a part of their own."""
    model, params = built()
    with pytest.raises(UserError, match=line):
        decode.generate(model, params, [tokens(both()[0].tokens.tolist())], images=[[both()[0]] * seen],
                        max_new_tokens=2)  # fmt: skip


def test_text_models_refuse_pictures(tiny_model_config):
    model = models.build(tiny_model_config)
    with pytest.raises(UserError, match="this model sees no pictures"):
        decode.generate(model, model.init(jax.random.key(0)), [[1, 2]], images=[both()[0]], max_new_tokens=2)


def test_a_mesh_generates_what_one_device_generates():
    from easylm_jax.runtime.mesh import make_mesh

    config = TINY["7b-d"].replace(vocab=72, vision=dataclasses.replace(VISION, start_id=72, end_id=73, patch_id=74))
    config = config.replace(vision=dataclasses.replace(config.vision, column_id=75, image_id=76))
    model = models.build(config)
    params = random_params(model)
    seen = [image.tokenize(np.full((20, 33, 3), 40 * n, np.uint8), 2, config.vision) for n in range(3)]
    prompts = [[1, *s.tokens.tolist(), *q] for s in seen for q in QUESTIONS]
    shown = [s for s in seen for _ in QUESTIONS]
    run = functools.partial(decode.generate, model, params, prompts, images=shown, max_new_tokens=3, temperature=0.0)
    alone, together = run(), run(mesh=make_mesh("fsdp=2,tp=2,dp=2"))
    np.testing.assert_array_equal(alone.tokens, together.tokens)
    np.testing.assert_allclose(alone.logprobs, together.logprobs, atol=1e-4)
