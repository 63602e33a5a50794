"""Pictures with annotations become packed rows and batches, and a stage trains on them."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import rl_kit
from molmo_reference import VISION
from support import write_jsonl

import easylm_jax.train.stage
from easylm_jax.config import DataSpec, Source
from easylm_jax.data import load_tokenizer, picture_prompts, picture_records, train_sentencepiece
from easylm_jax.data.build import build_cache
from easylm_jax.data.examples import Counts
from easylm_jax.data.loader import Loader
from easylm_jax.data.packing import best_fit
from easylm_jax.data.pictures import PictureEncoder
from easylm_jax.data.records import BadRecord
from models.config import BRANCH, VisionConfig
from models.errors import UserError

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


def draw(folder, count=12):
    """Pictures of one colour with questions about them; the records."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        colour = list(COLOURS)[number % 3]
        size = (20 + 7 * (number % 4), 18 + 9 * (number % 3))
        Image.new("RGB", size, COLOURS[colour]).save(folder / f"{number}.png")
        talks = [
            {"question": "What colour is it?", "answer": colour, "style": "vqa2"},
            {"caption": f"A picture that is {colour} all over."},
            {"label": colour, "points": [[50, 50], [10.04, 80]], "style": "point_count"},
        ]
        records.append({"image": f"{number}.png", "annotations": talks[: 1 + number % 3]})
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    records = draw(folder)
    Image.new("1", (10_000, 10_000)).save(folder / "bomb.png")  # 100 megapixels in a few kilobytes
    records.append({"question": "Is this text alone?", "answer": "It is."})
    write_jsonl(folder / "records.jsonl", records)
    asked = [{"image": r["image"], "prompt": "What colour is it?", "answer": list(COLOURS)[i % 3]}
             for i, r in enumerate(records[:6])]  # fmt: skip
    write_jsonl(folder / "prompts.jsonl", asked)
    texts = [json.dumps(record) + picture_prompts.asked(style, None, "red", None)
             for record in records for style in picture_prompts.DEMO]  # fmt: skip
    train_sentencepiece(texts * 8, 340, folder)
    return folder


def vision_of(folder, **changes):
    """`VISION` with ids behind those of the tokenizer of the folder."""
    return dataclasses.replace(VISION, start_id=384, end_id=385, patch_id=386, column_id=387, image_id=388, **changes)


def spec_of(folder, **changes):
    fields = {"template": "molmo", "vision": vision_of(folder), "max_crops": 3, **changes}
    return DataSpec((Source(str(folder / "records.jsonl")),), f"sp:{folder}/tokenizer.model", 512, kind="pictures",
                    **fields)  # fmt: skip


@pytest.fixture(scope="module")
def cache(folder):
    return build_cache(spec_of(folder, annotation_weight="root"), folder / "cache")


def test_a_cache_of_pictures_has_whole_documents_and_their_files(cache, folder):
    tokenizer = load_tokenizer(f"sp:{folder}/tokenizer.model")
    assert cache.manifest["documents"] == 13 and cache.left_out == {}
    batch = cache.read(np.arange(cache.rows))
    seen = {}
    for row in range(cache.rows):
        for number, index in enumerate(batch["pictures"][row][batch["pictures"][row] >= 0], start=1):
            inside = batch["segment_ids"][row] % BRANCH == number
            line = cache._extra[0].line(int(index))
            seen[line["record"]] = (line, {name: batch[name][row][inside] for name in
                                           ("tokens", "segment_ids", "positions", "loss_weights")})  # fmt: skip
    assert sorted(seen) == list(range(13))
    line, found = seen[2]  # three annotations
    assert [image["path"] for image in line["images"]] == [str(folder / "2.png")]
    branches = found["segment_ids"] // BRANCH
    assert set(branches) == {0, 1, 2, 3}
    shared = int((branches == 0).sum())
    assert (found["positions"][:shared] == np.arange(shared)).all()
    for k in (1, 2, 3):
        own = branches == k
        assert (found["positions"][own] == shared + np.arange(own.sum())).all()
        text = tokenizer.decode(found["tokens"][own].tolist())
        assert "User:" in text and "Assistant:" in text
    trained = found["loss_weights"][found["loss_weights"] > 0]
    np.testing.assert_allclose(trained, 3**-0.5, rtol=1e-6)
    _, single = seen[0]
    assert (single["segment_ids"] < BRANCH).all() and set(single["loss_weights"]) == {0, 1}
    _, text_alone = seen[12]
    assert not (text_alone["tokens"] >= 384).any()


def test_the_check_vector_of_several_annotations():
    """Spec molmo §7.2: lengths 5+3, 4+2 and 2+6 behind a picture of 640 × 480."""
    segments = np.repeat([1, 1 + BRANCH, 1 + 2 * BRANCH, 1 + 3 * BRANCH], [741, 9, 7, 9])
    encoder_branches = np.array([741, 9, 7, 9])
    store = _Store(root=True)
    branches = np.repeat(np.arange(4, dtype=np.uint8), encoder_branches)[None]
    trained = np.zeros(766, np.float32)
    for start, prompt, answer in ((741, 5, 3), (750, 4, 2), (757, 2, 6)):
        trained[start + prompt - 1 : start + prompt + answer] = 1  # the answer and its end
    batch = {"segment_ids": np.ones((1, 766), np.int32), "branches": branches,
             "positions": np.arange(766, dtype=np.int32)[None], "loss_weights": trained[None]}  # fmt: skip
    out = store._branched(batch, [[1.0]])
    np.testing.assert_array_equal(out["segment_ids"][0], segments)
    positions = out["positions"][0][:765]
    assert positions[:741].tolist() == list(range(741))
    assert positions[741:].tolist() == [*range(741, 750), *range(741, 748), *range(741, 749)]
    weights = out["loss_weights"][0]
    np.testing.assert_allclose(weights[weights > 0], 0.57735, atol=1e-5)
    assert [int((weights[a:b] > 0).sum()) for a, b in ((741, 750), (750, 757), (757, 766))] == [4, 3, 7]


def _Store(root):
    from easylm_jax.data.picture_store import PictureStore

    store = object.__new__(PictureStore)
    store.root_weights = root
    return store


def test_batches_are_a_function_of_the_step(cache):
    loader = Loader(cache, 2, seed=1)
    batch = loader.batch_at(0)
    assert batch["crops"].shape == (2, cache.manifest["row_crops"], 64, 27) and batch["crops"].dtype == np.uint8
    assert loader.digest(3) == Loader(cache, 2, seed=1).digest(3) != loader.digest(4)
    padded = list(cache.in_order(2))[-1]
    assert (padded["places"][-1] == -1).all() or cache.rows % 2 == 0


def test_a_changed_or_missing_picture_ends_with_one_line(folder, tmp_path):
    from PIL import Image

    records = draw(tmp_path / "own", 3)
    write_jsonl(tmp_path / "own" / "records.jsonl", records)
    spec = spec_of(folder)
    spec = dataclasses.replace(spec, sources=(Source(str(tmp_path / "own" / "records.jsonl")),), packing="none")
    built = build_cache(spec, tmp_path / "cache")
    Image.new("RGB", (99, 20)).save(tmp_path / "own" / "1.png")
    with pytest.raises(UserError, match=r"1\.png is 99 × 20 now, and was 27 × 27"):
        built.read(np.arange(3))
    (tmp_path / "own" / "1.png").unlink()
    with pytest.raises(UserError, match="there is no such file"):
        from easylm_jax.data.opening import open_cache

        open_cache(built.folder).read(np.arange(3))


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"image": "none.png", "question": "a", "answer": "b"}, "there is no such file"),
        ({"image": 3, "question": "a", "answer": "b"}, "image is int, not text"),
        ({"image": "0.png"}, "no caption, question and answer"),
        ({"image": "0.png", "label": "red", "points": [[1, 200]]}, "points must be a list"),
        ({"image": "0.png", "label": "red", "points": [["a", 2]]}, "points must be a list"),
        ({"image": "0.png", "label": "red", "points": [[1, 2]] * 41}, "41 points of 'red'; at most 40"),
        ({"image": "0.png", "question": "a", "answer": []}, "answer is an empty list"),
        ({"image": "0.png", "annotations": "x"}, "annotations is not a list"),
        ({"image": "0.png", "caption": " "}, "an empty response"),
        ({"image": "0.png", "question": "a", "answer": "b", "weight": "x"}, "weight is 'x'"),
        ({"image": "0.png", "messages": [{"role": "user", "content": "a"}]}, "turns of user and assistant"),
        ({"image": "records.jsonl", "question": "a", "answer": "b"}, "it is not a picture"),
        ({"image": "bomb.png", "question": "a", "answer": "b"}, "10,000 × 10,000 is more than 89,478,485 pixels"),
        ({"image": "data:image/png;base64,x", "question": "a", "answer": "b"}, "it is not base64"),
    ],
)
def test_bad_records_are_one_line_or_counted(record, line, folder):
    tokenizer = load_tokenizer(f"sp:{folder}/tokenizer.model")
    source = Source(str(folder / "records.jsonl"))
    strict = PictureEncoder(spec_of(folder), tokenizer)
    with pytest.raises(BadRecord, match=line) as error:
        strict.encode([(record, "f:1")], source, Counts(), [0])
    assert "\n" not in str(error.value)
    counts = Counts()
    assert (
        PictureEncoder(spec_of(folder, on_bad="skip"), tokenizer).encode([(record, "f:1")], source, counts, [0]) == []
    )
    assert counts.bad == 1 and line in counts.first_bad or counts.first_bad


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_pictures_of_extreme_shapes_are_trained(size, folder):
    from PIL import Image

    Image.new("RGB", size, "red").save(folder / "extreme.png")
    encoder = PictureEncoder(spec_of(folder), load_tokenizer(f"sp:{folder}/tokenizer.model"))
    record = ({"image": "extreme.png", "question": "a", "answer": "b"}, "f:1")
    (example,) = encoder.encode([record], Source(str(folder / "records.jsonl")), Counts(), [0])
    assert (example.ids == 386).sum() == example.note["places"] > 0


def test_too_many_crops_or_tokens_are_counted_drops(folder):
    tokenizer = load_tokenizer(f"sp:{folder}/tokenizer.model")
    record = ({"image": "3.png", "question": "a", "answer": "b"}, "f:1")
    source = Source(str(folder / "records.jsonl"))
    for changes in ({"row_crops": 1}, {"sequence_length": 40}):
        counts = Counts()
        spec = dataclasses.replace(spec_of(folder), **changes)
        assert PictureEncoder(spec, tokenizer).encode([record], source, counts, [0]) == []
        assert counts.overlong_dropped == 1
        with pytest.raises(BadRecord, match="crops of pictures, over sequence_length"):
            PictureEncoder(dataclasses.replace(spec, overlong="error"), tokenizer).encode(
                [record], source, Counts(), [0]
            )


def test_annotations_that_do_not_fit_one_row_get_the_picture_again(folder):
    tokenizer = load_tokenizer(f"sp:{folder}/tokenizer.model")
    talks = [{"question": "What colour is it?", "answer": "red"} for _ in range(6)]
    spec = dataclasses.replace(spec_of(folder, max_crops=1), sequence_length=128)
    found = PictureEncoder(spec, tokenizer).encode(
        [({"image": "0.png", "annotations": talks}, "f:1")], Source(str(folder / "records.jsonl")), Counts(), [0]
    )
    assert len(found) > 1 and all(len(example.ids) <= 128 for example in found)
    assert sum(len(example.note["branches"]) - 1 for example in found) == 6
    assert all((example.ids == 386).sum() == found[0].note["places"] for example in found)


def test_rows_are_bounded_in_tokens_and_in_crops():
    random = np.random.default_rng(0)
    lengths, crops = random.integers(10, 100, 300), random.integers(1, 8, 300)
    plan = best_fit(lengths, 200, extra=crops, room=9)
    for row in range(plan.rows):
        inside = plan.document[plan.row == row]
        assert lengths[inside].sum() <= 200 and crops[inside].sum() <= 9
    assert sorted(plan.document.tolist()) == list(range(300))
    assert plan.rows <= 1.1 * max(lengths.sum() / 200, crops.sum() / 9)


def test_packed_rows_of_stage_2_do_work():
    """Lengths as of the fine-tuning mixture (spec molmo §11.3): rows of 2304 hold one picture each and are half empty;
    packed into 8192 they are full."""
    random = np.random.default_rng(1)
    image = random.choice([316, 412, 740, 1196, 1276, 1460], 3000, p=[0.08, 0.05, 0.2, 0.5, 0.12, 0.05])
    lengths = np.minimum(image + random.integers(20, 700, 3000), 2304)
    crops = np.maximum(2, image // 92)
    plan = best_fit(lengths, 8192, extra=crops, room=80)
    assert lengths.sum() / (plan.rows * 8192) >= 0.9
    assert lengths.sum() / (3000 * 2304) < 0.75


def test_prompts_are_those_of_the_stages():
    import random

    rng = random.Random(0)
    hints = [picture_prompts.hinted("long_caption", "x" * 300, rng) for _ in range(2000)]
    bare = sum(hint == "long_caption :" for hint in hints)
    assert 150 < bare < 250
    numbers = [int(hint.split()[1][:-1]) for hint in hints if hint != "long_caption :"]
    assert abs(np.mean(numbers) - (300 / 15 - 0.5)) < 0.3 and 1.2 < np.std(numbers) < 2.2
    assert (len(picture_prompts.CAPTIONS), len(picture_prompts.POINTS), len(picture_prompts.COUNTS)) == (23, 43, 57)
    shown = sum(picture_prompts.asked("pointing", None, "dog", rng).startswith("pointing: ") for _ in range(3000))
    assert 240 < shown < 360
    assert picture_prompts.asked("vqa2", "Why?", "", rng) == "vqa2: Why?"
    assert picture_prompts.asked("pointing", None, "dog", None) == "Point to dog"
    talks = picture_records.annotations_of(
        {"label": "Dog", "points": []}, captions=False, rng=None, where="f"
    )  # nothing of what is asked for
    assert talks == [[{"role": "user", "content": "Point to dog"}, {"role": "assistant", "content": "There are none."}]]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"vision": None}, "kind 'pictures' needs vision"),
        ({"packing": "concat"}, "packing is 'best_fit' or 'none'"),
        ({"template": "tulu"}, "template 'tulu' is not for pictures"),
        ({"template": None}, "kind 'pictures' needs a template"),
    ],
)
def test_specs_that_cannot_be_are_one_line(changes, line, folder):
    with pytest.raises(UserError, match=line):
        spec_of(folder, **changes)
    with pytest.raises(UserError, match="vision is for kind 'pictures'"):
        DataSpec((Source("a.jsonl"),), "sp:t", 64, vision=VisionConfig())
    assert DataSpec.from_dict(json.loads(json.dumps(spec_of(folder).to_dict()))) == spec_of(folder)


RECIPE = """
from easylm_jax.config import *
from models.config import VisionConfig

VISION = VisionConfig(image=24, patch=3, margin=2, width=16, heads=2, ffn=20, layers=2, features=(-1, -2),
                      connector_ffn=28, start_id=384, end_id=385, patch_id=386, column_id=387, image_id=388,
                      extra_rows=8, max_crops=6)
MODEL = DecoderConfig("molmo", layers=1, width=32, heads=4, ffn=64, vocab=384, context=512, vision=VISION)
GROUPS = (ParameterGroup("vit", ("vision",), lr="1e-3 warmup 4 steps", clip=1.0),
          ParameterGroup("connector", ("connector", "embed.new"), lr="2e-3 warmup 2 steps", clip=1.0))
FROZEN = ("embed.new", "layers", "final_norm", "head", "vision", "connector")
DATA = DataSpec((Source("{folder}/records.jsonl"),), "sp:{folder}/tokenizer.model", 512, kind="pictures",
                template="molmo", vision=VISION, max_crops=2, annotation_weight="root")
recipe = Recipe("seeing", mesh="{mesh}", stages=(
    SFT("sft", model=MODEL, data=DATA, batch=4, accumulate=1, steps=6, validation=Validation(DATA, every=3),
        optimizer=OptimizerConfig("2e-3", groups=GROUPS, trainable=FROZEN, weight_decay=0.0),
        compute=Compute(remat="full")),
    GRPO("grpo", init="sft", data=DataSpec((Source("{folder}/prompts.jsonl"),), "sp:{folder}/tokenizer.model", 256,
         kind="prompts", template="molmo", vision=VISION, max_crops=2), batch=4, samples=2, steps=1,
         sampling=Sampling(6), reward=Reward(verifier="short_answer", missing_end=0.0),
         optimizer=OptimizerConfig("1e-4")),
))
"""


@pytest.fixture(params=["fsdp=2", pytest.param("fsdp=2,dp=2,tp=2", marks=pytest.mark.slow)])
def mesh(request, monkeypatch):
    """A mesh that stages and commands use all devices of."""
    with rl_kit.devices(math.prod(int(size) for size in re.findall(r"\d", request.param))):
        monkeypatch.setattr("easylm_jax.checkpoint.load.make_mesh", easylm_jax.train.stage.make_mesh)
        yield request.param


def test_a_stage_trains_on_pictures_through_the_one_train_step(folder, mesh, tmp_path, capsys):
    """With groups for the tower and the connector and a frozen table of embeddings."""
    from easylm_jax.checkpoint.load import load
    from easylm_jax.cli.main import main

    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.replace("{folder}", str(folder)).replace("{mesh}", mesh))
    assert main(["run", str(path), "--out", str(tmp_path / "runs")]) == 0
    lines = (tmp_path / "runs" / "seeing" / "sft" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    losses = [m["loss"] for m in metrics if "loss" in m]
    assert losses[-1] < losses[0] - 0.3
    assert {"lr", "lr_vit", "lr_connector"} <= set(metrics[-1])
    # Rollouts with pictures: the trainer's log-probabilities are the sampler's, so both saw the same.
    lines = (tmp_path / "runs" / "seeing" / "grpo" / "metrics.jsonl").read_text().splitlines()
    assert max(m["sampler_gap_max"] for m in map(json.loads, lines) if "sampler_gap_max" in m) < 1e-4
    # A benchmark about pictures, and `easylm generate --image`.
    run, result = str(tmp_path / "runs" / "seeing" / "sft"), tmp_path / "result.json"
    asked = write_jsonl(
        folder / "asked.jsonl", [{"question": "How many?", "number": n, "image": f"{n}.png"} for n in (1, 2)]
    )
    assert main(["eval", run, "--task", f"countbench_qa={asked}", "--max-new-tokens", "4", "--json", str(result)]) == 0
    (task,) = json.loads(result.read_text())["tasks"]
    assert task["n"] == 2 and 0 <= task["score"] <= 1
    capsys.readouterr()
    seen = ["--image", str(folder / "0.png"), "--draw", str(tmp_path / "shown.png"), "--max-new-tokens", "3"]
    assert main(["generate", run, "What colour is it?", *seen]) == 0 and (tmp_path / "shown.png").is_file()
    assert main(["generate", run, "What colour is it?", "--image", str(folder / "records.jsonl")]) == 2
    assert "it is not a picture" in capsys.readouterr().err
    seen = [*["--image", str(folder / "1.png")] * 9, "--max-crops", "6"]  # more tokens than the context of 512
    capsys.readouterr()
    assert main(["generate", run, "What colour is it?", *seen]) == 2
    assert "exceed the model's context of 512" in capsys.readouterr().err
    loaded = load(run)
    assert loaded.decoder.config.vision == vision_of(folder, layers=2, features=(-1, -2)) and loaded.template == "molmo"


def test_prompts_that_differ_only_in_their_picture_are_different(folder):
    from easylm_jax.data.picture_store import prompt_pictures

    spec = DataSpec((Source(str(folder / "prompts.jsonl")),), f"sp:{folder}/tokenizer.model", 256, kind="prompts",
                    template="molmo", vision=vision_of(folder), max_crops=2)  # fmt: skip
    cache = build_cache(spec, folder / "cache")
    batch = cache.read(np.arange(2))
    seen = prompt_pictures(cache, batch["prompt_index"])
    assert len(seen) == 2 and not np.array_equal(seen[0][0].crops, seen[1][0].crops)
    tokens = batch["tokens"][0][: batch["lengths"][0]]
    assert (tokens == 386).sum() == len(seen[0][0].patch_at) and (tokens[1] == 384)
    narrow = dataclasses.replace(spec, row_crops=1)
    with pytest.raises(UserError, match="all 6 are left out: 6 too long"):
        build_cache(narrow, folder / "cache")
