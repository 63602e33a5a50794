"""The stage `SelectPrompts`: prompts reused and unused, and with verifiable instructions appended (spec tulu3 §7.4)."""

from __future__ import annotations

import hashlib
import heapq
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from easylm_jax.config.data import Source
from easylm_jax.config.preferences import PromptPart, SelectPrompts
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.curation.contamination import build_index, find
from easylm_jax.data.curation.texts import asked_in_test, words
from easylm_jax.data.prompts import prompt_of
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.rewards.instructions.combine import sample
from easylm_jax.runtime import files, processes
from easylm_jax.runtime.monitor import counting
from models.errors import UserError

Row = dict[str, Any]
_NGRAM, _SHARE = 8, 0.5  # of decontamination
_BLOCK = 1000  # prompts that are compared with test rows at a time


class _Prompt(NamedTuple):
    messages: list[dict[str, str]]
    reference: str | None
    key: int


def select_prompts(stage: SelectPrompts, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    used = {prompt.key for source in workspace.sources(stage.used) for prompt in _prompts(source, stage.name)}
    tests = [row for source in workspace.sources(stage.against) for row, _ in read_records(source)
             if not isinstance(row, BadRecord)]  # fmt: skip
    index = build_index([asked_in_test(t, f"test row {i}") for i, t in enumerate(tests)], _NGRAM, _SHARE)
    taken: set[int] = set()
    rows: list[Row] = []
    counts: dict[str, dict[str, int]] = {}
    with counting(stage.name, len(stage.parts), "parts") as progress:
        for number, part in enumerate(stage.parts):
            source = workspace.sources((part.source,))[0]
            found, counts[part.name] = _chosen(stage, part, _prompts(source, stage.name), used, taken, index)
            rng = random.Random(f"{stage.seed} {part.name}")
            rows += [_row(stage, part, prompt, len(rows) + i, rng) for i, prompt in enumerate(found)]
            progress.update(number + 1, {})
    if not rows:
        raise UserError(f"stage {stage.name}: no prompt is left; see the counts {json.dumps(counts)}")
    if processes.is_first_process():
        folder = workspace.folder(stage.name)
        files.write_lines(folder / "prompts.jsonl", rows)
        files.write_json(folder / "stats.json", counts)
    processes.barrier(f"{stage.name} written")
    return {"files": ["prompts.jsonl", "stats.json"], "metrics": {"prompts": len(rows), "parts": counts}}


def _prompts(source: Source, name: str) -> Iterator[_Prompt]:
    for record, where in read_records(source):
        if isinstance(record, BadRecord):
            raise UserError(f"stage {name}: {record}")
        try:
            messages = [{"role": turn["role"], "content": turn["content"]} for turn in prompt_of(record, source, where)]
        except BadRecord as error:
            raise UserError(f"stage {name}: {error}") from None
        turns = record.get(source.messages_field)
        answer = turns[-1]["content"] if isinstance(turns, list) and turns[-1].get("role") == "assistant" else None
        yield _Prompt(messages, answer, key_of(messages))


def key_of(messages: Iterable[dict[str, str]]) -> int:
    """A 64-bit hash of the words of a conversation."""
    text = "\n".join(f"{turn['role']} {' '.join(words(turn['content']))}" for turn in messages)
    return _hash(text)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _chosen(
    stage: SelectPrompts, part: PromptPart, prompts: Iterator[_Prompt], used: set[int], taken: set[int], index: Any
) -> tuple[list[_Prompt], dict[str, int]]:
    """Prompts of a part in the order of a seeded hash, and how many were left out why; `taken` grows by them."""
    counts = {"read": 0, "repeated": 0, "used": 0, "contaminated": 0}
    seen = set(taken)

    def open_ones() -> Iterator[_Prompt]:
        for prompt in prompts:
            counts["read"] += 1
            if prompt.key in seen:
                counts["repeated"] += 1
            elif part.unused and prompt.key in used:
                counts["used"] += 1
            else:
                seen.add(prompt.key)
                yield prompt

    def clean(block: list[_Prompt]) -> list[_Prompt]:
        texts = [[turn["content"] for turn in prompt.messages if turn["role"] == "user"] for prompt in block]
        hit = set(find(index, texts).row.tolist()) if block else set()
        counts["contaminated"] += len(hit)
        return [prompt for i, prompt in enumerate(block) if i not in hit]

    def all_clean() -> Iterator[_Prompt]:
        block: list[_Prompt] = []
        for prompt in open_ones():
            block.append(prompt)
            if len(block) == _BLOCK:
                yield from clean(block)
                block = []
        yield from clean(block)

    def rank(prompt: _Prompt) -> tuple[int, int]:
        return _hash(f"{stage.seed} {part.name} {prompt.key}"), prompt.key

    found = sorted(all_clean(), key=rank) if part.count is None else heapq.nsmallest(part.count, all_clean(), rank)
    if part.count is not None and len(found) < part.count:
        raise UserError(f"stage {stage.name}: part {part.name} has {len(found)} prompts, not {part.count} ({counts})")
    taken |= {prompt.key for prompt in found}
    return found, {**counts, "kept": len(found)}


def _row(stage: SelectPrompts, part: PromptPart, prompt: _Prompt, number: int, rng: random.Random) -> Row:
    row: Row = {"id": number, "part": part.name, "messages": prompt.messages, "reference": prompt.reference}
    if part.instructions:
        row |= with_instructions(prompt.messages, rng.choice(part.instructions), stage.suites, rng)
        row["reference"] = None  # it was not asked to follow them
    return row


def with_instructions(
    messages: list[dict[str, str]], count: int, suites: Iterable[str], rng: random.Random
) -> dict[str, Any]:
    """The columns of a prompt with sampled instructions behind its last turn, as verifiers read them."""
    text, ids, given = sample(rng, messages[-1]["content"], count, tuple(suites))
    truth = [{"instruction_id": ids, "kwargs": [dict(each) or None for each in given]}]
    return {"messages": [*messages[:-1], {"role": "user", "content": text}], "dataset": "ifeval",
            "ground_truth": json.dumps(truth, ensure_ascii=False)}  # fmt: skip
