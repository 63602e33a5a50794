"""Real pictures as records of docs/molmo.md: the blood cells of BCCD and a grocery shop (both MIT licence).

The folders are `vision/bccd` and `vision/grocery` of `EASYLM_DATA` (`shared/data` beside the checkout without it):
`annotations.jsonl` and `images/`. Of the blood, white cells and platelets are counted and pointed at; red cells, up to
thirty in a picture, are left out. Of a grocery it is asked whether it is in a package.
"""

import json
import os
from pathlib import Path
from typing import Any

from models.errors import UserError
from recipes.molmo import held_out

DATA = os.environ.get("EASYLM_DATA", str(Path(__file__).resolve().parents[3] / "shared" / "data"))
CELLS = {"WBC": "white cell", "Platelets": "platelet"}
PACKED = ("juice", "milk", "ghurt", "cream")  # what the classes of packages have in their names


def make(seed: int) -> dict[str, list[dict[str, Any]]]:
    """The files of `held_out.files_of` for both sets together."""
    return held_out.files_of([*blood_cells(), *groceries()])


def blood_cells() -> list[dict[str, Any]]:
    """Two questions of counting and two of pointing about each of 100 pictures."""
    return [{"images": [image], "annotations": _cells(facts)} for image, facts in _listed("bccd")]


def groceries() -> list[dict[str, Any]]:
    """One question about each of 81 pictures."""
    return [
        {
            "images": [image], "question": "Is it in a package?", "style": "",
            "answer": "yes" if any(word in facts["coarse_class"].lower() for word in PACKED) else "no",
        }
        for image, facts in _listed("grocery")
    ]  # fmt: skip


def _listed(name: str) -> list[tuple[str, dict[str, Any]]]:
    folder = Path(DATA) / "vision" / name
    try:
        lines = (folder / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {folder}/annotations.jsonl: {error.strerror}; set EASYLM_DATA") from None
    return [(str(folder / facts["image"]), facts) for facts in map(json.loads, lines)]


def _cells(facts: dict[str, Any]) -> list[dict[str, Any]]:
    talks: list[dict[str, Any]] = []
    across, down = 100 / facts["width"], 100 / facts["height"]
    for kind, name in CELLS.items():
        boxes = [box["bbox_xywh"] for box in facts["boxes"] if box["label"] == kind]
        regions = [[x * across, y * down, (x + w) * across, (y + h) * down] for x, y, w, h in boxes]
        centres = [[min(100.0, round((a + c) / 2, 1)), min(100.0, round((b + d) / 2, 1))] for a, b, c, d in regions]
        talks.append({"question": f"How many {name}s are there?", "answer": str(len(centres)), "style": ""})
        talks.append({"question": f"Point to each {name}.", "label": name, "points": centres, "regions": regions,
                      "style": ""})  # fmt: skip
    return talks
