"""The stage `Topics`: broad fields → domains → sub-topics, without repeats and with a cap on head nouns (spec sdsd S1).

The cap is there because lists that models write lean to one side: about 15 % of the published dialogues are about
fruit.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from easylm_jax.config.dialogue import Topics
from easylm_jax.config.dialogue_prompts import PROMPTS, VERSION
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.curation.texts import words
from easylm_jax.runtime import files, processes
from easylm_jax.synthesize.opening import opened, rows_of
from easylm_jax.synthesize.speakers import Ask, Manner, Said, answer_all
from models.errors import UserError

Row = dict[str, Any]
_ITEM = re.compile(r"^[ \t]*(?:\d{1,3}[.):]|[-*•])[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_LONGEST = 80  # characters of a domain or sub-topic
_SECOND = 1 << 20  # the number of the first list of sub-topics


def make_topics(stage: Topics, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    fields = rows_of(workspace, stage.fields, f"stage {stage.name}: fields")
    if bad := next((row for row in fields if not isinstance(row.get("text"), str)), None):
        raise UserError(f"stage {stage.name}: fields: a row must have a text, not {str(bad)[:80]}")
    texts = PROMPTS[stage.prompts]
    with opened(stage, workspace) as opening:
        speaker = opening.speaker(stage.init, stage.server, "topics")
        asked = [{"text": row["text"], "temperature": heat, "number": number * len(stage.temperatures) + at}
                 for number, row in enumerate(fields) for at, heat in enumerate(stage.temperatures)]  # fmt: skip

        def lists(rows: Sequence[Row], prompt: str, count: int) -> list[Said]:
            said: dict[int, Said] = {}
            for heat in dict.fromkeys(row["temperature"] for row in rows):
                own = [row for row in rows if row["temperature"] == heat]
                asks = [Ask([{"role": "user", "content": prompt.format(count=count, text=row["text"])}], row["number"])
                        for row in own]  # fmt: skip
                answers = answer_all(speaker, asks, Manner(stage.tokens, heat, 0.95 if heat else None))
                said |= {row["number"]: answer for row, answer in zip(own, answers, strict=True)}
            return [said[row["number"]] for row in rows]

        def domains(rows: Sequence[Row], _: Any) -> list[Row]:
            return [{"field": row["text"], "temperature": row["temperature"], "items": items_of(said.text)}
                    for row, said in zip(rows, lists(rows, texts.topics, stage.each), strict=True)]  # fmt: skip

        def subareas(rows: Sequence[Row], _: Any) -> list[Row]:
            return [{"domain": row["text"], "subareas": distinct(items_of(said.text))[: stage.subareas]}
                    for row, said in zip(rows, lists(rows, texts.subtopics, stage.subareas), strict=True)]  # fmt: skip

        listed = opening.made(asked, "lists of domains", domains, "domains-")
        kept, dropped = chosen(stage, [item for row in listed for item in row["items"]])
        wanted = [{"text": text, "temperature": stage.temperatures[0], "number": _SECOND + number}
                  for number, text in enumerate(kept)]  # fmt: skip
        made = opening.made(wanted, "lists of sub-topics", subareas, "subareas-")
        full = [{"id": number, **row, "model": speaker.name, "seed": stage.seed, "prompt_version": VERSION}
                for number, row in enumerate(made) if len(row["subareas"]) == stage.subareas]  # fmt: skip
        dropped += [{"domain": row["domain"], "dropped": "sub-topics"} for row in made
                    if len(row["subareas"]) < stage.subareas]  # fmt: skip
        counts: Mapping[str, int] = collections.Counter(row["dropped"] for row in dropped)
        metrics = {"listed": len(dropped) + len(full), "kept": len(full), "dropped": dict(sorted(counts.items())),
                   "device_hours": opening.device_hours}  # fmt: skip
        if processes.is_first_process():
            folder = workspace.folder(stage.name)
            files.write_lines(folder / "domains.jsonl", full)
            files.write_lines(folder / "dropped.jsonl", dropped)
            files.write_json(folder / "stats.json", {**metrics, "asked": speaker.summary()})
    return {"files": ["domains.jsonl", "dropped.jsonl", "stats.json"], "metrics": metrics}


def items_of(text: str) -> list[str]:
    """The entries of a list that a model wrote; lines without a number or a dash are none."""
    found = (match.strip(" *_\"'.") for match in _ITEM.findall(text))
    return [item for item in found if 1 < len(item) <= _LONGEST and words(item)]


def distinct(items: Sequence[str]) -> list[str]:
    """The first of each entries that have the same words."""
    return list({" ".join(words(item)): item for item in reversed(items)}.values())[::-1]


def chosen(stage: Topics, items: Sequence[str]) -> tuple[list[str], list[Row]]:
    """The domains that are kept, and the others with the first reason that applies."""
    kept: list[str] = []
    grams: list[frozenset[str]] = []
    dropped: list[Row] = []
    seen: set[str] = set()
    nouns: collections.Counter[str] = collections.Counter()
    cap = max(1, math.floor(stage.noun_share * stage.count))
    for item in items:
        normal = words(item)
        own = _grams(" ".join(normal))
        reason = None
        if " ".join(normal) in seen:
            reason = "repeated"
        elif any(_similar(own, other, stage.near) for other in grams):
            reason = "similar"
        elif nouns[normal[-1]] >= cap:
            reason = "head noun"
        elif len(kept) >= stage.count:
            reason = "enough"
        seen.add(" ".join(normal))
        if reason is not None:
            dropped.append({"domain": item, "dropped": reason})
            continue
        kept.append(item)
        grams.append(own)
        nouns[normal[-1]] += 1
    return kept, dropped


def _grams(text: str) -> frozenset[str]:
    return frozenset(text[at : at + 4] for at in range(max(1, len(text) - 3)))


def _similar(a: frozenset[str], b: frozenset[str], threshold: float) -> bool:
    return len(a & b) >= Fraction(str(threshold)) * len(a | b)
