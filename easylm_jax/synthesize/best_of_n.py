"""The stage `BestOfN`: answers that a reward orders, for rejection sampling and as pairs for preference training.

Prompts are gone through in batches; each batch's answers are a file of their own, written whole, so a stage that was
stopped goes on with the next batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from easylm_jax.config import BestOfN
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import Cache
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import rollout
from easylm_jax.evaluate.statistics import mean
from easylm_jax.rewards.scorer import make_scorer
from easylm_jax.runtime import processes
from easylm_jax.runtime.mesh import batch_split
from easylm_jax.synthesize.batches import Scoring, Writing, in_parts, lines_of


def best_of_n(stage: BestOfN, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns what `done.json` will say."""

    def prepared(mesh: jax.sharding.Mesh, cache: Cache, tokenizer: Tokenizer) -> tuple[Scoring, Writing]:
        rows = -(-stage.batch // batch_split(mesh)) * batch_split(mesh)
        judge = make_scorer(
            stage.name, stage.reward, workspace, mesh, cache, tokenizer, stage.compute, rows, stage.seed
        )
        return judge, lambda made: _answered(stage, made, cache, tokenizer)

    parts = in_parts(stage, workspace, prepared)
    facts: dict[str, Any] = {}
    if processes.is_first_process():
        facts = _gather(workspace.folder(stage.name), parts, stage.pairs)
    processes.barrier(f"{stage.name} gathered")
    return {"files": ["best.jsonl", "pairs.jsonl", "answers.jsonl"], "metrics": facts}


def _answered(stage: BestOfN, made: rollout.Rollout, cache: Cache, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """A line for each prompt: its conversation, its answers and their scores."""
    for prompt, scores in enumerate(made.final(stage.reward).reshape(-1, stage.samples)):
        first = prompt * stage.samples
        record = cache.record(int(made.prompt_index[first]))
        answers = [rollout.text_of(made, first + i, tokenizer) for i in range(stage.samples)]
        yield {"messages": record["_messages"], "answers": answers, "scores": scores.tolist()}


def pairs_of(scores: Sequence[float], answers: Sequence[str], most: int) -> list[tuple[int, int]]:
    """(chosen, rejected) numbers of at most `most` pairs: best with worst, next best with next worst, each answer once.

    Empty answers and repetitions of one that came before make no pair; nor do answers of equal score.
    """
    distinct = {answer.strip(): number for number, answer in reversed(list(enumerate(answers))) if answer.strip()}
    order = sorted(distinct.values(), key=lambda number: (-scores[number], number))
    matched = zip(order, reversed(order), strict=True)
    found = [(high, low) for high, low in matched if scores[high] > scores[low]]
    return found[: min(most, len(order) // 2)]


def _gather(folder: Path, parts: Sequence[Path], most_pairs: int) -> dict[str, Any]:
    """The three files from the parts, and what the scores were: of the best answers, and of all."""
    best_scores, all_scores, pairs = [], [], 0
    names = ("best", "pairs", "answers")
    files = {name: open(folder / f"{name}.jsonl", "w", encoding="utf-8") for name in names}  # noqa: SIM115
    try:
        for part in parts:
            for line in lines_of(part):
                scores, answers = line["scores"], line["answers"]
                best = int(np.argmax(scores))
                turns = [[*line["messages"], {"role": "assistant", "content": answer}] for answer in answers]
                record: dict[str, Any] = {"messages": turns[best], "score": scores[best]}
                files["best"].write(json.dumps(record, ensure_ascii=False) + "\n")
                for chosen, rejected in pairs_of(scores, answers, most_pairs):
                    pairs += 1
                    margin = scores[chosen] - scores[rejected]
                    record = {"chosen": turns[chosen], "rejected": turns[rejected], "margin": margin}
                    files["pairs"].write(json.dumps(record, ensure_ascii=False) + "\n")
                files["answers"].write(json.dumps(line, ensure_ascii=False) + "\n")
                best_scores.append(scores[best])
                all_scores.append(float(np.mean(scores)))
    finally:
        for file in files.values():
            file.close()
    best, average = mean(np.array(best_scores)), mean(np.array(all_scores))
    return {
        "prompts": len(best_scores), "pairs": pairs, "best_score": best.value, "best_score_stderr": best.stderr,
        "score": average.value, "score_stderr": average.stderr,
    }  # fmt: skip
