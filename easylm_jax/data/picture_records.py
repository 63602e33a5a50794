"""Records about pictures: a file name and what is said about it, as conversations.

A record has `image` (or `images`), paths relative to its file's folder or files as text
("data:image/png;base64,…"), and one annotation or a list `annotations`:

    {"image": "a.jpg", "question": "What colour is the ball?", "answer": "red", "style": "vqa2"}
    {"image": "a.jpg", "caption": "A red ball lies on a table …"}
    {"image": "a.jpg", "label": "ball", "points": [[51.5, 40.2]]}          percent of width and height
    {"image": "a.jpg", "label": "ball", "points": […], "style": "point_count"}
    {"image": "a.jpg", "annotations": [{…}, {…}]}
    {"image": "a.jpg", "messages": [{"role": "user", "content": …}, …]}

A record without a picture is text alone: messages, or a question and an answer.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easylm_jax.data import picture_prompts, points
from easylm_jax.data.examples import checked_text, messages_in
from easylm_jax.data.records import BadRecord, Record
from models.molmo.decode import is_inline

Messages = list[dict[str, str]]
MOST_POINTS = 40  # pictures with more were left out of training (paper, appendix F)


def paths_of(record: Record, root: Path, where: str) -> list[str]:
    """The files of a record's pictures; `BadRecord` where one is no name."""
    value = record.get("images", record.get("image"))
    if value is None:
        return []
    names = value if isinstance(value, list) else [value]
    texts = [checked_text(name, "image", where) for name in names]
    return [text if is_inline(text) else str(root / text) for text in texts]


def annotations_of(record: Record, *, captions: bool, rng: random.Random | None, where: str) -> list[Messages]:
    """What is said about a record's picture, as conversations in random order (as they stand without `rng`).

    Args:
        captions: whether prompts are those of stage 1, a style and a length; else those of stage 2.

    Raises:
        BadRecord: there is no annotation, or one is malformed.
    """
    listed = record.get("annotations")
    if listed is None:
        listed = [record]
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed) or not listed:
        raise BadRecord(f"{where}: annotations is not a list of objects")
    found = [messages for item in listed for messages in _conversations(item, captions, rng, where)]
    if rng is not None:
        rng.shuffle(found)
    return found


def _conversations(item: Mapping[str, Any], captions: bool, rng: random.Random | None, where: str) -> list[Messages]:
    if "messages" in item:
        turns = messages_in(item["messages"], "messages", where)
        if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
            raise BadRecord(f"{where}: messages about a picture are turns of user and assistant by turns")
        return [turns]
    texts: list[tuple[str, str | None, str, str]] = []  # style, question, label, response
    for column, style in (("caption", "long_caption"), ("transcript", "transcript")):
        values = item.get(column)
        values = [] if values is None else values if isinstance(values, list) else [values]
        texts += [(str(item.get("style", style)), None, "", checked_text(v, column, where)) for v in values]
    if "points" in item:
        texts.append(_pointed(item, where))
    elif "question" in item or "answer" in item:
        style = checked_text(item.get("style", "user_qa"), "style", where)
        texts.append(
            (style, checked_text(item.get("question"), "question", where), "", _answer(item.get("answer"), rng, where))
        )
    if not texts:
        there = ", ".join(map(repr, item))
        raise BadRecord(f"{where}: no caption, question and answer, label and points, or messages; there are {there}")
    found = []
    for style, question, label, response in texts:
        if not response.strip():
            raise BadRecord(f"{where}: an empty response")
        if captions and question is None and not label:
            said = picture_prompts.hinted(style, response, rng or random.Random(0))
        else:
            said = picture_prompts.asked(style, question, label, rng)
        found.append([{"role": "user", "content": said}, {"role": "assistant", "content": response}])
    return found


def _pointed(item: Mapping[str, Any], where: str) -> tuple[str, str | None, str, str]:
    label = checked_text(item.get("label", item.get("question")), "label", where).lower()
    pairs = points_of(item["points"], where)
    style = checked_text(item.get("style", "pointing"), "style", where)
    question = item.get("question")
    question = None if question is None else checked_text(question, "question", where)
    if len(pairs) > MOST_POINTS:
        raise BadRecord(f"{where}: {len(pairs)} points of {label!r}; at most {MOST_POINTS} are trained")
    answer = points.write_count(pairs, label) if style == "point_count" else points.write(pairs, label)
    return style, question, label, answer


def points_of(value: Any, where: str) -> list[tuple[float, float]]:
    """Points in percent; `BadRecord` for anything but pairs of numbers from 0 to 100."""

    def fits(pair: Any) -> bool:
        numbers = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        return numbers and all(
            isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and 0 <= x <= 100 for x in pair
        )

    if not isinstance(value, list) or not all(map(fits, value)):
        raise BadRecord(f"{where}: points must be a list of [x, y] in percent of width and height, from 0 to 100")
    return [(float(x), float(y)) for x, y in value]


def _answer(value: Any, rng: random.Random | None, where: str) -> str:
    """The answer; of several, the most frequent one, at random where several are."""
    if not isinstance(value, list):
        return checked_text(value, "answer", where)
    answers = [checked_text(answer, "answer", where) for answer in value]
    if not answers:
        raise BadRecord(f"{where}: answer is an empty list")
    counts = Counter(answers)
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return best[0] if rng is None else rng.choice(best)
