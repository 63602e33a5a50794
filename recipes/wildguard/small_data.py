"""Labelled rows of public moderation sets for `recipes/wildguard/small.py`.

`EASYLM_DATA` is a folder with the files below; the default is `../shared/data`. Training rows: XSTest's completions of
Mistral (refusal by human labels; a full compliance with an unsafe prompt counts as a harmful response, which is this
project's own reading of the labels), SimpleSafetyTests, OpenAI Moderation, CoCoNot (safety prompts against their
harmless contrasts), and harmless prompts of GSM8K and Dolly. Nothing of the test sets is among them: other completions,
other prompts.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import UserError

DATA = os.environ.get("EASYLM_DATA", "../shared/data")
SAFETY = "Requests with safety concerns"
HARMLESS = 400  # prompts of GSM8K
LONGEST = 700  # characters of a text; a small model has a short context

Row = dict[str, Any]


def write(seed: int) -> dict[str, list[Row]]:
    """Conversations (`train.jsonl`), the same rows with gold labels for baselines (`rows.jsonl`), and texts."""
    from recipes.wildguard.data import conversation

    tests = set(_test_texts())
    rows = [*_xstest(), *_simple_safety(), *_openai(), *_coconot(), *_harmless(seed)]
    rows = [row for row in rows if (row["prompt"], row.get("response")) not in tests]
    random.Random(seed).shuffle(rows)
    made = [conversation(row) for row in rows]
    chats = [{**one, "number": number} for number, one in enumerate(made) if one is not None]
    pages = [{"text": text} for row in rows for text in (row["prompt"], row.get("response")) if text]
    return {"train.jsonl": chats, "rows.jsonl": [gold(row) for row in rows], "pages.jsonl": pages}


def gold(row: Row) -> Row:
    """A row of the mixture's columns with the names of gold labels."""
    names = {"prompt_harm_label": "prompt_harmfulness", "response_refusal_label": "response_refusal",
             "response_harm_label": "response_harmfulness"}  # fmt: skip
    labels = {f"gold_{field}": row[column] for column, field in names.items() if row.get(column)}
    return {"prompt": row["prompt"], "response": row.get("response"), **labels}


def _row(prompt: str, harmful: bool, response: str | None = None, refusal: bool = False, harm: bool = False) -> Row:
    row: Row = {"prompt": prompt[:LONGEST], "prompt_harm_label": "harmful" if harmful else "unharmful"}
    if response:
        row |= {"response": response[:LONGEST], "response_refusal_label": "refusal" if refusal else "compliance",
                "response_harm_label": "harmful" if harm else "unharmful"}  # fmt: skip
    return row


def _path(name: str) -> Path:
    path = Path(DATA, name)
    if not path.is_file():
        raise UserError(f"cannot find {path}; set EASYLM_DATA to the folder that holds {name}")
    return path


def _lines(name: str) -> Iterator[Row]:
    path = _path(name)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _csv(name: str) -> Iterator[Row]:
    with open(_path(name), encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _xstest() -> Iterator[Row]:
    """Completions of Mistral 7B Instruct; the type of an unsafe prompt begins with "contrast"."""
    for row in _csv("xstest/xstest_v2_completions_mistralinstruct.csv"):
        unsafe, refusal = row["type"].startswith("contrast"), row["final_label"] != "1_full_compliance"
        yield _row(row["prompt"], unsafe, row["completion"], refusal, unsafe and not refusal)


def _test_texts() -> Iterator[tuple[str, str | None]]:
    """What the tests hold, as training rows would: four rows occur in both, such as equal answers of two models."""
    for row in _lines("non_commercial/toxic_chat/toxic_chat_human.jsonl.gz"):
        if row["split"] == "test":
            yield row["user_input"][:LONGEST], None
    for row in _csv("xstest/xstest_v2_completions_gpt4.csv"):
        yield row["prompt"][:LONGEST], row["completion"][:LONGEST]


def _simple_safety() -> Iterator[Row]:
    for row in _csv("moderation/simple_safety_tests/test_cases.csv"):
        yield _row(row["prompts_final"], True)


def _openai() -> Iterator[Row]:
    for row in _lines("moderation/openai_moderation/samples_without_S3.jsonl.gz"):
        yield _row(row["prompt"], any(row.get(name) == 1 for name in ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")))


def _coconot() -> Iterator[Row]:
    """Prompts with safety concerns, their contrasts, and responses to the contrasts: one complies, one refuses."""
    for row in _lines("evaluation/coconot/coconot_eval.jsonl.gz"):
        if row["category"] == SAFETY:
            yield _row(row["prompt"], True)
    for row in _lines("evaluation/coconot/coconot_contrast_eval.jsonl.gz"):
        yield _row(row["prompt"], False)
    for row in _lines("evaluation/coconot/coconot_pref.jsonl.gz"):
        if row["category"] == SAFETY:
            yield _row(row["prompt"], False, row["chosen"], refusal=False)
            yield _row(row["prompt"], False, row["rejected"], refusal=True)


def _harmless(seed: int) -> Iterator[Row]:
    problems = [row["question"] for row in _lines("gsm8k/train.jsonl")]
    for text in random.Random(seed).sample(problems, HARMLESS):
        yield _row(text, False)
    for row in _lines("curation/dolly/dolly_sample151.jsonl.gz"):
        yield _row(row["instruction"], False, row.get("response"))
