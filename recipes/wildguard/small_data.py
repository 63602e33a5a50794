"""Labelled rows of public moderation sets for `recipes/wildguard/small.py`.

`EASYLM_DATA` is a folder with the files below; the default is `../shared/data`. Training rows: XSTest's completions of
Mistral (refusal by human labels; a full compliance with an unsafe prompt counts as a harmful response, which is this
project's own reading of the labels), SimpleSafetyTests, OpenAI Moderation, CoCoNot (safety prompts against their
harmless contrasts, with the preferred responses to contrasts), harmful prompts of TrustLLM and MaliciousInstruct, and
harmless prompts of AlpacaEval, GSM8K and Dolly.

Public sets with labelled refusals are few. As WildGuardMix has for a synthetic prompt a refusal and a compliance,
harmful prompts have a refusal, an agreement or both here, and harmless prompts of XSTest and CoCoNot have a refusal
beside the real response, so that no label follows from another one or from the prompt. These refusals and agreements
are put together from sentences of this file; an agreement to a harmful request, which says no more than that it will
do it, counts as harmful. Nothing of the test sets is among the rows: other completions, other prompts.
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
HARMLESS = 100  # prompts of GSM8K
LONGEST = 400  # characters of a text; a small model has a short context
OPENINGS = (
    "I'm sorry, but I can't help with that.", "I can't help you with this request.", "I cannot assist with this.",
    "Sorry, I am not able to do that.", "I won't help with this.", "I am unable to provide that information.",
    "As an AI assistant, I can't do this.", "I apologize, but I can't fulfill this request.", "That is not something I "
    "can help with.", "I must decline.", "No, I will not write that.", "I'm not comfortable answering this question.",
)  # fmt: skip
REASONS = (
    "", "", "It could hurt people.", "This may be against the law.", "It goes against my guidelines.", "It would be "
    "unethical and harmful.", "I do not support violence or hate of any kind.", "Everyone deserves respect and safety.",
)  # fmt: skip
OFFERS = (
    "", "", "Is there something else that I can do for you?", "If you are in danger, please call for help.", "I would "
    "be glad to talk about something safer.", "Please speak to a professional instead.",
)  # fmt: skip
AGREEMENTS = (
    "Sure, here is what you asked for:", "Of course! Follow these steps:", "Certainly. Here is an example:", "Here are "
    "some ways to do it:", "Yes. Let me explain how it works.", "Okay, this is how you can do it.", "Absolutely, I can "
    "help you with that!", "There are several methods for this.", "To do this, you will need the following.", "Title:",
)  # fmt: skip
DETAILS = (
    "", "1. First, prepare everything that you need.", "Begin with a plan and choose a good time.", "Step 1: get the "
    "right materials. Step 2: put them together.", "Dear reader, let me tell you more about it.", "The first part is "
    "the most important one.", "It takes some practice, but anyone can learn it.",
)  # fmt: skip

Row = dict[str, Any]


def write(seed: int) -> dict[str, list[Row]]:
    """Conversations (`train.jsonl`), the same rows with gold labels for baselines (`rows.jsonl`), and texts."""
    from recipes.wildguard.data import conversation

    tests = set(_test_texts())
    rows = [*_xstest(seed), *_simple_safety(seed), *_openai(), *_coconot(seed), *_misuse(seed), *_harmless(seed)]
    rows = [row for row in rows if (row["prompt"], row.get("response")) not in tests]
    random.Random(seed).shuffle(rows)
    made = [conversation(row) for row in rows]
    chats = [{**one, "number": number} for number, one in enumerate(made) if one is not None]
    pages = [{"text": text} for row in rows for text in (row["prompt"], row.get("response")) if text]
    return {"train.jsonl": chats, "rows.jsonl": [gold(row) for row in rows], "pages.jsonl": pages}


def write_judge(seed: int) -> dict[str, list[Row]]:
    """The training rows of another moderator, which judges what the first one filters: none of its rows are among
    those of `write`. ToxicChat's test prompts, JailbreakBench's attacks, XSTest's completions of GPT-4, and harmless
    responses of AlpacaEval; a response of JailbreakBench that is not jailbroken counts as a refusal, which is this
    project's own reading."""
    from recipes.wildguard.data import conversation

    rows = [*_judged()]
    random.Random(seed).shuffle(rows)
    made = [conversation(row) for row in rows]
    pages = [{"text": text} for row in rows for text in (row["prompt"], row.get("response")) if text]
    chats = [{**one, "number": number} for number, one in enumerate(made) if one is not None]
    return {"train.jsonl": chats, "pages.jsonl": pages}


def _judged() -> Iterator[Row]:
    for row in _lines("non_commercial/toxic_chat/toxic_chat_human.jsonl.gz"):
        if row["split"] == "test":
            yield _row(row["user_input"], bool(int(row["toxicity"])))
    for row in _lines("moderation/jailbreakbench/artifacts_pair_jbc.jsonl.gz"):
        if row["response"]:
            broken = bool(row["jailbroken"])
            yield _row(row["goal"], True, row["response"], refusal=not broken, harm=broken)
    for row in _csv("xstest/xstest_v2_completions_gpt4.csv"):
        unsafe, refused = row["type"].startswith("contrast"), row["final_label"] != "1_full_compliance"
        yield _row(row["prompt"], unsafe, row["completion"], refused, unsafe and not refused)
    for row in _lines("non_commercial/alpaca_eval/model_outputs/tulu-2-dpo-7b.jsonl.gz"):
        yield _row(row["instruction"], False, row["output"])


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


def _xstest(seed: int) -> Iterator[Row]:
    """Completions of Mistral 7B Instruct, and other responses to their prompts, of which the tests have completions of
    another model; the type of an unsafe prompt begins with "contrast"."""
    draw = random.Random(f"xstest {seed}")
    for row in _csv("xstest/xstest_v2_completions_mistralinstruct.csv"):
        unsafe, refused = row["type"].startswith("contrast"), row["final_label"] != "1_full_compliance"
        yield _row(row["prompt"], unsafe, row["completion"], refused, unsafe and not refused)
        if unsafe:
            yield from _both(row["prompt"], draw)
        else:
            yield _row(row["prompt"], False, refusal(draw), refusal=True)


def _test_texts() -> Iterator[tuple[str, str | None]]:
    """What the tests hold, as training rows would: four rows occur in both, such as equal answers of two models."""
    for row in _lines("non_commercial/toxic_chat/toxic_chat_human.jsonl.gz"):
        if row["split"] == "test":
            yield row["user_input"][:LONGEST], None
    for row in _csv("xstest/xstest_v2_completions_gpt4.csv"):
        yield row["prompt"][:LONGEST], row["completion"][:LONGEST]


def refusal(draw: random.Random) -> str:
    """A refusal of up to three sentences."""
    return " ".join(filter(None, (draw.choice(OPENINGS), draw.choice(REASONS), draw.choice(OFFERS))))


def agreement(draw: random.Random) -> str:
    """The beginning of a compliance, without what was asked for."""
    return " ".join(filter(None, (draw.choice(AGREEMENTS), draw.choice(DETAILS), draw.choice(DETAILS))))


def _both(prompt: str, draw: random.Random) -> Iterator[Row]:
    """A harmful prompt, refused and not refused."""
    yield _row(prompt, True, refusal(draw), refusal=True)
    yield _row(prompt, True, agreement(draw), refusal=False, harm=True)


def _simple_safety(seed: int) -> Iterator[Row]:
    draw = random.Random(f"simple safety tests {seed}")
    for row in _csv("moderation/simple_safety_tests/test_cases.csv"):
        yield from _both(row["prompts_final"], draw)


def _openai() -> Iterator[Row]:
    for row in _lines("moderation/openai_moderation/samples_without_S3.jsonl.gz"):
        yield _row(row["prompt"], any(row.get(name) == 1 for name in ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")))


def _coconot(seed: int) -> Iterator[Row]:
    """Prompts with safety concerns, refused and not; their contrasts; and contrasts with the preferred response, which
    complies, and with a refusal. The responses that are not preferred carry no label: most of them comply too."""
    draw = random.Random(f"coconot {seed}")
    for row in _lines("evaluation/coconot/coconot_eval.jsonl.gz"):
        if row["category"] == SAFETY:
            yield from _both(row["prompt"], draw)
    for row in _lines("evaluation/coconot/coconot_contrast_eval.jsonl.gz"):
        yield _row(row["prompt"], False)
    for row in _lines("evaluation/coconot/coconot_pref.jsonl.gz"):
        if row["category"] == SAFETY:
            yield _row(row["prompt"], False, row["chosen"], refusal=False)
            yield _row(row["prompt"], False, refusal(draw), refusal=True)


def _misuse(seed: int) -> Iterator[Row]:
    """Harmful prompts, refused and not in turns."""
    draw = random.Random(f"misuse {seed}")
    prompts = [row["prompt"] for row in _lines("moderation/trustllm/misuse.jsonl.gz")]
    prompts += _path("moderation/harmbench/malicious_instruct.txt").read_text(encoding="utf-8").splitlines()
    for number, prompt in enumerate(filter(None, prompts)):
        refused, agreed = _both(prompt, draw)
        yield agreed if number % 2 else refused


def _harmless(seed: int) -> Iterator[Row]:
    problems = [row["question"] for row in _lines("gsm8k/train.jsonl")]
    for text in random.Random(seed).sample(problems, HARMLESS):
        yield _row(text, False)
    for row in _lines("non_commercial/alpaca_eval/instructions.jsonl"):
        yield _row(row["instruction"], False)
    for row in _lines("curation/dolly/dolly_sample151.jsonl.gz"):
        yield _row(row["instruction"], False, row.get("response"))
