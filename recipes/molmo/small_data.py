"""Pictures that this project draws: up to eight coloured shapes on a grid, and small bar charts, with questions,
counts, points and captions.

What a blind guesser can reach is known: `blind` of a held-out record is 1 where the best single answer to all questions
of its task is right for it. Each number from 0 to 5 is asked for equally often, in training too: with shapes drawn at
random, 0 and 1 would be most of the answers, and a model says these before it looks.
"""

import base64
import io
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

SIDE, CELLS = 36, 3  # pixels of a picture, and places on each side
COLOURS = {"red": (225, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 225), "yellow": (235, 205, 40)}
SHAPES = ("circle", "square", "triangle")
TASKS = ("colour", "counting", "pointing", "chart")
MOST, OBJECTS = 5, 8  # the largest number that is asked for, and the most objects of a picture
# Of so many training pictures one is a chart, and two have questions of counting alone: among all that is said about a
# picture, a number is one token in forty, and is learned too late.
CHARTS, COUNTED = 6, 2
Object = tuple[str, str, float, float, float]  # shape, colour, centre x and y in pixels, half a side


def scene(rng: random.Random) -> tuple[list[Object], tuple[str, str]]:
    """Objects in different cells, a little off their middles, and what is counted in them: a shape and a colour.

    Both are there 0 to `MOST` times, each number equally often.
    """
    targets = rng.choice(SHAPES), rng.choice(list(COLOURS))
    counts = [rng.randint(0, MOST) for _ in targets]
    total = rng.randint(max(1, *counts), OBJECTS)
    kinds = []
    for target, count, all_of_them in zip(targets, counts, (SHAPES, list(COLOURS)), strict=True):
        others = [kind for kind in all_of_them if kind != target]
        own = [target] * count + [rng.choice(others) for _ in range(total - count)]
        kinds.append(rng.sample(own, total))
    objects, step = [], SIDE / CELLS
    for shape, colour, cell in zip(*kinds, rng.sample(range(CELLS * CELLS), total), strict=True):
        x, y = ((place + 0.5) * step + rng.uniform(-1, 1) for place in (cell % CELLS, cell // CELLS))
        objects.append((shape, colour, x, y, rng.uniform(4.0, 5.0)))
    return objects, targets


def drawn(objects: Iterable[Object], rng: random.Random) -> str:
    """The picture as text, a PNG behind "data:image/png;base64,"."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(0, 50) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for shape, colour, x, y, half in objects:
        box = (x - half, y - half, x + half, y + half)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "triangle":
            pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=COLOURS[colour])
        else:
            pen.rectangle(box, fill=COLOURS[colour])
    return encoded(image)


def encoded(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def chart(rng: random.Random) -> tuple[list[str], list[int], str]:
    """A bar chart: the colours of its three bars from the left, their heights in pixels, and the picture."""
    from PIL import Image, ImageDraw

    colours, heights = rng.sample(list(COLOURS), 3), rng.sample(range(4, SIDE - 2, 5), 3)
    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(0, 50) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for number, (colour, height) in enumerate(zip(colours, heights, strict=True)):
        left = number * SIDE // 3 + 2
        pen.rectangle((left, SIDE - height, left + SIDE // 3 - 5, SIDE - 1), fill=COLOURS[colour])
    return colours, heights, encoded(image)


def percent(objects: Iterable[Object]) -> list[list[float]]:
    """The centres in percent of the picture's sides."""
    return [[round(100 * x / SIDE, 1), round(100 * y / SIDE, 1)] for _, _, x, y, _ in objects]


def regions(objects: Iterable[Object]) -> list[list[float]]:
    """The boxes round objects, in percent."""
    return [[100 * v / SIDE for v in (x - h, y - h, x + h, y + h)] for _, _, x, y, h in objects]


def named(value: str) -> str:
    """What is counted, in words."""
    return f"{value}s" if value in SHAPES else f"{value} shapes"


def counting(objects: list[Object], value: str) -> dict[str, Any]:
    """How many objects have a shape or a colour."""
    return {"question": f"How many {named(value)} are there?", "answer": str(sum(value in o[:2] for o in objects))}


def asked(objects: list[Object], targets: tuple[str, str], rng: random.Random) -> dict[str, dict[str, Any]]:
    """One question of each task that the picture allows, with its answer."""
    found: dict[str, dict[str, Any]] = {"counting": counting(objects, rng.choice(targets))}
    single = [o for o in objects if sum(other[0] == o[0] for other in objects) == 1]
    if single:
        shape, colour = rng.choice(single)[:2]
        found["colour"] = {"question": f"What colour is the {shape}?", "answer": colour}
    alone = [o for o in objects if sum(other[:2] == o[:2] for other in objects) == 1]
    if alone:
        chosen = rng.choice(alone)
        label = f"{chosen[1]} {chosen[0]}"
        found["pointing"] = {"question": f"Point to the {label}.", "label": label, "points": percent([chosen]),
                             "regions": regions([chosen])}  # fmt: skip
    return found


def tallest(colours: list[str], heights: list[int]) -> dict[str, Any]:
    """Which bar of a chart is the tallest."""
    return {"question": "Which bar is the tallest?", "answer": colours[heights.index(max(heights))]}


def caption(objects: list[Object]) -> str:
    """What there is, row by row."""
    ordered = sorted(objects, key=lambda o: (int(o[3] * CELLS / SIDE), int(o[2] * CELLS / SIDE)))
    return ", ".join(f"{colour} {shape}" for shape, colour, *_ in ordered) + "."


def training(count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Records with all that is said about one picture: a caption and questions of each task, or of counting alone."""
    records = []
    for number in range(count):
        kind = number % CHARTS
        if kind == 0:
            colours, heights, image = chart(rng)
            talks = [tallest(colours, heights), {"question": "What is here?", "answer": ", ".join(colours) + "."}]
        else:
            objects, targets = scene(rng)
            image = drawn(objects, rng)
            talks = [counting(objects, target) for target in targets]
            if kind > COUNTED:
                talks += [talk for task, talk in asked(objects, targets, rng).items() if task != "counting"]
                talks.append({"question": "What is here?", "answer": caption(objects)})
        records.append({"image": image, "annotations": [{**talk, "style": ""} for talk in talks]})
    return records


def pointed(count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Records of the second part: two things to point to in a picture, beside counts and a colour; charts as before."""
    records = []
    for number in range(count):
        if number % CHARTS == 0:
            colours, heights, image = chart(rng)
            talks = [tallest(colours, heights)]
        else:
            objects, targets = scene(rng)
            image = drawn(objects, rng)
            talks = [counting(objects, target) for target in targets]
            talks += [talk for task, talk in asked(objects, targets, rng).items() if task != "counting"]
            other = asked(objects, targets, rng).get("pointing")
            talks += [other] if other is not None and other not in talks else []
        records.append({"image": image, "annotations": [{**talk, "style": ""} for talk in talks]})
    return records


def make_points(seed: int, *, pictures: int) -> dict[str, list[dict[str, Any]]]:
    """The file of the second part."""
    return {"train.jsonl": pointed(pictures, random.Random(f"{seed}/points"))}


def held_out(task: str, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Records of one task with what its verifier needs, and whether the best blind answer is right."""
    records: list[dict[str, Any]] = []
    while len(records) < count:
        if task == "chart":
            colours, heights, image = chart(rng)
            talk = tallest(colours, heights)
        else:
            objects, targets = scene(rng)
            questions = asked(objects, targets, rng)
            if task not in questions:
                continue
            talk, image = questions[task], drawn(objects, rng)
        found = {**talk, "prompt": talk["question"], "image": image}
        records.append(found if task != "counting" else {**found, "count": int(talk["answer"])})
    guess = best_guess(task, records)
    return [{**record, "blind": float(fits(task, guess, record))} for record in records]


def best_guess(task: str, records: list[dict[str, Any]]) -> Any:
    """The one answer that is right for most records; of points, the best of a fine grid."""
    if task != "pointing":
        return Counter(record["answer"] for record in records).most_common(1)[0][0]
    places = [(x, y) for x in range(2, 100, 4) for y in range(2, 100, 4)]
    return max(places, key=lambda place: sum(fits(task, place, record) for record in records))


def fits(task: str, guess: Any, record: Mapping[str, Any]) -> bool:
    """Whether a guess is right for a record."""
    if task != "pointing":
        return record["answer"] == guess
    left, top, right, bottom = record["regions"][0]
    return left <= guess[0] <= right and top <= guess[1] <= bottom


def blind(response: str, record: Mapping[str, Any]) -> float:
    """The score of the best blind answer, whatever the response is: what chance gives."""
    return record["blind"]


def make(seed: int, *, pictures: int) -> dict[str, list[dict[str, Any]]]:
    """Training pictures, those of validation, and texts for the vocabulary."""
    from easylm_jax.data.points import write

    records = training(pictures, random.Random(f"{seed}/train"))
    texts = []
    for record in records[:2000]:
        for talk in record["annotations"]:
            answer = write(talk["points"], talk["label"]) if "points" in talk else talk["answer"]
            texts.append({"text": f" User: {talk['question']} Assistant: {answer}"})
    validation = training(200, random.Random(f"{seed}/validation"))
    return {"train.jsonl": records, "validation.jsonl": validation, "texts.jsonl": texts}


def make_questions(seed: int, *, count: int) -> dict[str, list[dict[str, Any]]]:
    """Held-out questions of each task."""
    return {f"{task}.jsonl": held_out(task, count, random.Random(f"{seed}/{task}")) for task in TASKS}
