"""The stage `PersonaPrompts`: persona-driven prompts of a skill, and their answers (spec tulu3 §7.3)."""

from __future__ import annotations

import collections
import functools
import json
import random
import re
from collections.abc import Sequence
from typing import Any

from easylm_jax.config.preference_prompts import PERSONA, PERSONA_ANSWER, VERSION
from easylm_jax.config.preferences import PersonaPrompts
from easylm_jax.config.workspace import Workspace
from easylm_jax.rewards.instructions import check_instruction
from easylm_jax.rewards.instructions.scoring import find
from easylm_jax.runtime import files, processes
from easylm_jax.synthesize.opening import opened, rows_of
from easylm_jax.synthesize.select_prompts import key_of, with_instructions
from easylm_jax.synthesize.speakers import Ask, Manner, Said, Speaker, answer_all
from models.errors import UserError

Row = dict[str, Any]
_ENDS = {
    "math": re.compile(r"final answer is\s+\S", re.IGNORECASE),
    "algebra": re.compile(r"final answer is\s+\S", re.IGNORECASE),
    "grade_school": re.compile(r"^####\s*\$?-?[\d,]*\.?\d+\s*$", re.MULTILINE),
    "code": re.compile(r"^\s*(?:async\s+)?def \w+\(", re.MULTILINE),
}
_CALLS = 3  # asks of a row: the prompt, the answer, and the answer to the prompt with an instruction less


def persona_prompts(stage: PersonaPrompts, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    found = rows_of(workspace, stage.personas, f"stage {stage.name}: personas")
    named = [row.get("persona") or row.get("text") for row in found]
    people = [one for one in named if isinstance(one, str) and one.strip()]
    if len(people) < len(named):
        raise UserError(f"stage {stage.name}: personas: a row must have persona or text")
    wanted = list(range(stage.count))[: stage.limit]
    with opened(stage, workspace) as opening:
        writer = opening.speaker(stage.init, stage.server, "prompts")
        other = stage.answers is not None or stage.answer_server is not None
        answerer = opening.speaker(stage.answers, stage.answer_server, "answers") if other else writer
        make = functools.partial(_batch, stage, writer, answerer, people)
        made = opening.made(wanted, "persona prompts", make)
        asked = {"prompts": writer.summary(), "answers": answerer.summary()}
        seen: set[int] = set()
        for row in made:
            key = key_of(row["messages"][:1])
            if row["dropped"] is None and key in seen:
                row["dropped"] = "repeated"
            seen.add(key)
        kept, dropped = [r for r in made if r["dropped"] is None], [r for r in made if r["dropped"] is not None]
        pairs = [_pair(row) for row in kept if row.get("relaxed_answer")]
        counts = collections.Counter(row["dropped"] for row in dropped)
        metrics = {"prompts": len(made), "kept": len(kept), "dropped": dict(sorted(counts.items())),
                   "pairs": len(pairs)}  # fmt: skip
        if processes.is_first_process():
            folder = workspace.folder(stage.name)
            files.write_lines(folder / "sft.jsonl", kept)
            files.write_lines(folder / "dropped.jsonl", dropped)
            files.write_lines(folder / "pairs.jsonl", pairs)
            files.write_json(folder / "stats.json", {**metrics, "asked": asked, "device_hours": opening.device_hours})
    return {"files": ["sft.jsonl", "pairs.jsonl", "dropped.jsonl", "stats.json"], "metrics": metrics}


def _batch(
    stage: PersonaPrompts, writer: Speaker, answerer: Speaker, people: Sequence[str], numbers: Sequence[int], _: Any
) -> list[Row]:
    manner = Manner(stage.max_new_tokens, stage.temperature, 0.95 if stage.temperature else None)
    asks = [_ask(PERSONA[stage.skill].format(persona=people[i % len(people)]), i, 0) for i in numbers]
    rows = []
    for i, said in zip(numbers, answer_all(writer, asks, manner), strict=True):
        row: Row = {"id": i, "skill": stage.skill, "persona": people[i % len(people)], "prompt_version": VERSION}
        row |= {"messages": [{"role": "user", "content": said.text.strip()}], "dropped": _fault(said, "prompt")}
        if stage.skill == "instructions" and row["dropped"] is None:
            rng = random.Random(f"{stage.seed} persona {i}")
            row |= with_instructions(row["messages"], rng.choice(stage.instructions), ("ifeval",), rng)
            row["relaxed"] = _relaxed(said.text.strip(), row["ground_truth"], rng)
        rows.append(row)
    _answer(stage, answerer, [row for row in rows if row["dropped"] is None], manner)
    relaxed = [row for row in rows if row["dropped"] is None and row.get("relaxed")]
    asks = [_ask(row["relaxed"], row["id"], 2) for row in relaxed]
    for row, said in zip(relaxed, answer_all(answerer, asks, manner), strict=True):
        text = said.text.strip()
        # A rejected answer breaks an instruction; one that happens to follow all makes no pair.
        row["relaxed_answer"] = text if _fault(said, "") is None and not follows(text, row["ground_truth"]) else None
    return rows


def _answer(stage: PersonaPrompts, answerer: Speaker, rows: Sequence[Row], manner: Manner) -> None:
    """Adds the answers; one that fails the check of its skill drops its row."""
    asks = [
        _ask(PERSONA_ANSWER[stage.skill].format(prompt=row["messages"][0]["content"]), row["id"], 1) for row in rows
    ]
    for row, said in zip(rows, answer_all(answerer, asks, manner), strict=True):
        text = said.text.strip()
        row["messages"].append({"role": "assistant", "content": text})
        row["dropped"] = _fault(said, "answer")
        if row["dropped"] is not None:
            continue
        if stage.skill == "instructions":
            row["dropped"] = None if follows(text, row["ground_truth"]) else "instructions not followed"
        elif not _ENDS[stage.skill].search(text):
            row["dropped"] = "no function" if stage.skill == "code" else "no final answer"


def _ask(content: str, number: int, call: int) -> Ask:
    return Ask([{"role": "user", "content": content}], number * _CALLS + call)


def _fault(said: Said, what: str) -> str | None:
    fault = "no answer" if said.failed else "cut" if said.cut else None if said.text.strip() else "empty"
    return None if fault is None else f"{what}: {fault}"


def follows(text: str, truth: str) -> bool:
    """Whether an answer follows all instructions of a `ground_truth`; verifiers as for rewards."""
    (each,) = json.loads(truth)
    return all(check_instruction(name, text, given, version="fixed")
               for name, given in zip(each["instruction_id"], each["kwargs"], strict=True))  # fmt: skip


def _relaxed(request: str, truth: str, rng: random.Random) -> str | None:
    """The request with its instructions but one; None where it has only one."""
    (each,) = json.loads(truth)
    ids, given = each["instruction_id"], each["kwargs"]
    if len(ids) < 2:
        return None
    out = rng.randrange(len(ids))
    texts = [find(name).describe(**(own or {})) for name, own in zip(ids, given, strict=True)]
    return " ".join([request, *texts[:out], *texts[out + 1 :]])


def _pair(row: Row) -> Row:
    prompt, answer = row["messages"]
    rejected = {"role": "assistant", "content": row["relaxed_answer"]}
    return {"id": row["id"], "chosen": [prompt, answer], "rejected": [prompt, rejected],
            "ground_truth": row["ground_truth"], "dataset": row["dataset"]}  # fmt: skip
