"""The stage `MajorityVote`: labels prompts with the model's majority answer, and with other noisy labels.

    prompts → 64 responses each → extracted answers, counted → votes.jsonl → one file for each set of labels

Votes are counted by exact string after the extractor's normalisation: equal answers in different notations are counted
separately (spec spurious_rewards §4.2). An answer is correct if the verifier accepts the first response that gave it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypedDict

import jax
import numpy as np

from easylm_jax.config import MajorityVote
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Cache
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.decode.rollout import Rollout
from easylm_jax.evaluate.statistics import mean
from easylm_jax.rewards import spurious
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import write_lines
from easylm_jax.synthesize.batches import FinishedBatch, MakeRecords, generate_in_batches, read_batch
from models import reading

Record = dict[str, Any]
SHUFFLE_SEED = 42


class Votes(TypedDict):
    """A record of `votes.jsonl`: a prompt with the answers to it, as (answer, samples that gave it, correct)."""

    messages: list[dict[str, str]]
    columns: dict[str, Any]
    samples: int
    code_share: float
    answers: list[tuple[str, int, bool]]


def majority_vote(stage: MajorityVote, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""

    def prepare(mesh: jax.sharding.Mesh, cache: Cache, tokenizer: Tokenizer) -> tuple[None, MakeRecords]:
        return None, _vote_counter(stage, cache, tokenizer)

    batches = generate_in_batches(stage, workspace, prepare)
    names = list(dict.fromkeys(("labelled", "incorrect", *stage.variants)))
    files = ["votes.jsonl", *(f"{name}.jsonl" for name in names)]
    metrics: dict[str, Any] = {}
    if processes.is_first_process():
        folder = workspace.folder(stage.name)
        votes = read_votes(batches, stage.samples)
        write_lines(folder / "votes.jsonl", votes)
        for name in names:
            write_lines(folder / f"{name}.jsonl", labelled(votes, name, stage.label))
        metrics = summary(votes)
    processes.barrier(f"{stage.name} labelled")
    return {"files": files, "metrics": metrics}


def read_votes(batches: Iterable[FinishedBatch], samples: int) -> list[Record]:
    """The records of all batches; `Damaged` if one is not of so many samples, or has a share outside of 0 to 1."""
    votes = []
    for batch in batches:
        for record in read_batch(batch, Votes):
            if record["samples"] != samples or not 0 <= record["code_share"] <= 1:
                found = f"{record['samples']} samples, code_share {record['code_share']}"
                raise reading.Damaged(batch.path, f"{found} of a prompt with {samples} samples")
            votes.append(record)
    return votes


def _vote_counter(stage: MajorityVote, cache: Cache, tokenizer: Tokenizer) -> MakeRecords:
    """A function that makes the record of `votes.jsonl` for each prompt of a rollout."""
    extract, verify = spurious.extractor(stage.extract), ExpressionScorer(stage.check)

    def count_votes(sampled: Rollout) -> Iterator[Record]:
        texts, records = rollout.responses_and_records(sampled, cache, tokenizer, seed=stage.seed)
        counted = []  # (first row of the prompt, answer, votes, row of the first response that gave it)
        for first in range(0, sampled.rows, stage.samples):
            answers = [extract(text) for text in texts[first : first + stage.samples]]
            counted += [(first, answer, n, first + answers.index(answer)) for answer, n in spurious.votes(answers)]
        rows = [row for *_, row in counted]
        scores = verify([texts[row] for row in rows], [records[row] for row in rows]).scores if rows else np.zeros(0)
        for first in range(0, sampled.rows, stage.samples):
            record = records[first]
            yield {
                "messages": record["_messages"],
                "columns": {name: value for name, value in record.items() if not name.startswith("_")},
                "samples": stage.samples,
                "code_share": float(np.mean([spurious.python(t, {}) for t in texts[first : first + stage.samples]])),
                "answers": [
                    [answer, n, bool(score > 0)]
                    for (prompt, answer, n, _), score in zip(counted, scores, strict=True) if prompt == first
                ],
            }  # fmt: skip

    return count_votes


def labelled(votes: Iterable[Record], variant: str, label: str = "answer") -> list[Record]:
    """Training rows with pseudo-labels, from the records of `votes.jsonl`.

    A row has the prompt, its columns, the pseudo-label in the column `label`, the record's own label as `truth`, the
    share of samples that gave the pseudo-label (`agreement`) and whether it is correct (`correct`). Prompts without any
    extracted answer are left out. Variants (spec spurious_rewards §2, §4.2):

        labelled            the majority answer; ties go to the first seen
        incorrect           the majority answer, on prompts where it is wrong
        rank-K              the K-th most frequent answer (0 is the majority), on prompts with more than K answers
        least-voted         the least frequent answer
        shuffled            the majority answers, shuffled over the prompts (seed 42)
        truths              the records' own labels, on the prompts of "incorrect"
        unsolved            as labelled, on prompts that no sample solved
        code-at-most-X      as labelled, on prompts where at most X % of the samples contain "python"
    """
    records = [record for record in votes if record["answers"]]
    name, _, number = variant.rpartition("-")
    if variant == "unsolved":
        records = [record for record in records if not any(correct for *_, correct in record["answers"])]
    elif name == "code-at-most":
        records = [record for record in records if 100 * record["code_share"] <= float(number)]
    elif name == "rank":
        records = [record for record in records if len(record["answers"]) > int(number)]
    elif variant in ("incorrect", "truths"):
        records = [record for record in records if not record["answers"][0][2]]
    rank = int(number) if name == "rank" else -1 if variant == "least-voted" else 0
    rows = [_row(record, record["answers"][rank], label) for record in records]
    if variant == "truths":
        for row in rows:
            row |= {label: row["truth"], "correct": True}
    elif variant == "shuffled":
        _shuffle_labels(rows, records, label)
    return rows


def _shuffle_labels(rows: Sequence[Record], records: Sequence[Record], label: str) -> None:
    """Permutes the pseudo-labels of the rows in place, with the agreement and correctness of each new label."""
    order = list(range(len(rows)))
    random.Random(SHUFFLE_SEED).shuffle(order)
    shuffled = [rows[place][label] for place in order]
    for row, record, answer in zip(rows, records, shuffled, strict=True):
        count, correct = next(((n, correct) for text, n, correct in record["answers"] if text == answer), (0, False))
        row.update({label: answer, "agreement": count / record["samples"], "correct": correct})


def _row(record: Record, chosen: Sequence[Any], label: str) -> Record:
    answer, count, correct = chosen
    return {
        "messages": record["messages"], **record["columns"], label: answer, "truth": record["columns"].get(label),
        "agreement": count / record["samples"], "correct": correct,
    }  # fmt: skip


def summary(votes: Sequence[Record]) -> dict[str, Any]:
    """The quality of the labels, as means with standard errors over prompts.

    `correct`: share of correct majority answers; `pass_rate`: share of correct answers among all samples; `agreement`:
    share of samples that gave the majority answer; `code_share`: share of samples that contain "python".
    """
    answered = [record for record in votes if record["answers"]]
    metrics: dict[str, Any] = {
        "prompts": len(votes), "labelled": len(answered),
        "incorrect": sum(not record["answers"][0][2] for record in answered),
    }  # fmt: skip
    columns = {
        "correct": [record["answers"][0][2] for record in answered],
        "agreement": [record["answers"][0][1] / record["samples"] for record in answered],
        "pass_rate": [sum(n for _, n, correct in r["answers"] if correct) / r["samples"] for r in votes],
        "code_share": [record["code_share"] for record in votes],
    }
    for name, values in columns.items():
        if values:
            metrics[name], metrics[f"{name}_stderr"] = mean(np.array(values, np.float64))
    return metrics
