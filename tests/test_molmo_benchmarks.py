"""Benchmarks about pictures: metrics by hand, and what each asks of a document in the published form."""

import pytest

from easylm_jax.evaluate import benchmark
from easylm_jax.evaluate.benchmark import Response
from easylm_jax.evaluate.metrics import pictures
from models.errors import UserError

NAMES = (
    "ai2d", "chartqa", "vqa2", "docvqa", "infographic_vqa", "textvqa", "realworldqa", "mmmu", "mathvista",
    "countbench_qa", "pixmo_count",
)  # fmt: skip


def said(text):
    return Response(texts=(text,))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("red", "red"), ("First.\nAnswer: blue", "blue"), ("a\nb\nb", "b"), ("  two   words ", "two words"), ("", ""),
    ],
)  # fmt: skip
def test_what_a_response_says(text, answer):
    assert pictures.answer_of(text) == answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Two dogs!", "2 dogs"), ("none", "0"), ("dont know", "don't know"), ("a man, an ape", "man ape"),
        ("3.5 km", "3.5 km"), ("Yes.", "yes"),
    ],
)  # fmt: skip
def test_the_normal_form_of_short_answers(text, normal):
    assert pictures.vqa_normal(text) == normal


def test_vqa_score_counts_annotators():
    answers = ["red", "Red", "the red", "blue", "green", "blue"]
    assert pictures.vqa_score(answers, said("red.")) == 1
    assert pictures.vqa_score(answers, said("blue")) == pytest.approx(2 / 3)
    assert pictures.vqa_score(answers, said("pink")) == 0


def test_anls_by_hand():
    assert pictures.edit_distance("kitten", "sitting") == 3
    assert pictures.anls(["hello"], said("HELLO")) == 1
    assert pictures.anls(["hello", "help"], said("helo")) == pytest.approx(0.8)
    assert pictures.anls(["abcd"], said("abxy")) == 0  # half is too far
    assert pictures.anls(["abcde"], said("abxye")) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("100", "104.9", 1), ("100", "105.1", 0), ("12%", "0.12", 1), ("0", "0", 1), ("0", "0.01", 0),
        ("Brazil", "brazil", 1), ("1,000", "1000", 1), ("5", "five", 0),
    ],
)  # fmt: skip
def test_relaxed_accuracy(gold, text, right):
    assert pictures.relaxed(gold, said(text)) == right


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("B", 1), ("(c)", 2), ("red fox", 0), ("fox", 0), ("wolves", 1), ("the owl", 2), ("Answer: B.", 1), ("Z", 2)
    ],
)  # fmt: skip
def test_the_option_that_an_answer_means(text, number):
    assert pictures.choose(text, ["red fox", "grey wolves", "owl"]) == number


DOCUMENTS = {
    "ai2d": ({"question": "What eats?", "options": ["fox", "owl"], "answer": "1", "image": "a.png"}, "B", "A"),
    "chartqa": ({"question": "How much?", "answer": "40", "image": "a.png"}, "41", "45"),
    "vqa2": ({"question": "Is it?", "answers": [{"answer": "yes"}] * 10, "image": "a.png"}, "Yes", "no"),
    "docvqa": ({"question": "Who?", "answers": ["Ann Lee"], "image": "a.png"}, "ann lee", "Bob"),
    "infographic_vqa": ({"question": "Who?", "answers": ["Ann Lee"], "image": "a.png"}, "ann lee", "Bob"),
    "textvqa": ({"question": "Sign?", "answers": ["stop"] * 10, "image": "a.png"}, "stop", "go"),
    "realworldqa": (
        {"question": "Where?\nA. Left\nB. Right\nPlease answer directly.", "answer": "B", "image": "a.png"}, "Right",
        "Left",
    ),
    "mmmu": (
        {"question": "Which <image 1>?", "options": "['x', 'y', 'z']", "answer": "C", "image_1": "a.png",
         "image_2": None, "id": "validation_Art_Theory_3"}, "z", "x",
    ),
    "mathvista": (
        {"question": "How long?", "choices": None, "answer": "2.5", "precision": 1.0, "decoded_image": "a.png"},
        "It is 2.50", "3",
    ),
    "countbench_qa": ({"question": "How many?", "number": 4, "image": "a.png"}, "a total of 4.", "5"),
    "pixmo_count": ({"label": "Dogs", "count": 0, "image": "a.png"}, "There are none.", "1"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_asked_and_scored(name):
    document, right, wrong = DOCUMENTS[name]
    one = benchmark.load(name)
    assert set(one.columns) <= set(document) and one.images(document) == ["a.png"]
    prompt = one.prompt(document)
    assert "<image" not in prompt and "Please" not in prompt and prompt.strip()
    subject = document if one.metric.of_document else one.label(document)
    assert one.metric.score(subject, said(right)) == 1
    assert one.metric.score(subject, said(wrong)) < 1
    counting = name in ("countbench_qa", "pixmo_count")
    assert (one.max_crops, one.sampling.max_new_tokens) == ((12, 192) if counting else (36, 12))
    if name == "mmmu":
        assert one.group(document) == "Art_Theory" and prompt.startswith("a_okvqa_mc: Which ?\nA: x\nB: y\nC: z")


def test_cap_f1_is_read_from_one_reply_of_a_judge():
    from easylm_jax.evaluate.benchmarks import cap_f1

    one, tuned = benchmark.load("cap_f1"), benchmark.load("cap_f1:tuned")
    document = {"image": "a.png", "transcripts": ["A cat, it is black."], "statements": ["a cat", "it is black", "x"]}
    assert one.images(document) == ["a.png"] and one.prompt(document) == "long_caption 65:"
    assert tuned.prompt(document) == "Describe this picture."
    (turn,) = one.judge(document, "A black dog sits.")
    assert all(part in turn["content"] for part in ("A cat, it is black.", "2. it is black", "A black dog sits."))

    def scores(text, reply):
        response = Response(texts=(text,), replies=(reply,))
        return {metric.name: metric.score(document, response) for metric in one.metrics}

    found = scores("A black dog sits.", "Stated: 2\n- it is black | yes\n- a dog | no\n- it sits | No.")
    assert found["precision"] == (pytest.approx(1 / 3), 1) and found["recall"] == (pytest.approx(1 / 3), 1)
    assert found["f1"] == (pytest.approx(1 / 3), 1) and found["unread"] == 0
    assert scores("A", "stated: none\nA | no")["f1"] == (0, 1)
    for reply in ("", "Stated: 2", "a | yes", "Stated: 4\na | yes", "Stated: ?\na | yes"):
        assert cap_f1.read(reply, 3) is None
        assert scores("A", reply) == {"f1": (0, 0), "precision": (0, 0), "recall": (0, 0), "unread": 1}
    assert scores(" ", "") == {"f1": (0, 1), "precision": (0, 1), "recall": (0, 1), "unread": 0}  # no caption at all


def test_the_crops_that_a_benchmark_shows_are_a_setting():
    from easylm_jax.config import Ask
    from easylm_jax.evaluate.asking import resolve

    assert [resolve(Ask("ai2d", max_crops=most)).max_crops for most in (None, 4)] == [36, 4]
    with pytest.raises(UserError, match="gsm8k asks about no pictures; leave --max-crops out"):
        resolve(Ask("gsm8k", max_crops=4))


def test_the_ablations_change_what_their_rows_say():
    from easylm_jax.config import Evaluate
    from recipes.molmo import published, table2_model, table3_data

    for recipe, rows in ((table2_model.recipe, published.MODEL), (table3_data.recipe, published.DATA)):
        tables = [stage for stage in recipe.stages if isinstance(stage, Evaluate)]
        found = {entry.method for table in tables[1:] for entry in table.entries}
        assert found == set(rows) and {one.method for table in tables for one in table.published} == set(rows)
        settings = [str({**vars(stage), "name": ""}) for stage in recipe.stages if stage.name.startswith("mixture")]
        assert len(set(settings)) == len(settings) == len(rows)
    model, data = table2_model.recipe.stage, table3_data.recipe.stage
    assert model("start-siglip").tower == "hf:google/siglip-so400m-patch14-384"
    assert model("mixture-siglip").init == "captions-siglip" and model("mixture-siglip").data.vision.max_crops == 8
    assert model("captions-4-crops").data.max_crops == 4 and model("captions-4-crops").init == "start"
    assert model("mixture-no-overlap").data.vision.margin == 0 == model("start-no-overlap").vision.margin
    assert model("mixture-one-clip-in-fine-tuning").init == "captions"
    assert {group.clip for group in model("captions-one-clip").optimizer.groups} == {"shared"}
    assert {group.clip for group in model("captions").optimizer.groups} == {1.0}
    assert data("mixture-no-captions").init == "start"
    assert len(data("mixture-without-pointing").data.sources) == len(data("mixture").data.sources) - 3
    assert data("captions-89k-captions").data.sources[0].limit == 89_000 and data("captions-89k-captions").steps == 2788
