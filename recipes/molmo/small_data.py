"""Pictures that this project draws: up to five coloured shapes on a grid, with questions, counts, points and captions.

What a blind guesser can reach is known: `blind` of a held-out record is 1 where the best single answer to all questions
of its task is right for it.
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
TASKS = ("colour", "counting", "pointing")
Object = tuple[str, str, float, float, float]  # shape, colour, centre x and y in pixels, half a side


def scene(rng: random.Random) -> list[Object]:
    """One to five objects in different cells, a little off their middles."""
    step = SIDE / CELLS
    cells = rng.sample(range(CELLS * CELLS), rng.randint(1, 5))
    return [
        (rng.choice(SHAPES), rng.choice(list(COLOURS)), (cell % CELLS + 0.5) * step + rng.uniform(-1, 1),
         (cell // CELLS + 0.5) * step + rng.uniform(-1, 1), rng.uniform(3.5, 5.0))
        for cell in cells
    ]  # fmt: skip


def drawn(objects: Iterable[Object], rng: random.Random) -> str:
    """The picture as text, a PNG behind "data:image/png;base64,"."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(0, 50) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for shape, colour, x, y, half in objects:
        box = (x - half, y - half, x + half, y + half)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=COLOURS[colour])
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def percent(objects: Iterable[Object]) -> list[list[float]]:
    """The centres in percent of the picture's sides."""
    return [[round(100 * x / SIDE, 1), round(100 * y / SIDE, 1)] for _, _, x, y, _ in objects]


def regions(objects: Iterable[Object]) -> list[list[float]]:
    """The boxes round objects, in percent."""
    return [[100 * v / SIDE for v in (x - h, y - h, x + h, y + h)] for _, _, x, y, h in objects]


def asked(objects: list[Object], rng: random.Random) -> dict[str, dict[str, Any]]:
    """One question of each task that the picture allows, with its answer."""
    found: dict[str, dict[str, Any]] = {}
    single = [o for o in objects if sum(other[0] == o[0] for other in objects) == 1]
    if single:
        shape, colour = rng.choice(single)[:2]
        found["colour"] = {"question": f"What colour is the {shape}?", "answer": colour}
    shape = rng.choice(SHAPES)
    found["counting"] = {
        "question": f"How many {shape}s are there?",
        "answer": str(sum(o[0] == shape for o in objects)),
    }
    alone = [o for o in objects if sum(other[:2] == o[:2] for other in objects) == 1]
    if alone:
        target = rng.choice(alone)
        label = f"{target[1]} {target[0]}"
        found["pointing"] = {"question": f"Point to the {label}.", "label": label, "points": percent([target]),
                             "regions": regions([target])}  # fmt: skip
    return found


def caption(objects: list[Object]) -> str:
    """What there is, row by row."""
    ordered = sorted(objects, key=lambda o: (int(o[3] * CELLS / SIDE), int(o[2] * CELLS / SIDE)))
    return ", ".join(f"{colour} {shape}" for shape, colour, *_ in ordered) + "."


def training(count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Records with a caption and a question of each task about one picture."""
    records = []
    for _ in range(count):
        objects = scene(rng)
        talks: list[dict[str, Any]] = [{**talk, "style": ""} for talk in asked(objects, rng).values()]
        talks.append({"question": "What is here?", "answer": caption(objects), "style": ""})
        records.append({"image": drawn(objects, rng), "annotations": talks})
    return records


def held_out(task: str, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Records of one task with what its verifier needs, and whether the best blind answer is right."""
    records: list[dict[str, Any]] = []
    while len(records) < count:
        objects = scene(rng)
        talk = asked(objects, rng).get(task)
        if talk is not None:
            found = {**talk, "prompt": talk["question"], "image": drawn(objects, rng)}
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


def make(seed: int, *, pictures: int, questions: int) -> dict[str, list[dict[str, Any]]]:
    """The files of the recipe: training pictures, held-out questions of each task, and texts for the vocabulary."""
    records = training(pictures, random.Random(f"{seed}/train"))
    files = {"train.jsonl": records, "validation.jsonl": training(200, random.Random(f"{seed}/validation"))}
    for task in TASKS:
        files[f"{task}.jsonl"] = held_out(task, questions, random.Random(f"{seed}/{task}"))
    from easylm_jax.data.points import write

    texts = []
    for record in records[:2000]:
        for talk in record["annotations"]:
            answer = write(talk["points"], talk["label"]) if "points" in talk else talk["answer"]
            texts.append({"text": f" User: {talk['question']} Assistant: {answer}"})
    return {**files, "texts.jsonl": texts}
