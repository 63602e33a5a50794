"""The stage `Respond`: responses to prompts by models drawn from a pool (spec tulu3 §7.4, step 2)."""

from __future__ import annotations

import collections
import functools
import random
from collections.abc import Sequence
from typing import Any

from easylm_jax.config.preferences import PoolModel, Respond
from easylm_jax.config.workspace import Workspace
from easylm_jax.runtime import files, processes
from easylm_jax.synthesize.opening import Opening, opened, rows_of
from easylm_jax.synthesize.speakers import Ask, Manner, Speaker, answer_all
from models.errors import UserError

Row = dict[str, Any]
REFERENCE = "reference"  # the model of a prompt's own answer


def respond(stage: Respond, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    found = rows_of(workspace, stage.prompts, f"stage {stage.name}: prompts")[: stage.limit]
    prompts = [_prompt(row, number, f"stage {stage.name}: prompts: row {number}") for number, row in enumerate(found)]
    drawn = [models_for(stage, number) for number in range(len(prompts))]
    with opened(stage, workspace) as opening:
        said: dict[tuple[int, str], list[Row]] = {}
        asked: dict[str, Any] = {}
        for model in stage.pool:
            own = [(i, prompt) for i, prompt in enumerate(prompts) if model.name in drawn[i]]
            made, asked[model.name] = _answers(stage, opening, model, own)
            for (i, _), row in zip(own, made, strict=True):
                said[i, model.name] = row["answers"]
        rows, dropped = [], []
        for i, prompt in enumerate(prompts):
            answers = {name: said[i, name] for name in drawn[i]}
            reason = next((f"{name}: {one['fault']}" for name, each in answers.items() for one in each if one["fault"]),
                          None)  # fmt: skip
            if reason is not None:
                dropped.append({**prompt, "dropped": reason})
            else:
                rows.append({**prompt, "responses": _candidates(stage, prompt, answers, i)})
        counts = collections.Counter(row["dropped"] for row in dropped)
        metrics = {"prompts": len(prompts), "kept": len(rows), "dropped": dict(sorted(counts.items()))}
        if processes.is_first_process():
            folder = workspace.folder(stage.name)
            files.write_lines(folder / "responses.jsonl", rows)
            files.write_lines(folder / "dropped.jsonl", dropped)
            by_model = collections.Counter(one["model"] for row in rows for one in row["responses"])
            files.write_json(folder / "stats.json", {**metrics, "by_model": dict(sorted(by_model.items())),
                                                     "asked": asked, "device_hours": opening.device_hours})  # fmt: skip
    return {"files": ["responses.jsonl", "dropped.jsonl", "stats.json"], "metrics": metrics}


def _prompt(row: Row, number: int, where: str) -> Row:
    """A prompt with an id; the answer that a conversation ends with becomes its `reference`."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    ):  # fmt: skip
        raise UserError(f"{where} has no messages with role and content")
    row = {"id": number, **row}
    if messages and messages[-1]["role"] == "assistant":
        row |= {"messages": messages[:-1], "reference": messages[-1]["content"]}
    if not row["messages"] or row["messages"][-1]["role"] != "user":
        raise UserError(f"{where} has no user's turn to answer")
    return row


def models_for(stage: Respond, number: int) -> list[str]:
    """The models that answer a prompt: those of `always`, and others at random."""
    fixed = [model.name for model in stage.pool if model.always]
    others = [model.name for model in stage.pool if not model.always]
    return fixed + random.Random(f"{stage.seed} pool {number}").sample(others, stage.each - len(fixed))


def _answers(
    stage: Respond, opening: Opening, model: PoolModel, own: Sequence[tuple[int, Row]]
) -> tuple[list[Row], dict[str, Any]]:
    """The answers of one model to its prompts, and what it was asked; the model is in memory for so long alone."""
    if not own:
        return [], {}
    speaker = opening.speaker(model.init, model.server, model.name, template=model.chat_template)
    make = functools.partial(_batch, stage, model, speaker)
    return opening.made(own, f"responses of {model.name}", make, f"{model.name}-"), speaker.summary()


def _batch(stage: Respond, model: PoolModel, speaker: Speaker, rows: Sequence[tuple[int, Row]], _: Any) -> list[Row]:
    manner = Manner(stage.max_new_tokens, stage.temperature, None if stage.top_p == 1 else stage.top_p)
    asks = [Ask(row["messages"], i * model.samples + sample) for i, row in rows for sample in range(model.samples)]
    said = iter(answer_all(speaker, asks, manner))
    made = []
    for i, _ in rows:
        answers = []
        for _ in range(model.samples):
            one = next(said)
            text = one.text.strip()
            fault = "no answer" if one.failed else "cut" if one.cut else None if text else "empty"
            answers.append({"text": text, "fault": fault, "failed": one.failed})
        made.append({"prompt": i, "answers": answers})
    return made


def _candidates(stage: Respond, prompt: Row, answers: dict[str, list[Row]], number: int) -> list[Row]:
    on_policy = {model.name for model in stage.pool if model.on_policy}
    found = [{"model": name, "text": one["text"], "on_policy": name in on_policy}
             for name, each in answers.items() for one in each]  # fmt: skip
    if stage.reference and prompt.get("reference"):
        found.append({"model": REFERENCE, "text": prompt["reference"], "on_policy": False})
    random.Random(f"{stage.seed} order {number}").shuffle(found)
    return found
