"""The stage `MajorityVote`: prompts labelled with what the model itself answers most often, and noise of other kinds.

    prompts → 64 answers each → extracted answers, counted → votes.jsonl → one file for each set of labels

A vote is an exact string after the extractor's normalisation: equal answers that are written differently do not join
(spec spurious_rewards §4.2). Whether an answer is right is the verifier's word on the first response that gave it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from easylm_jax.config import MajorityVote
from easylm_jax.config.workspace import Workspace
from easylm_jax.decode import rollout
from easylm_jax.evaluate.statistics import mean
from easylm_jax.rewards import spurious
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import write_lines
from easylm_jax.synthesize.batches import in_parts, lines_of

Line = dict[str, Any]
SHUFFLE_SEED = 42


def majority_vote(stage: MajorityVote, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns what `done.json` will say."""
    parts = in_parts(stage, workspace, lambda *setting: (None, _counting(stage, *setting)))
    names = list(dict.fromkeys(("labelled", "incorrect", *stage.variants)))
    files = ["votes.jsonl", *(f"{name}.jsonl" for name in names)]
    facts: dict[str, Any] = {}
    if processes.is_first_process():
        folder = workspace.folder(stage.name)
        voted = [line for part in parts for line in lines_of(part)]
        write_lines(folder / "votes.jsonl", voted)
        for name in names:
            write_lines(folder / f"{name}.jsonl", labelled(voted, name, stage.label))
        facts = summary(voted)
    processes.barrier(f"{stage.name} labelled")
    return {"files": files, "metrics": facts}


def _counting(
    stage: MajorityVote, mesh: Any, cache: Any, tokenizer: Any
) -> Callable[[rollout.Rollout], Iterator[Line]]:
    """From a batch's answers to a line for each prompt."""
    extract, verify = spurious.extractor(stage.extract), ExpressionScorer(stage.check)

    def lines(made: rollout.Rollout) -> Iterator[Line]:
        texts, records = rollout.answers(made, cache, tokenizer, seed=stage.seed)
        counted = []  # (prompt, answer, votes, row of the first response that gave it)
        for first in range(0, made.rows, stage.samples):
            answers = [extract(text) for text in texts[first : first + stage.samples]]
            counted += [(first, answer, n, first + answers.index(answer)) for answer, n in spurious.votes(answers)]
        rows = [row for *_, row in counted]
        right = verify([texts[row] for row in rows], [records[row] for row in rows]).scores if rows else []
        for first in range(0, made.rows, stage.samples):
            record = records[first]
            yield {
                "messages": record["_messages"],
                "columns": {name: value for name, value in record.items() if not name.startswith("_")},
                "samples": stage.samples,
                "code_share": float(np.mean([spurious.python(t, {}) for t in texts[first : first + stage.samples]])),
                "answers": [
                    [answer, n, bool(score > 0)]
                    for (prompt, answer, n, _), score in zip(counted, right, strict=True) if prompt == first
                ],
            }  # fmt: skip

    return lines


def labelled(voted: Iterable[Line], variant: str, label: str = "answer") -> list[Line]:
    """Rows to train on, from what `votes.jsonl` has of each prompt.

    A row has the prompt, its columns, the pseudo-label in the column `label`, the record's own label as `truth`, the
    share of samples that gave the pseudo-label (`agreement`) and whether it is right (`correct`). Prompts that no
    sample answered are left out. Variants (spec spurious_rewards §2, §4.2):

        labelled            the answer given most often; of equals the first seen
        incorrect           the same, where it is wrong
        rank-K              the K-th most frequent (0 is the first), where there are so many
        least-voted         the least frequent
        shuffled            the most frequent answers, dealt to other prompts (seed 42)
        truths              the records' own labels, on the prompts of "incorrect"
        unsolved            as labelled, prompts that no sample solved
        code-at-most-X      as labelled, prompts where at most X % of the samples say "python"
    """
    lines = [line for line in voted if line["answers"]]
    name, _, number = variant.rpartition("-")
    if variant == "unsolved":
        lines = [line for line in lines if not any(right for *_, right in line["answers"])]
    elif name == "code-at-most":
        lines = [line for line in lines if 100 * line["code_share"] <= float(number)]
    elif name == "rank":
        lines = [line for line in lines if len(line["answers"]) > int(number)]
    elif variant in ("incorrect", "truths"):
        lines = [line for line in lines if not line["answers"][0][2]]
    place = int(number) if name == "rank" else -1 if variant == "least-voted" else 0
    rows = [_row(line, line["answers"][place], label) for line in lines]
    if variant == "truths":
        for row in rows:
            row |= {label: row["truth"], "correct": True}
    elif variant == "shuffled":
        order = list(range(len(rows)))
        random.Random(SHUFFLE_SEED).shuffle(order)
        dealt = [rows[place][label] for place in order]
        for row, line, answer in zip(rows, lines, dealt, strict=True):
            share, right = next(((n, right) for text, n, right in line["answers"] if text == answer), (0, False))
            row |= {label: answer, "agreement": share / line["samples"], "correct": right}
    return rows


def _row(line: Line, chosen: Sequence[Any], label: str) -> Line:
    answer, count, right = chosen
    return {
        "messages": line["messages"], **line["columns"], label: answer, "truth": line["columns"].get(label),
        "agreement": count / line["samples"], "correct": right,
    }  # fmt: skip


def summary(voted: Sequence[Line]) -> dict[str, Any]:
    """How good the labels are: the share that is right, of answers (`pass_rate`) and of majority answers, and how far
    the samples agree; with standard errors over prompts."""
    answered = [line for line in voted if line["answers"]]
    facts: dict[str, Any] = {
        "prompts": len(voted), "labelled": len(answered),
        "incorrect": sum(not line["answers"][0][2] for line in answered),
    }  # fmt: skip
    columns = {
        "correct": [line["answers"][0][2] for line in answered],
        "agreement": [line["answers"][0][1] / line["samples"] for line in answered],
        "pass_rate": [sum(n for _, n, right in line["answers"] if right) / line["samples"] for line in voted],
        "code_share": [line["code_share"] for line in voted],
    }
    for name, values in columns.items():
        if values:
            facts[name], facts[f"{name}_stderr"] = mean(np.array(values, np.float64))
    return facts
