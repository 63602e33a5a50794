"""The stage `SelfInstruct`: new instructions after examples of a growing pool, and answers (arXiv 2212.10560, §2)."""

from __future__ import annotations

import collections
import functools
import random
import re
from collections.abc import Sequence
from typing import Any

from easylm_jax.config.preference_prompts import SELF_INSTRUCT, VERSION
from easylm_jax.config.preferences import SelfInstruct
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.curation.texts import words
from easylm_jax.runtime import files, processes
from easylm_jax.synthesize.opening import opened, rows_of
from easylm_jax.synthesize.speakers import Ask, Manner, Speaker, answer_all
from models.errors import UserError

Row = dict[str, Any]
NEW = 8  # instructions that a question asks for
_FEWEST, _MOST = 4, 150  # words of an instruction (the published code of the paper)
# What a model of text cannot do, as in the paper: an instruction with one of these words is dropped.
_BARRED = re.compile(
    r"\b(?:images?|graphs?|pictures?|photos?|files?|maps?|draw|plot|video|audio|music|diagram)\b", re.I
)
_ITEM = re.compile(r"^[ \t]*(\d{1,4})[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_ANSWERS = 1 << 30  # the number of the first answer


def self_instruct(stage: SelfInstruct, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    found = [row.get("instruction") for row in rows_of(workspace, stage.tasks, f"stage {stage.name}: tasks")]
    seeds = [one for one in found if isinstance(one, str) and one.strip()]
    if len(seeds) < len(found):
        raise UserError(f"stage {stage.name}: tasks: a row must have an instruction")
    kept: list[str] = []
    dropped: list[Row] = []
    manner = Manner(stage.max_new_tokens, stage.temperature, 0.95 if stage.temperature else None)
    with opened(stage, workspace) as opening:
        speaker = opening.speaker(stage.init, stage.server, "instructions")
        pool = [words(text) for text in seeds]
        for number in range(stage.rounds):
            if len(kept) >= stage.count:
                break
            asked = [number * stage.batch + i for i in range(stage.batch)]
            make = functools.partial(_lists, stage, speaker, manner, list(seeds), list(kept))
            for row in opening.made(asked, "lists of instructions", make, f"round-{number:04d}-"):
                for text in row["items"]:
                    reason = fault_of(text, pool, stage.overlap) or ("enough" if len(kept) >= stage.count else None)
                    if reason is not None:
                        dropped.append({"instruction": text, "round": number, "dropped": reason})
                        continue
                    kept.append(text)
                    pool.append(words(text))
        answered = opening.made(
            list(enumerate(kept)), "answers", functools.partial(_answers, speaker, manner), "answers-"
        )
        rows = [row for row in answered if row["dropped"] is None]
        dropped += [{"instruction": row["messages"][0]["content"], "dropped": row["dropped"]} for row in answered
                    if row["dropped"] is not None]  # fmt: skip
        counts = collections.Counter(row["dropped"] for row in dropped)
        metrics = {"instructions": len(kept), "kept": len(rows), "dropped": dict(sorted(counts.items()))}
        if processes.is_first_process():
            folder = workspace.folder(stage.name)
            files.write_lines(folder / "sft.jsonl", rows)
            files.write_lines(folder / "dropped.jsonl", dropped)
            files.write_json(folder / "stats.json", {**metrics, "asked": speaker.summary(),
                                                     "device_hours": opening.device_hours})  # fmt: skip
    return {"files": ["sft.jsonl", "dropped.jsonl", "stats.json"], "metrics": metrics}


def _lists(
    stage: SelfInstruct, speaker: Speaker, manner: Manner, seeds: Sequence[str], own: Sequence[str],
    numbers: Sequence[int], _: Any,
) -> list[Row]:  # fmt: skip
    """The lists that one round asks for; the examples are a function of the seed and what earlier rounds kept."""
    asks = []
    for number in numbers:
        rng = random.Random(f"{stage.seed} list {number}")
        new = min(stage.shots // 4, len(own))
        shots = rng.sample(list(seeds), min(stage.shots - new, len(seeds))) + rng.sample(list(own), new)
        rng.shuffle(shots)
        lines = "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(shots, 1))
        content = SELF_INSTRUCT.format(new=NEW, shots=lines, next=len(shots) + 1)
        asks.append(Ask([{"role": "user", "content": content}], number))
    said = answer_all(speaker, asks, manner)
    return [{"number": number, "failed": one.failed, "items": items_of(one.text, one.cut)}
            for number, one in zip(numbers, said, strict=True)]  # fmt: skip


def items_of(text: str, cut: bool) -> list[str]:
    """The instructions of a list; the first may stand without its number, and the last is not used where it was cut."""
    first, *rest = text.strip().split("\n", 1)
    items = [match[1] for match in _ITEM.findall("\n".join([first, *rest]))]
    if first.strip() and not _ITEM.match(first):
        items.insert(0, first.strip())
    return items[: -1 if cut else None]


def fault_of(text: str, pool: Sequence[Sequence[str]], overlap: float) -> str | None:
    """Why an instruction is dropped: its length, what it asks for, or too much in common with another."""
    own = words(text)
    if not _FEWEST <= len(own) <= _MOST:
        return "length"
    if _BARRED.search(text):
        return "not for a text model"
    if not text[0].isascii() or text[0] in "!\"#%&'*+,-./:;<=>?@[]^_`{|}~":
        return "begins with punctuation"
    if any(rouge_l(own, other) >= overlap for other in pool if _may(own, other, overlap)):
        return "like another"
    return None


def _may(a: Sequence[str], b: Sequence[str], overlap: float) -> bool:
    """Whether the words in common, in any order, allow such a ROUGE-L; most pairs are ruled out here."""
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * common >= overlap * (len(a) + len(b))


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """The F measure of the longest common subsequence of words: 2 L / (|a| + |b|)."""
    if not a or not b:
        return 0.0
    last = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(last[j] + 1 if x == y else max(last[j + 1], row[j]))
        last = row
    return 2 * last[-1] / (len(a) + len(b))


def _answers(speaker: Speaker, manner: Manner, rows: Sequence[tuple[int, str]], _: Any) -> list[Row]:
    asks = [Ask([{"role": "user", "content": text}], _ANSWERS + number) for number, text in rows]
    made = []
    for (number, text), said in zip(rows, answer_all(speaker, asks, manner), strict=True):
        answer = said.text.strip()
        fault = "no answer" if said.failed else "cut" if said.cut else None if answer else "empty"
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        made.append({"id": number, "messages": turns, "prompt_version": VERSION,
                     "dropped": None if fault is None else f"answer: {fault}"})  # fmt: skip
    return made
