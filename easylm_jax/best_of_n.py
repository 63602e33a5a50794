"""The stage `BestOfN`: answers that a reward orders, for rejection sampling and as pairs for preference training.

Prompts are gone through in batches; each batch's answers are a file of their own, written whole, so a stage that was
stopped goes on with the next batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from easylm_jax import checkpoint_arrays, rollout, sharding
from easylm_jax.config import BestOfN, Write
from easylm_jax.data import Cache, load_tokenizer
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import Engine
from easylm_jax.evaluate.statistics import mean
from easylm_jax.files import write_lines
from easylm_jax.judge import judge_of
from easylm_jax.mesh import batch_split, make_mesh
from easylm_jax.parts import parts_folder
from easylm_jax.stages import say
from easylm_jax.start import check_can_speak, check_room, check_same_tokenizer, model_from
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.experiment import Experiment

Scoring = Callable[[rollout.Rollout, int], Any]
Writing = Callable[[rollout.Rollout], Iterator[dict[str, Any]]]


def best_of_n(stage: BestOfN, experiment: Experiment) -> dict[str, Any]:
    """Runs the stage; returns what `done.json` will say."""

    def prepared(mesh: jax.sharding.Mesh, cache: Cache, tokenizer: Tokenizer) -> tuple[Scoring, Writing]:
        rows = -(-stage.batch // batch_split(mesh)) * batch_split(mesh)
        judge = judge_of(stage.name, stage.reward, experiment, mesh, cache, tokenizer, stage.compute, rows, stage.seed)
        return judge, lambda made: _answered(stage, made, cache, tokenizer)

    parts = in_parts(stage, experiment, prepared)
    facts: dict[str, Any] = {}
    if checkpoint_arrays.is_first_process():
        facts = _gather(experiment.folder(stage.name), parts, stage.pairs)
    checkpoint_arrays.barrier(f"{stage.name} gathered")
    return {"files": ["best.jsonl", "pairs.jsonl", "answers.jsonl"], "metrics": facts}


def in_parts(
    stage: Write,
    experiment: Experiment,
    prepared: Callable[[jax.sharding.Mesh, Cache, Tokenizer], tuple[Scoring | None, Writing]],
) -> list[Path]:
    """Answers every prompt of a stage, `batch` at a time; returns the batches' files, in order.

    `prepared(mesh, cache, tokenizer)` gives what scores the answers of batch `number` (on every process; None where
    nothing does) and what makes a record of each prompt for its file. Files that are there already are not made again.
    """
    greedy = stage.sampling.temperature == 0
    if greedy and stage.samples > 1:
        raise UserError(f"stage {stage.name}: {stage.samples} greedy samples are all the same; set a temperature")
    recipe = experiment.recipe
    mesh = sharding.decoding(stage.name, make_mesh(recipe.mesh), recipe.decode_mesh)
    cache = experiment.cache(stage.data)
    tokenizer = load_tokenizer(experiment.data(stage.data).tokenizer)
    source = model_from(stage.init, experiment, mesh, compute=stage.compute)
    check_can_speak(stage.name, source)
    check_same_tokenizer(stage.name, "model", stage.init, source, tokenizer)
    sharding.check_heads(source.config, mesh)
    check_room(stage.name, source, cache, stage.sampling.max_new_tokens)
    score, write = prepared(mesh, cache, tokenizer)
    writer = rollout.writing(source.decoder, tokenizer)
    engine = Engine(writer, slots=stage.sampling.slots, mesh=mesh if mesh.size > 1 else None)
    count = cache.rows if stage.limit is None else min(stage.limit, cache.rows)
    folder = parts_folder(stage, experiment, "parts")
    paths = []
    with jax.set_mesh(mesh):
        params = source.frozen(mesh)
        for number, chunk in enumerate(rollout.chunks(count, stage.batch)):
            paths.append(folder / f"{number:06d}.jsonl")
            if paths[-1].is_file():
                continue
            made = rollout.sample(
                engine, params, cache.read(np.arange(chunk.start, chunk.stop)), stage.sampling, samples=stage.samples,
                seed=rollout.seed_of(stage.seed, number), tokenizer=tokenizer,
                end_ids=rollout.end_ids(cache, tokenizer), greedy=greedy,
            )  # fmt: skip
            if score is not None:
                score(made, number)
            if checkpoint_arrays.is_first_process():
                write_lines(paths[-1], write(made))
                say(f"{stage.name}: {chunk.stop:,} of {count:,} prompts")
            checkpoint_arrays.barrier(f"{stage.name} {number}")
    return paths


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file. Parted at newlines alone: an answer may hold other characters that `splitlines`
    takes for the end of a line."""
    text = path.read_text(encoding="utf-8")
    return (json.loads(line) for line in text.rstrip("\n").split("\n") if line)


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
