"""Points and counts: written, read in every form that Molmo models wrote, matched with targets, and drawn."""

import random

import numpy as np
import pytest

from easylm_jax.evaluate import pointing
from easylm_jax.rewards import pictures, verifier
from models.errors import UserError
from recipes.molmo import held_out, real_pictures, small_data


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_points_come_back_from_their_text(count):
    rng = random.Random(count)
    points = [(rng.choice([0.0, 50.0, 100.0, rng.uniform(0, 100)]), rng.uniform(0, 100)) for _ in range(count)]
    text = pointing.write(points, "dog")
    assert pointing.read(text) == pointing.in_order(points)
    assert pointing.is_well_formed(text) == (count > 0)
    counted = pointing.write_count(points, "dog")
    assert pointing.read_count(counted) == count and pointing.read(counted) == pointing.in_order(points)


def test_the_text_of_points_is_that_of_the_format():
    assert pointing.write([(12.34, 100)], "dog") == '<point x="12.3" y="100.0" alt="dog">dog</point>'
    two = '<points x1="5.0" y1="9.0" x2="5.0" y2="20.0" alt="a">b</points>'
    assert pointing.write([(5, 20), (5.04, 9)], "b", "a") == two
    assert pointing.write([], "dog") == "There are none."
    assert pointing.write_count([(1, 2)], "x") == (
        'Counting the <point x="1.0" y="2.0" alt="x">x</point> shows a total of 1.'
    )


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("Click(12.5, 40.0)", [(12.5, 40)]),
        ("Long Press(1.0, 2.5)", [(1, 2.5)]),
        ("(1.0, 2.0)\n(3.5, 4.5)", [(1, 2), (3.5, 4.5)]),
        ('<point x="10" y="20.5" alt="a">a</point>', [(10, 20.5)]),
        ("<point x=10.0 y=20.0>", [(10, 20)]),
        ('<points x1="1.0" y1="2.0" x2="3.0" y2="4.0">', [(1, 2), (3, 4)]),
        ('x1="1.0" y2="2.0"', []),
        ("1=123,456 2=007,999", [(12.3, 45.6), (0.7, 99.9)]),
        ("p=500,500", [(50, 50)]),
        ('<point x="101.0" y="20.0" alt="a">a</point>', []),
        ('<points x1="1.0" y1="2.0" x2="300.0" y2="4.0" alt', [(1, 2)]),
        ("nothing", []),
        ("", []),
    ],
)
def test_every_form_of_points_is_read_once(text, points):
    found = pointing.read(text)
    assert len(found) == len(points) and np.allclose(found, points)


def test_pixels_are_of_the_original_picture():
    assert pointing.to_pixels([(50, 25), (100, 0)], 640, 480) == [(320, 120), (640, 0)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("7", 7), ("There are 3.", 3), ("I see twelve", 12), ("a total of 5 dogs", 5), ("a total of nine here", 9),
        ("There are none.", 0), ("none of them", 0), ("many", None), ("", None), ("1e5", None), ("9" * 40, None),
    ],
)  # fmt: skip
def test_counts_are_read_as_the_metric_says(text, count):
    assert pointing.read_count(text) == count


RECORD = {"points": [[10, 10], [50, 50]], "regions": [[5, 5, 15, 15], [40, 40, 60, 60]]}


@pytest.mark.parametrize(
    ("points", "precision", "recall"),
    [
        ([(12, 8), (55, 45)], 1, 1),
        ([(12, 8)], 1, 0.5),
        ([(12, 8), (50, 50), (90, 90), (95, 95)], 0.5, 1),
        ([(80, 80), (90, 90)], 0, 0),
        ([(50, 50), (51, 51)], 0.5, 0.5),  # one target is hit once
        ([], 0, 0),
    ],
)
def test_points_are_matched_one_to_one(points, precision, recall):
    found = pointing.matched(pointing.write(points, "x"), RECORD)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert found == pytest.approx((precision, recall, f1))


def test_nothing_to_point_at_and_malformed_responses():
    nothing = {"points": []}
    assert pointing.matched("There are none.", nothing) == (1, 1, 1)
    assert pointing.matched("(1.0, 2.0)", nothing) == (0, 0, 0)
    text = "They are " + pointing.write([(10, 10), (50, 50)], "x")
    assert pictures.points_f1(text, RECORD) == 1 and pictures.points_f1(text, RECORD, strict=True) == 0
    assert pictures.points_f1("(53.0, 54.0)", {"points": [[50, 50]]}) == 1  # within a radius of 5 %
    assert pictures.points_f1("(54.0, 54.0)", {"points": [[50, 50]]}) == 0
    assert verifier("points_f1(radius=10)")("(54.0, 54.0)", {"points": [[50, 50]]}) == 1


def test_assignment_has_the_least_sum():
    """The nearest target of each point would give one target twice."""
    cost = np.array([[1.0, 2.0], [1.0, 9.0]])
    assert pictures.assign(cost) == [(0, 1), (1, 0)]


def test_counting_by_hand():
    found = pointing.counting([(2, 2), (3, 2), (None, 5), (5, 5), (9, 2), (0, 0)])
    assert found["accuracy"] == pytest.approx(3 / 6) and found["within_one"] == pytest.approx(4 / 6)
    assert found["valid"] == pytest.approx(5 / 6)
    assert found["by_count"] == pytest.approx({0: 1, 2: 1 / 3, 5: 1 / 2})
    assert found["macro"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert (pictures.count("four", {"count": 4}), pictures.count("5", {"count": 4}, within=1)) == (1, 1)
    assert (pictures.count_valid("?", {}), pictures.short_answer(" Red. ", {"answer": ["red", "rose"]})) == (0, 1)


def test_points_are_drawn_where_they_are():
    pixels = np.zeros((60, 120, 3), np.uint8)
    shown = np.asarray(pointing.draw(pixels, [(25, 50)]))
    painted = np.argwhere(shown.any(-1))
    assert shown.shape == pixels.shape and np.abs(painted.mean(0) - [30, 32]).max() < 4


def test_a_report_shows_pictures_beside_responses_with_points_drawn(tmp_path):
    """One question about two pictures is two prompts; what is no picture is not shown."""
    import fake_run
    from PIL import Image

    from easylm_jax import report
    from easylm_jax.rewards.pictures import shown

    run = fake_run.quickstart(tmp_path)
    big, lines = tmp_path / "big.png", []
    Image.new("RGB", (900, 600), "navy").save(big)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "small.png")
    text = pointing.write([(50, 50), (10, 20)], "x")
    for number, path in enumerate((big, tmp_path / "small.png")):
        lines.append({"task": "see", "number": number, "prompt": "Where?", "method": "one", "response": text,
                      **shown({"_images": [{"path": str(path)}]}, text)})  # fmt: skip
    odd = [{"data": "javascript:x", "width": 2, "height": 2}, {"data": 'data:image/png;base64,"><b>', "width": 1}, 3]
    lines.append({"task": "see", "number": 2, "prompt": "Else?", "method": "one", "response": "", "pictures": odd})
    assert shown({}, text) == {} and lines[0]["points"] == [(10, 20), (50, 50)]
    assert [lines[n]["pictures"][0]["width"] for n in (0, 1)] == [320, 30]
    fake_run.stage(run, "seen", "Evaluate", done={})
    fake_run.write_lines(run / "seen" / "samples.jsonl", lines)
    fake_run.write_json(run / "seen" / "table.json", {"title": "Seen", "tasks": [], "rows": []})
    page = report.write(run).read_text()
    assert page.count('<image href="data:image/jpeg;base64,') == page.count('<image href="data:image/png;base64,') == 2
    assert '<circle cx="160.0" cy="106.5"' in page and ">2</text>" in page and "javascript:" not in page
    assert page.count("<pre>Where?</pre>") == 2 and page.count("<pre>Else?</pre>") == 1
    assert "img-src data:" in page


def test_the_pictures_of_the_small_recipe_hold_what_is_asked_for():
    from models.molmo import decode

    files = {**small_data.make(3, pictures=20), **small_data.make_questions(3, count=30)}
    record = files["train.jsonl"][0]
    assert decode.read(record["image"]).shape == (36, 36, 3) and len(record["annotations"]) == 2
    again = {**small_data.make(3, pictures=20), **small_data.make_questions(3, count=30)}
    assert again == files  # a function of the seed
    more = small_data.make_points(3, pictures=20)["train.jsonl"]
    assert more == small_data.make_points(3, pictures=20)["train.jsonl"]
    pointed = [sum("points" in talk for talk in record["annotations"]) for record in more]
    assert max(pointed) == 2 and sum(pointed) > 20 and len(more[0]["annotations"]) == 1  # the first is a chart
    right = {"colour": "short_answer", "counting": "count", "pointing": "points_f1", "chart": "short_answer"}
    for task, name in right.items():
        records = files[f"{task}.jsonl"]
        answers = [r.get("answer") or pointing.write(r["points"], r["label"]) for r in records]
        assert all(verifier(name)(answer, r) == 1 for answer, r in zip(answers, records, strict=True))
        assert 0 < np.mean([small_data.blind("", r) for r in records]) < 0.75
        for r in records[:5]:  # the colour in the picture is the one that is said
            if task == "pointing":
                x, y = (int(v * 36 / 100) for v in r["points"][0])
                want = small_data.COLOURS[r["label"].split()[0]]
                assert np.abs(decode.read(r["image"])[y, x].astype(int) - want).max() < 60


def test_real_pictures_are_divided_into_training_and_held_out_questions(shared_data, monkeypatch):
    monkeypatch.setattr(real_pictures, "DATA", str(shared_data))
    files = real_pictures.make(1)
    assert len(files["train.jsonl"]) == 80 + 65 and len(files["answers.jsonl"]) == 16
    assert len(files["counting.jsonl"]) == len(files["pointing.jsonl"]) == 40
    trained = {name for record in files["train.jsonl"] for name in record["images"]}
    for task, name in held_out.VERIFIERS.items():
        for record in files[f"{task}.jsonl"]:
            gold = record.get("answer", [str(record.get("count"))])[0]
            text = pointing.write(record["points"], "x") if task == "pointing" else gold
            assert verifier(name)(text, record) == 1 and not trained & set(record["images"])
        assert 0 < np.mean([record["blind"] for record in files[f"{task}.jsonl"]]) < 1


def test_records_of_ones_own_are_asked_as_their_annotations_say(tmp_path):
    from support import write_jsonl

    talks = [
        {"question": "What is it?", "answer": ["cat", "a cat"], "style": "vqa2"}, {"caption": "A cat."},
        {"label": "Cat", "points": [[10, 20]]}, {"label": "Dog", "points": [], "style": "point_count"},
        {"question": "How many?", "answer": "2"},
    ]  # fmt: skip
    records = [{"image": f"{n}.png", "annotations": talks} for n in range(10)]
    files = held_out.make(0, records=str(write_jsonl(tmp_path / "r.jsonl", records)))
    assert [record["images"] for record in files["train.jsonl"]] == [[str(tmp_path / f"{n}.png")] for n in range(10)
                                                                     if n not in (4, 9)]  # fmt: skip
    assert held_out.tasks_of(held_out.read(tmp_path / "r.jsonl")) == ["answers", "counting", "pointing"]
    assert [r["prompt"] for r in files["counting.jsonl"]] == ["How many dog are there?"] * 2 + ["How many?"] * 2
    assert files["answers.jsonl"][0]["prompt"] == "vqa2: What is it?" and files["answers.jsonl"][0]["blind"] == 1
    assert files["pointing.jsonl"][0]["prompt"] == "Point to cat" and len(files["pointing.jsonl"]) == 2
    for line in ("{", "3", '{"image": 3}'):
        (tmp_path / "bad.jsonl").write_text(line)
        with pytest.raises(UserError, match=r"bad\.jsonl:1"):
            held_out.read(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match="cannot read"):
        held_out.read(tmp_path / "none.jsonl")


@pytest.mark.slow
def test_a_model_from_scratch_sees_counts_and_points(tmp_path):
    """`recipes/molmo/small.py`, whole: every score is above the best blind answer by more than 5 standard errors."""
    import json

    from easylm_jax.cli.main import main

    assert main(["run", "recipes/molmo/small.py", "--out", str(tmp_path)]) == 0
    tasks = json.loads((tmp_path / "molmo-small" / "table" / "models" / "pointing.json").read_text())["tasks"]
    for task in small_data.TASKS:
        scores = np.array(tasks[task]["scores"])
        lines = (tmp_path / "molmo-small" / "questions" / f"{task}.jsonl").read_text().splitlines()
        chance = np.mean([json.loads(line)["blind"] for line in lines])
        assert scores.mean() > chance + 5 * scores.std(ddof=1) / len(scores) ** 0.5, task
