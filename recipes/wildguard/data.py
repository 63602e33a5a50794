"""WildGuardMix by its columns as conversations that train a moderator (spec wildguard §2 to §5).

A row becomes a user turn, the moderator's input, and an assistant turn of three lines. Prompt-only rows have N/A in the
two lines of the response. A row with a response whose label is null is trained as a prompt-only row, since a line
without a label cannot be trained; the paper does not say what it does. Rows without a label of the prompt are left out.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from easylm_jax.config import DataSpec, Source
from models.errors import UserError

TASKS = ("prompt_harmfulness", "response_refusal", "response_harmfulness")
COLUMNS = ("prompt_harm_label", "response_refusal_label", "response_harm_label")
YES = {"harmful": "yes", "unharmful": "no", "refusal": "yes", "compliance": "no"}
MIX = Source("hf:allenai/wildguardmix:train", subset="wildguardtrain")  # 86,759 rows, gated
LENGTH = 4096  # tokens (spec wildguard §5, from memory of the paper)

Row = Mapping[str, Any]


def conversation(row: Row, tasks: Iterable[str] = TASKS) -> dict[str, Any] | None:
    """The conversation of one row of WildGuardMix; None without a label of the prompt.

    With fewer `tasks`, the other lines are N/A, as the ablation of a single task needs them.
    """
    from easylm_jax.rewards.moderator import TEMPLATE, fill, target

    labels = [YES.get(str(row.get(column))) for column in COLUMNS]
    response = row.get("response") or None
    if labels[0] is None:
        return None
    if response is None or labels[1] is None or labels[2] is None:
        response, labels = None, [labels[0], "N/A", "N/A"]
    answers = {task: str(label) if task in tasks else "N/A" for task, label in zip(TASKS, labels, strict=True)}
    if TASKS[0] not in tasks:  # the first line has no N/A: it is answered, whatever the ablation
        answers[TASKS[0]] = str(labels[0])
    return {
        "messages": [
            {"role": "user", "content": fill(TEMPLATE, str(row["prompt"]), response)},
            {"role": "assistant", "content": target(answers)},
        ]
    }


def conversations(rows: Iterable[Row], *, tasks: Iterable[str] = TASKS, adversarial: bool = True,
                  in_the_wild: bool = True) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The conversations of all rows, without adversarial rows or without those in the wild where asked.

    Rows say whether they are adversarial; a column `source` says which are in the wild ("wild", "in_the_wild"), where
    a mixture has it: the released one does not.
    """
    tasks = tuple(tasks)
    for row in rows:
        wild = "wild" in str(row.get("source", "")).lower()
        if (adversarial or not row.get("adversarial")) and (in_the_wild or not wild):
            made = conversation(row, tasks)
            if made is not None:
                yield made


def balance(rows: Iterable[Row]) -> dict[str, int]:
    """Counts that are looked at before training: labels, adversarial rows, rows with a response, null labels."""
    counts: collections.Counter[str] = collections.Counter()
    for row in rows:
        counts["rows"] += 1
        counts["adversarial"] += bool(row.get("adversarial"))
        counts["with response"] += bool(row.get("response"))
        for column in COLUMNS:
            label = row.get(column)
            counts[f"{column} {label}"] += bool(label) or bool(row.get("response"))
    return {name: count for name, count in counts.items() if count}


def write(
    seed: int, path: str | None = None, task: str | None = None, adversarial: bool = True, in_the_wild: bool = True
) -> dict[str, Any]:  # fmt: skip
    """`train.jsonl` of the mixture: for `MakeData`. `path` is a file in the place of the published set."""
    from easylm_jax.data.records import BadRecord
    from easylm_jax.data.sources import read_records

    def rows() -> Iterator[Row]:
        for record, where in read_records(MIX if path is None else Source(path)):
            if isinstance(record, BadRecord):
                raise UserError(str(record))
            lacking = [name for name in ("prompt", *COLUMNS) if name not in record]
            if lacking:
                known = ", ".join(("prompt", "response", "adversarial", *COLUMNS))
                raise UserError(f"{where}: no column {', '.join(lacking)}; WildGuardMix has {known}")
            yield record

    tasks = TASKS if task is None else (task,)
    made = conversations(rows(), tasks=tasks, adversarial=adversarial, in_the_wild=in_the_wild)
    return {"train.jsonl": made, "balance.jsonl": [balance(rows())]}


def spec(stage: str = "data", tokenizer: str = "hf:mistralai/Mistral-7B-v0.3", length: int = LENGTH) -> DataSpec:
    """The conversations of a stage, packed; only the three lines are trained."""
    return DataSpec(
        (Source(f"stage:{stage}/train.jsonl"),), tokenizer, length, kind="chat", template="plain",
        train_on="last_assistant", packing="best_fit", overlong="drop",
    )  # fmt: skip
