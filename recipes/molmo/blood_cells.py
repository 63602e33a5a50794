"""The blood cells of BCCD (MIT licence) as records of pictures: counts of white cells and platelets, points of both.

The folder is `vision/bccd` of `EASYLM_DATA` (`shared/data` beside the checkout without it): `annotations.jsonl` with
boxes in pixels, and `images/`. Red cells, up to thirty in a picture, are left out.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from easylm_jax.data.points import write
from models.errors import UserError

DATA = os.environ.get("EASYLM_DATA", str(Path(__file__).resolve().parents[3] / "shared" / "data"))
NAMES = {"WBC": "white cell", "Platelets": "platelet"}


def make(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Files of training records, held-out questions of both tasks, and texts for the vocabulary."""
    folder = Path(DATA) / "vision" / "bccd"
    try:
        lines = (folder / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {folder}/annotations.jsonl: {error.strerror}; set EASYLM_DATA") from None
    pictures = [json.loads(line) for line in lines]
    held = len(pictures) // 5
    train = [record for picture in pictures[:-held] for record in [_record(picture, folder)]]
    tests = [test for picture in pictures[-held:] for test in _tests(picture, folder)]
    files: dict[str, list[dict[str, Any]]] = {"train.jsonl": train}
    for task in ("counting", "pointing"):
        chosen = [test for test in tests if test["task"] == task]
        files[f"{task}.jsonl"] = _with_blind(task, chosen)
    texts = [
        f" User: {talk['question']} Assistant: {talk.get('answer') or write(talk['points'], talk['label'])}"
        for record in train for talk in record["annotations"]
    ]  # fmt: skip
    return {**files, "texts.jsonl": [{"text": text} for text in texts * 4]}


def _targets(picture: dict[str, Any], label: str) -> tuple[list[list[float]], list[list[float]]]:
    """Centres and boxes of the cells of one kind, in percent."""
    scale = (100 / picture["width"], 100 / picture["height"])
    boxes = [box["bbox_xywh"] for box in picture["boxes"] if box["label"] == label]
    regions = [[x * scale[0], y * scale[1], (x + w) * scale[0], (y + h) * scale[1]] for x, y, w, h in boxes]
    centres = [[min(100.0, round((a + c) / 2, 1)), min(100.0, round((b + d) / 2, 1))] for a, b, c, d in regions]
    return centres, regions


def _talks(picture: dict[str, Any]) -> list[dict[str, Any]]:
    talks: list[dict[str, Any]] = []
    for label, name in NAMES.items():
        centres, regions = _targets(picture, label)
        count = {"question": f"How many {name}s are there?", "answer": str(len(centres)), "count": len(centres)}
        points = {"question": f"Point to each {name}.", "label": name, "points": centres, "regions": regions}
        talks += [{**count, "task": "counting"}, {**points, "task": "pointing"}]
    return [{**talk, "style": ""} for talk in talks]


def _record(picture: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"image": str(folder / picture["image"]), "annotations": _talks(picture)}


def _tests(picture: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    image = str(folder / picture["image"])
    return [{**talk, "prompt": talk["question"], "image": image} for talk in _talks(picture)]


def _with_blind(task: str, tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the best answer to each question scores without a look at the picture."""
    from easylm_jax.rewards.pictures import pointing

    done = []
    for question in dict.fromkeys(test["question"] for test in tests):
        own = [test for test in tests if test["question"] == question]
        if task == "counting":
            guess = Counter(test["count"] for test in own).most_common(1)[0][0]
            done += [{**test, "blind": float(test["count"] == guess)} for test in own]
            continue
        guesses = ["There are none.", *(f'x="{x}" y="{y}"' for x in range(5, 100, 10) for y in range(5, 100, 10))]
        best = max(guesses, key=lambda guess: sum(pointing(guess, test).f1 for test in own))
        done += [{**test, "blind": pointing(best, test).f1} for test in own]
    return done
