"""The stage `BestOfN`: responses ranked by a reward, for rejection sampling and as preference pairs.

Prompts are processed in batches. The responses of each batch are written to a file of their own in one piece, so a
stopped stage resumes with the next batch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import jax
import numpy as np

from easylm_jax.config import BestOfN
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Cache
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.decode.rollout import Rollout
from easylm_jax.evaluate.statistics import mean
from easylm_jax.rewards.scorer import make_scorer
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import atomic_write
from easylm_jax.runtime.mesh import batch_split
from easylm_jax.synthesize.batches import FinishedBatch, MakeRecords, ScoreBatch, generate_in_batches, read_batch
from models import reading


class _Ranked(TypedDict):
    """A prompt with its responses and their rewards."""

    messages: list[dict[str, str]]
    answers: list[str]
    scores: list[float]


def best_of_n(stage: BestOfN, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""

    def prepare(mesh: jax.sharding.Mesh, cache: Cache, tokenizer: Tokenizer) -> tuple[ScoreBatch, MakeRecords]:
        rows = -(-stage.batch // batch_split(mesh)) * batch_split(mesh)
        scorer = make_scorer(
            stage.name,
            stage.reward,
            workspace,
            mesh,
            cache,
            tokenizer,
            stage.compute,
            rows,
            stage.seed,
            stage.sampling.max_new_tokens,
        )
        return scorer, lambda sampled: _records(stage, sampled, cache, tokenizer)

    batches = generate_in_batches(stage, workspace, prepare)
    metrics: dict[str, Any] = {}
    if processes.is_first_process():
        metrics = _write_files(workspace.folder(stage.name), batches, stage.pairs)
    processes.barrier(f"{stage.name} gathered")
    return {"files": ["best.jsonl", "pairs.jsonl", "answers.jsonl"], "metrics": metrics}


def _records(stage: BestOfN, sampled: Rollout, cache: Cache, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """A record for each prompt: its conversation, its responses and their final rewards."""
    for prompt, rewards in enumerate(sampled.final(stage.reward).reshape(-1, stage.samples)):
        first = prompt * stage.samples
        record = cache.record(int(sampled.prompt_index[first]))
        responses = [rollout.text_of(sampled, first + i, tokenizer) for i in range(stage.samples)]
        yield {"messages": record["_messages"], "answers": responses, "scores": rewards.tolist()}


def pairs_of(scores: Sequence[float], responses: Sequence[str], limit: int) -> list[tuple[int, int]]:
    """(chosen, rejected) indices of at most `limit` pairs: the best response with the worst, the second best with the
    second worst, and so on; each response is used once.

    Empty responses and duplicates of earlier ones are left out, and no pair has equal scores.
    """
    enumerated = reversed(list(enumerate(responses)))
    distinct = {response.strip(): index for index, response in enumerated if response.strip()}
    order = sorted(distinct.values(), key=lambda index: (-scores[index], index))
    matched = zip(order, reversed(order), strict=True)
    pairs = [(high, low) for high, low in matched if scores[high] > scores[low]]
    return pairs[: min(limit, len(order) // 2)]


def _write_files(folder: Path, batches: Sequence[FinishedBatch], max_pairs: int) -> dict[str, Any]:
    """Writes the three output files from the files of the batches; returns the mean scores of the best and of all."""
    best_scores, mean_scores, pairs = [], [], 0
    with contextlib.ExitStack() as stack:
        names = ("best", "pairs", "answers")
        files = {name: stack.enter_context(atomic_write(folder / f"{name}.jsonl")) for name in names}
        for batch in batches:
            for record in read_batch(batch, _Ranked):
                scores, responses = record["scores"], record["answers"]
                if not 0 < len(scores) == len(responses):
                    raise reading.Damaged(batch.path, f"{len(scores)} scores of {len(responses)} answers")
                best = int(np.argmax(scores))
                turns = [[*record["messages"], {"role": "assistant", "content": response}] for response in responses]
                _write(files["best"], {"messages": turns[best], "score": scores[best]})
                for chosen, rejected in pairs_of(scores, responses, max_pairs):
                    pairs += 1
                    margin = scores[chosen] - scores[rejected]
                    _write(files["pairs"], {"chosen": turns[chosen], "rejected": turns[rejected], "margin": margin})
                _write(files["answers"], record)
                best_scores.append(scores[best])
                mean_scores.append(float(np.mean(scores)))
    best_estimate, mean_estimate = mean(np.array(best_scores)), mean(np.array(mean_scores))
    return {
        "prompts": len(best_scores), "pairs": pairs,
        "best_score": best_estimate.value, "best_score_stderr": best_estimate.stderr,
        "score": mean_estimate.value, "score_stderr": mean_estimate.stderr,
    }  # fmt: skip


def _write(file: BinaryIO, record: dict[str, Any]) -> None:
    file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
