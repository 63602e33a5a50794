"""The stage `Revisions`: critique and revision of the last turn of dialogues, as preference pairs (spec sdsd §6)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from easylm_jax.config.dialogue import Revisions
from easylm_jax.config.dialogue_prompts import PROMPTS
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.curation.texts import words
from easylm_jax.evaluate.preferences.command import Options, judge_of
from easylm_jax.evaluate.preferences.items import item_of
from easylm_jax.rewards.moderation import FIELDS, PROMPT_HARM, REFUSAL, RESPONSE_HARM
from easylm_jax.rewards.moderator import Moderator
from easylm_jax.runtime import files, processes
from easylm_jax.synthesize import dialogue_rules as rules
from easylm_jax.synthesize import dialogue_tables
from easylm_jax.synthesize.dialogues import critique_ask
from easylm_jax.synthesize.opening import opened, rows_of, write_text
from easylm_jax.synthesize.speakers import Ask, Manner, Speaker, answer_all
from easylm_jax.synthesize.talk import number_of

Row = dict[str, Any]
_META = re.compile(r"^\W*(?:here(?: is|'s)|sure|certainly|of course)\b.{0,60}\b(?:revis|rewrit|version|message)", re.I)
_LENGTHS = (0.3, 3.0)  # of the original's
_CHANGED = 0.1  # share of the text that differs at least


def make_revisions(stage: Revisions, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    rows = chosen_rows(rows_of(workspace, stage.dialogues, f"stage {stage.name}: dialogues"), stage.controls)
    with opened(stage, workspace) as opening:
        speaker = opening.speaker(stage.init, stage.server, "reviser")
        moderator = opening.moderator(stage.moderator, stage.prompts)
        made = opening.made(
            rows[: stage.limit], "revisions", lambda chunk, progress: revise(stage, speaker, chunk, moderator)
        )
        asked = {"reviser": speaker.summary(), "device_hours": opening.device_hours}
        metrics = _write(stage, workspace, made, asked) if processes.is_first_process() else {}
    names = [f"{name}.jsonl" for name in ("revisions", "pairs", "released")]
    return {"files": [*names, "stats.json", "tables.md"], "metrics": metrics}


def _write(stage: Revisions, workspace: Workspace, made: list[Row], asked: dict[str, Any]) -> dict[str, Any]:
    """Writes the files of the stage; returns its metrics."""
    out = workspace.folder(stage.name)
    pairs = [pair_of(row) for row in made if row["accepted"] and not row["control"]]
    margins = None
    if stage.reward_model is not None and pairs:
        judge = judge_of(workspace.model(stage.reward_model).removeprefix("run:"), Options())
        items = [item_of(pair, f"pair {number}", number=number) for number, pair in enumerate(pairs)]
        margins = [outcome.scores[0] - outcome.scores[1] for outcome in judge(items)]
    files.write_lines(out / "revisions.jsonl", made)
    files.write_lines(out / "pairs.jsonl", pairs)
    files.write_lines(out / "released.jsonl", map(released, (row for row in made if row["accepted"])))
    statistics = dialogue_tables.of_revisions(made, margins)
    files.write_json(out / "stats.json", {**statistics, "asked": asked})
    write_text(out / "tables.md", dialogue_tables.text("Revisions", statistics))
    return {**statistics["size"], "device_hours": asked["device_hours"]}


def chosen_rows(rows: Sequence[Row], controls: float) -> list[Row]:
    """Dialogues with a violation, and of the others the first of every 1 / `controls`."""
    chosen, others = [], 0
    for row in rows:
        if row["is_violation"]:
            chosen.append({**row, "control": False})
            continue
        if int((others + 1) * controls) > int(others * controls):
            chosen.append({**row, "control": True})
        others += 1
    return chosen


def revise(
    stage: Revisions, speaker: Speaker, rows: Sequence[Row], moderator: Moderator | None = None
) -> list[Row]:  # fmt: skip
    """The dialogues with their critique, revision and verdict; a revision that still violates is revised again."""
    texts = PROMPTS[stage.prompts]
    out = [{**row, "critique": row["judgement"], "revision": None, "rounds": 0, "accepted": False,
            "reject_reason": "violates"} for row in rows]  # fmt: skip
    left = out
    for attempt in range(stage.rounds):
        asks = []
        for row in left:
            names = row["judged"] or row["pids"]
            principles = "; ".join(
                text for pid, text in zip(row["pids"], row["principle"], strict=True) if pid in names
            )
            content = texts.revision.format(
                principles=principles, dialogue=rules.transcript(row["messages"][:-1]), critique=row["critique"],
                last=row["revision"] or row["messages"][-1]["content"],
            )  # fmt: skip
            asks.append(Ask([{"role": "user", "content": content}], number_of(row["id"], 52 + 2 * attempt)))
        answers = answer_all(speaker, asks, Manner(stage.revision_tokens, stage.temperature, 0.95))
        for row, said in zip(left, answers, strict=True):
            row["revision"], row["rounds"] = said.text.strip(), attempt + 1
            row["reject_reason"] = said.failed or ("cut" if said.cut else None)
        judged = [row for row in left if row["reject_reason"] is None and row["revision"]]
        critiques = []
        for row in judged:
            messages = [*row["messages"][:-1], {"role": "assistant", "content": row["revision"]}]
            number = number_of(row["id"], 53 + 2 * attempt)
            critiques.append(critique_ask(stage.prompts, messages, row["principle"], number))
        for row, said in zip(judged, answer_all(speaker, critiques, Manner(stage.critique_tokens, 0.0)), strict=True):
            found = None if said.failed else rules.violations_of(said.text, len(row["principle"]))
            names = {row["pids"][i - 1] for i in found or ()}
            if found is None:
                row["reject_reason"] = "critique not read"
            elif names & set(row["judged"] or row["pids"]):
                row["reject_reason"], row["critique"] = "violates", said.text.strip()
        left = [row for row in left if row["reject_reason"] == "violates"]
    _moderate(moderator, [row for row in out if row["revision"]])
    for row in out:
        row["reject_reason"] = row["reject_reason"] or revision_fault(row, stage.overlap)
        row["accepted"] = row["reject_reason"] is None
    return out


def _moderate(moderator: Moderator | None, rows: Sequence[Row]) -> None:
    """Adds what the moderator says of the original (`moderator`) and of the revision; None without one."""
    for column, text in (("moderator", lambda row: row["messages"][-1]["content"]),
                         ("revision_moderator", lambda row: row["revision"])):  # fmt: skip
        items = [{"prompt": row["messages"][-2]["content"], "response": text(row)} for row in rows]
        for row, found in zip(rows, moderator(items) if moderator and items else [None] * len(rows), strict=True):
            row[column] = found and {field: found[field] for field in FIELDS}


def revision_fault(row: Row, overlap: float) -> str | None:
    """Why a revision that violates nothing is not used: empty, a bare refusal, its length, its topic, no change."""
    old, new = row["messages"][-1]["content"], row["revision"]
    if not new:
        return "empty"
    if rules.turn_fault(new, row["plan"], []) is not None:
        return "not a turn"
    if _META.search(new):
        return "speaks of revising"
    if said := row.get("revision_moderator"):
        if said[RESPONSE_HARM] == "harmful":
            return "harmful"
        if said[REFUSAL] == "refusal" and said[PROMPT_HARM] == "unharmful":
            return "bare refusal"
    elif rules.is_bare_refusal(new):
        return "bare refusal"
    if not _LENGTHS[0] <= len(new) / len(old) <= _LENGTHS[1]:
        return "length"
    known = set(words(old)) | set(words(row["messages"][-2]["content"]))
    own = set(words(new))
    if not own or len(own & known) < overlap * len(own):
        return "topic"
    if rules.changed(old, new) < _CHANGED:
        return "unchanged"
    return None


def pair_of(row: Row) -> Row:
    """A preference pair, without the plan: the revision over the original."""
    before, last = row["messages"][:-1], row["messages"][-1]
    return {"id": row["id"], "chosen": [*before, {"role": "assistant", "content": row["revision"]}],
            "rejected": [*before, last], "chosen_source": "revision", "rejected_source": "original",
            "principle": row["principle"], "source": "sdsd"}  # fmt: skip


def released(row: Row) -> Row:
    """A revision in the published schema."""
    names = ("domain", "subarea", "principle", "goal", "plan", "critique", "revision")
    return {"messages": row["messages"], **{name: row[name] for name in names}, "violations": row["judged"] or []}
