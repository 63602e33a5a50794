"""Preference pairs about pictures: what a side is worth follows from its picture, and stages train on such pairs."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from molmo_reference import TINY, VISION
from support import write_jsonl
from tiny_models import random_params

import models
from easylm_jax.config import DataSpec, Source
from easylm_jax.data import load_tokenizer, train_sentencepiece
from easylm_jax.data.build import build_cache
from easylm_jax.data.examples import Counts
from easylm_jax.data.packing import within
from easylm_jax.data.preference import PairEncoder
from easylm_jax.data.records import BadRecord
from easylm_jax.objectives import pair_scores, score_responses, sequence_logprobs
from models.errors import UserError
from models.images import Images
from models.molmo.batch import collate
from models.molmo.image import tokenize

IDS = {"start_id": 384, "end_id": 385, "patch_id": 386, "column_id": 387, "image_id": 388}
SEEN = dataclasses.replace(VISION, **IDS)
COLOURS = ("red", "blue", "green", "navy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures of one size, and a pair about each that has the same words as all others."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pairs")
    pairs = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20, 26), colour).save(folder / f"{number}.png")
        pairs.append({"image": f"{number}.png", "prompt": "What colour?", "chosen": "red", "rejected": "a blue one",
                      "margin": number})  # fmt: skip
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "prompts.jsonl", [{"image": pair["image"], "prompt": pair["prompt"]} for pair in pairs])
    train_sentencepiece(["What colour? red a blue one User: Assistant:"] * 8, 340, folder)
    return folder


def spec_of(folder, **changes):
    fields = {"kind": "preference", "template": "molmo", "vision": SEEN, "max_crops": 2, **changes}
    return DataSpec((Source(str(folder / "pairs.jsonl")),), f"sp:{folder}/tokenizer.model", 1024, **fields)


@pytest.fixture(scope="module")
def cache(folder):
    return build_cache(spec_of(folder, max_pairs_per_row=4), folder / "cache")


def test_both_sides_of_a_pair_have_the_picture_and_train_the_response_alone(cache, folder):
    tokenizer = load_tokenizer(f"sp:{folder}/tokenizer.model")
    picture = tokenize(str(folder / "0.png"), 2, SEEN)
    batch = cache.read(np.arange(cache.rows))
    facts = cache.manifest
    assert (facts["pairs"], facts["crops"]) == (4, 4 * len(picture.crops)) and cache.rows == 1
    assert sorted(batch["pair_index"][0]) == [0, 1, 2, 3]
    for place, number in enumerate(batch["pair_index"][0]):
        assert batch["margins"][0, place] == number
        for side, text in ((1, "red"), (2, "a blue one")):
            inside = batch["segment_ids"][0] == 2 * place + side
            tokens = batch["tokens"][0][inside]
            np.testing.assert_array_equal(tokens[1 : 1 + len(picture.tokens)], picture.tokens)
            said = batch["targets"][0][inside & (batch["loss_weights"][0] > 0)]
            assert tokenizer.decode(said.tolist(), skip_special=True).strip() == text
            np.testing.assert_array_equal(batch["positions"][0][inside], within(np.array([inside.sum()])))
    # The crops of a pair are there once, and both sides read them.
    assert batch["crops"].shape[1] == facts["row_crops"] == facts["crops"]
    assert batch["places"].shape[1] == facts["row_patch_tokens"] == 8 * len(picture.patch_at)
    pooling = batch["pooling"][0].reshape(8, -1)
    for chosen, rejected in zip(pooling[::2], pooling[1::2], strict=True):
        np.testing.assert_array_equal(chosen, rejected)
    assert len(np.unique(pooling[::2], axis=0)) == 4


def test_pairs_that_differ_only_in_their_picture_are_different(cache, folder):
    """Packed rows beside each side alone: log-probabilities and scores are equal, and pictures decide them."""
    config = TINY["7b-d"].replace(vocab=384, vision=SEEN)
    model, scorer = models.build(config), models.build(config.replace(scalar_head=True))
    params, head = random_params(model), random_params(scorer)
    batch = {name: jax.numpy.asarray(column) for name, column in cache.read(np.arange(1)).items()}
    packed = jax.jit(sequence_logprobs, static_argnums=0)(model, params, batch)
    scores = jax.jit(pair_scores, static_argnums=0)(scorer, head, batch)
    assert len(np.unique(np.round(packed.chosen, 4))) == len(np.unique(np.round(scores[0], 4))) == 4
    rows = [np.flatnonzero(np.asarray(batch["segment_ids"][0]) == side) for side in range(1, 9)]
    length = max(map(len, rows))
    column = {name: np.stack([np.pad(np.asarray(batch[name][0])[row], (0, length - len(row))) for row in rows])
              for name in ("tokens", "targets", "loss_weights")}  # fmt: skip
    lengths = np.array([len(row) for row in rows])
    numbers = np.repeat(np.asarray(batch["pair_index"][0]), 2)
    own = [tokenize(str(folder / f"{number}.png"), 2, SEEN) for number in numbers]
    segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
    logits = models.logits(model, params, column["tokens"], segment_ids=segments, images=own)
    targets = np.minimum(column["targets"], config.vocab - 1)[..., None]  # those of pictures' tokens weigh nothing
    each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets, -1)[..., 0]
    alone = (each * column["loss_weights"]).sum(1).reshape(-1, 2)
    np.testing.assert_allclose(np.stack([packed.chosen[0], packed.rejected[0]], 1), alone, atol=1e-4)
    images = Images(*map(jax.numpy.asarray, collate(column["tokens"], own, SEEN)))
    score = jax.jit(score_responses, static_argnums=0)
    apart = score(scorer, head, jax.numpy.asarray(column["tokens"]), jax.numpy.asarray(lengths), images)
    np.testing.assert_allclose(np.stack([scores[0][0], scores[1][0]], 1), apart.reshape(-1, 2), atol=1e-4)


def test_pairs_with_too_many_crops_are_counted_or_one_line(folder):
    tokenizer, source = load_tokenizer(f"sp:{folder}/tokenizer.model"), Source(str(folder / "pairs.jsonl"))
    record = {"image": "0.png", "prompt": "What?", "chosen": "red", "rejected": "blue"}
    counts = Counts()
    assert PairEncoder(spec_of(folder, row_crops=1), tokenizer).encode([(record, "f:1")], source, counts, [0]) == []
    assert counts.overlong_dropped == 1
    strict = PairEncoder(spec_of(folder, row_crops=1, overlong="error"), tokenizer)
    with pytest.raises(BadRecord, match="f:1: pictures of . crops, over row_crops 1"):
        strict.encode([(record, "f:1")], source, Counts(), [0])
    with pytest.raises(BadRecord, match="there is no such file"):
        strict.encode([({**record, "image": "gone.png"}, "f:1")], source, Counts(), [0])
    # A row too short for the picture leaves no response, and never a part of a picture.
    short = dataclasses.replace(spec_of(folder), sequence_length=40)
    counts = Counts()
    assert PairEncoder(short, tokenizer).encode([(record, "f:1")], source, counts, [0]) == []
    assert counts.untrained_dropped == 1
    two = build_cache(spec_of(folder, row_crops=2 * len(tokenize(str(folder / "0.png"), 2, SEEN).crops)), folder / "c")
    assert two.rows == 2 and two.read(np.arange(2))["pair_index"].shape == (2, 2)


RECIPE = """
from easylm_jax.config import *
from models.config import VisionConfig

VISION = VisionConfig(image=24, patch=3, margin=2, width=16, heads=2, ffn=20, layers=4, features=(-2, -4),
                      connector_ffn=28, start_id=384, end_id=385, patch_id=386, column_id=387, image_id=388,
                      extra_rows=8, max_crops=6)
MODEL = DecoderConfig("molmo", layers=1, width=16, heads=2, ffn=32, vocab=384, context=256, vision=VISION)
TOKENS = "sp:{folder}/tokenizer.model"
PAIRS = DataSpec((Source("{folder}/pairs.jsonl", count=8),), TOKENS, 256, kind="preference", template="molmo",
                 vision=VISION, max_crops=2, packing="none")
PROMPTS = DataSpec((Source("{folder}/prompts.jsonl", count=8),), TOKENS, 128, kind="prompts", template="molmo",
                   vision=VISION, max_crops=2)
FAST = OptimizerConfig("1e-3")
recipe = Recipe("preferring", mesh="dp=-1", stages=(
    RewardModel("rm", model=MODEL, data=PAIRS, batch=8, steps=2, optimizer=FAST),
    DPO("start", model=MODEL, loss="simpo", data=PAIRS, batch=8, steps=1, optimizer=FAST),
    DPO("dpo", init="start", data=PAIRS, batch=8, steps=2, optimizer=FAST),
    OnlineDPO("online", init="dpo", data=PROMPTS, batch=8, steps=1, sampling=Sampling(4), reward=Reward(model="rm"),
              optimizer=FAST),
))
"""


@pytest.mark.slow
def test_preference_stages_and_reward_models_see_pictures(folder, tmp_path):
    """A reward model, DPO with cached reference, and online DPO with that reward model, each on pictures."""
    from easylm_jax.cli.main import main

    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.replace("{folder}", str(folder)))
    assert main(["run", str(path), "--out", str(tmp_path / "runs")]) == 0
    for stage, name in (("rm", "reward_margin"), ("dpo", "reward_margin"), ("online", "reward")):
        lines = (tmp_path / "runs" / "preferring" / stage / "metrics.jsonl").read_text().splitlines()
        values = [found[name] for found in map(json.loads, lines) if name in found]
        assert values and np.isfinite(values).all()
    first = (tmp_path / "runs" / "preferring" / "dpo" / "metrics.jsonl").read_text().splitlines()[0]
    assert abs(json.loads(first)["reward_margin"]) < 1e-5  # the reference saw the same pictures as the policy


def test_models_that_see_nothing_are_refused():
    from easylm_jax.decode.generator import check_pictures

    text = TINY["7b-d"].replace(family="olmo2", vision=None)
    with pytest.raises(UserError, match="stage grpo: reward model: the data has pictures, but a olmo2 model sees none"):
        check_pictures("stage grpo: reward model", text, dataclasses.asdict(SEEN))
    with pytest.raises(UserError, match="stage sft: data.vision has patch_id 9, the model 72"):
        check_pictures("stage sft", TINY["7b-d"], dataclasses.replace(VISION, patch_id=9))
    check_pictures("stage sft", text, None)
