"""The stage `Rate`: ratings of responses by aspect from a judge (spec tulu3 §7.4, steps 3 and 4)."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Sequence
from typing import Any

from easylm_jax.config.preference_prompts import ANSWER, ASPECTS, RATE, VERSION
from easylm_jax.config.preferences import ASPECTS as NAMES
from easylm_jax.config.preferences import Rate
from easylm_jax.config.workspace import Workspace
from easylm_jax.runtime import files, processes
from easylm_jax.synthesize.opening import opened, rows_of
from easylm_jax.synthesize.speakers import Ask, Manner, Speaker, answer_all
from models.errors import UserError

Row = dict[str, Any]
_BLOCK = re.compile(r"^\W{0,4}(?:answer|text)\s*#?(\d{1,3})\W{0,4}(?:$|\s)", re.IGNORECASE | re.MULTILINE)
_RATING = re.compile(r"\brating\b\W{0,6}([0-9]+(?:\.[0-9]+)?|n/?a\b)", re.IGNORECASE)


def rate(stage: Rate, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    rows = rows_of(workspace, stage.responses, f"stage {stage.name}: responses")[: stage.limit]
    for number, row in enumerate(rows):
        if not isinstance(row.get("responses"), list) or not row["responses"]:
            raise UserError(f"stage {stage.name}: responses: row {number} has no responses")
    with opened(stage, workspace) as opening:
        judge = opening.speaker(stage.init, stage.server, "judge")
        numbered = list(enumerate(rows))
        made = opening.made(numbered, "prompts rated", functools.partial(_batch, stage, judge))
        counts: collections.Counter[str] = collections.Counter()
        for row in made:
            counts["replies"] += len(stage.aspects)
            counts["failed"] += sum(reply is None for reply in row["replies"].values())
            each = [one["ratings"][aspect] for one in row["responses"] for aspect in stage.aspects]
            counts["ratings"] += len(each)
            counts["unread"] += row["unread"]
        metrics = dict(sorted(counts.items()))
        if processes.is_first_process():
            folder = workspace.folder(stage.name)
            files.write_lines(folder / "ratings.jsonl", made)
            files.write_json(folder / "stats.json", {**metrics, "by_model": _means(stage, made),
                                                     "asked": judge.summary(),
                                                     "device_hours": opening.device_hours})  # fmt: skip
    return {"files": ["ratings.jsonl", "stats.json"], "metrics": metrics}


def _batch(stage: Rate, judge: Speaker, rows: Sequence[tuple[int, Row]], _: Any) -> list[Row]:
    asks = [
        Ask([{"role": "user", "content": question(row, aspect)}], number * len(NAMES) + NAMES.index(aspect))
        for number, row in rows
        for aspect in stage.aspects
    ]
    said = iter(answer_all(judge, asks, Manner(stage.max_new_tokens, 0.0)))
    made = []
    for _, row in rows:
        replies = {aspect: next(said) for aspect in stage.aspects}
        read = {aspect: ratings_of(one.text, len(row["responses"])) for aspect, one in replies.items()}
        unread = sum(value is None for values in read.values() for value in values)
        lowest = 1.0 if stage.unread == "lowest" else None
        responses = [
            {**one, "ratings": {aspect: lowest if values[i] is None else values[i] for aspect, values in read.items()}}
            for i, one in enumerate(row["responses"])
        ]
        made.append({**row, "responses": responses, "judge": judge.name, "prompt_version": VERSION, "unread": unread,
                     "replies": {name: None if one.failed else one.text for name, one in replies.items()}})  # fmt: skip
    return made


def question(row: Row, aspect: str) -> str:
    """The question about one aspect of all responses to a prompt."""
    prompt = row["messages"][0]["content"] if len(row["messages"]) == 1 else "\n\n".join(
        f"[{turn['role']}]\n{turn['content']}" for turn in row["messages"]
    )  # fmt: skip
    answers = "\n".join(ANSWER.format(number=i, text=one["text"]) for i, one in enumerate(row["responses"], 1))
    return RATE.format(count=len(row["responses"]), aspect=ASPECTS[aspect], prompt=prompt, answers=answers)


def ratings_of(reply: str, count: int) -> list[float | None]:
    """The rating of each answer in a reply; None where it is missing, not from 1 to 5, "N/A", or given twice."""
    found: list[float | None] = [None] * count
    places = list(_BLOCK.finditer(reply))
    seen: set[int] = set()
    for i, place in enumerate(places):
        number = int(place[1])
        end = places[i + 1].start() if i + 1 < len(places) else len(reply)
        if not 1 <= number <= count:
            continue
        rating = _RATING.search(reply, place.end(), end)
        value = float(rating[1]) if rating and rating[1][0].isdigit() else None
        again = number in seen
        seen.add(number)
        found[number - 1] = value if value is not None and 1 <= value <= 5 and not again else None
    return found


def _means(stage: Rate, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The mean rating of each model by aspect."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for one in row["responses"]:
            own = values.setdefault(one["model"], {aspect: [] for aspect in stage.aspects})
            for aspect in stage.aspects:
                own[aspect] += [] if one["ratings"][aspect] is None else [one["ratings"][aspect]]
    return {name: {aspect: sum(each) / len(each) for aspect, each in own.items() if each}
            for name, own in sorted(values.items())}  # fmt: skip
