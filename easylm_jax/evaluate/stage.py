"""The stage `Evaluate`: every model of its entries on every task, one file a model, then the table.

What a model gave is written as soon as it is known, so an evaluation that was stopped goes on with the next model.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from easylm_jax.checkpoint.load import ModelSource, check_same_tokenizer, model_from
from easylm_jax.config import Entry, Evaluate, Reward, Task, fields
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import load_tokenizer
from easylm_jax.data.build import stage_cache
from easylm_jax.decode import rollout
from easylm_jax.decode.generator import check_samples, prepare_generator
from easylm_jax.evaluate.statistics import Estimate, difference, mean
from easylm_jax.objectives import base, target_scores
from easylm_jax.rewards.scorer import make_scorer, verified
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime import chunked, compiler, processes, sharding
from easylm_jax.runtime.files import write_json, write_lines
from easylm_jax.runtime.mesh import batch_split, make_mesh
from models.model import Model

PyTree = Any
ROWS = 64  # responses that a model scores at once
SHOWN = 8  # prompts of each task whose answers go to samples.jsonl


def evaluate(stage: Evaluate, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns what `done.json` will say."""
    folder = workspace.folder(stage.name)
    recipe = workspace.recipe
    mesh = sharding.decode_mesh_of(stage.name, make_mesh(recipe.mesh), recipe.decode_mesh)
    tasks = [_Prompts(task, workspace) for task in stage.tasks]
    # An unknown verifier is told before any work.
    judges = {
        text: ExpressionScorer(text) for task in stage.tasks for text in (task.verifier, *dict(task.also).values())
    }
    names = dict.fromkeys(name for entry in stage.entries for name in entry.stages)
    results = {}
    for name in names:
        path, key = folder / "models" / f"{_file_name(name)}.json", _key(stage, name, workspace)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if known.get("key") != key:
            with jax.set_mesh(mesh):
                result = _judged(stage, name, tasks, judges, workspace, mesh)
            if processes.is_first_process():
                write_json(path, {"model": name, "key": key, **result})
            processes.barrier(f"judged {name}")
            known = json.loads(path.read_text(encoding="utf-8"))
        results[name] = known
    table = _table(stage, workspace, results, tasks)
    if processes.is_first_process():
        write_lines(folder / "samples.jsonl", _samples(stage, results))
        write_json(folder / "table.json", table)
        write_json(workspace.root / "table.json", table)
    return {"table": "table.json", "metrics": {row["method"]: row["score"] for row in table["rows"]}}


def _key(stage: Evaluate, name: str, workspace: Workspace) -> str:
    """Changes with the model, the tasks and whatever else decides what a model's file says; and with a stage that was
    run anew, even with the settings that it had."""
    known = {other.name: other for other in workspace.recipe.stages}
    judges = [task.best_of for task in stage.tasks]
    models = {
        model: [workspace.settings(known[model]), workspace.done(known[model])] if model in known else model
        for model in (name, stage.reference, *judges)
        if model is not None
    }
    return fields.digest([models, stage.tasks, stage.kl_prompts, stage.seed, stage.compute])


class _Prompts:
    """A task with its prompts in memory."""

    def __init__(self, task: Task, workspace: Workspace):
        self.task, self.cache = task, stage_cache(workspace, task.data)
        self.tokenizer = load_tokenizer(workspace.data(task.data).tokenizer)
        count = self.cache.rows if task.limit is None else min(task.limit, self.cache.rows)
        self.batch = self.cache.read(np.arange(count))

    @property
    def count(self) -> int:
        return len(self.batch["lengths"])

    def record(self, index: int) -> dict[str, Any]:
        return self.cache.record(int(self.batch["prompt_index"][index]))


def _judged(
    stage: Evaluate, name: str, tasks: list[_Prompts], judges: dict, workspace: Workspace, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """What one model gives on all tasks, prompt by prompt."""
    source = model_from(workspace.model(name), mesh, compute=stage.compute)
    for it in tasks:
        check_samples(f"stage {stage.name}: task {it.task.name}", it.task.sampling, it.task.samples)
        check_same_tokenizer(stage.name, "model", name, source, it.tokenizer)
    params = source.frozen(mesh)
    found: dict[str, Any] = {"tasks": {}}
    for it in tasks:
        task = it.task
        generator = prepare_generator(stage.name, source.decoder, it.tokenizer, task.sampling, mesh, [it.cache])
        made = generator.sample(params, it.cache, it.batch, samples=task.samples, seed=stage.seed)
        named = list(dict.fromkeys((task.verifier, *dict(task.also).values())))
        verdicts = verified([judges[text] for text in named], made, it.cache, it.tokenizer, seed=stage.seed)
        given = {text: one.scores.reshape(-1, task.samples) for text, one in zip(named, verdicts, strict=True)}
        scores = given[task.verifier]
        texts = [rollout.text_of(made, row, it.tokenizer) for row in range(made.rows)]
        shown = np.zeros(it.count, np.int64)  # which of a prompt's answers
        if task.best_of is not None:
            shown = _liked(stage, task, made, it, workspace, mesh)
        of_shown = scores[np.arange(it.count), shown]
        found["tasks"][task.name] = {
            "scores": (scores.mean(axis=1) if task.best_of is None else of_shown).tolist(),
            "also": {name: column.tolist() for name, column in _also(task, given, shown).items()},
            "length": float(made.lengths.mean()), "ended": float(made.ended.mean()),
            "samples": [
                {"prompt": it.record(i)["_messages"], "response": texts[row], "score": float(of_shown[i])}
                for i, row in enumerate((np.arange(it.count) * task.samples + shown)[:SHOWN])
            ],
        }  # fmt: skip
    if stage.reference is not None:
        found["kl"] = _divergence(stage, source, params, tasks[0], workspace, mesh)
    return found


def _also(task: Task, given: dict[str, np.ndarray], shown: np.ndarray) -> dict[str, np.ndarray]:
    """The further columns of a task, [prompts] each: its `also`, and pass@k where a prompt has several answers."""
    one = np.arange(len(shown))
    columns = {
        name: given[text].mean(axis=1) if task.best_of is None else given[text][one, shown]
        for name, text in task.also
    }  # fmt: skip
    if task.samples > 1:
        columns[f"pass@{task.samples}"] = given[task.verifier].max(axis=1)
    return columns


def _liked(
    stage: Evaluate, task: Task, made: rollout.Rollout, it: _Prompts, workspace: Workspace, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """[prompts]: which of its answers a reward model likes best (best-of-N; spec tulu25 §11.3)."""
    judge = make_scorer(
        stage.name, Reward(model=task.best_of), workspace, mesh, it.cache, it.tokenizer, stage.compute, _rows(mesh),
        stage.seed,
    )  # fmt: skip
    judge(made)
    return made.scores.reshape(-1, task.samples).argmax(axis=1)


def _rows(mesh: jax.sharding.Mesh) -> int:
    return -(-ROWS // batch_split(mesh)) * batch_split(mesh)


@functools.lru_cache(maxsize=2)
def _scorer(model: Model, mesh: jax.sharding.Mesh):
    return compiler.scorer(lambda params, batch: target_scores(model, params, batch).logprobs, mesh, model.compute)


def _divergence(
    stage: Evaluate, source: ModelSource, params: PyTree, it: _Prompts, workspace: Workspace, mesh: jax.sharding.Mesh
) -> list[float]:
    """Σ log π − log π_reference over one sampled answer (temperature 1) to each prompt, in nats."""
    assert stage.reference is not None
    reference = model_from(workspace.model(stage.reference), mesh, compute=stage.compute)
    batch = {name: array[: stage.kl_prompts] for name, array in it.batch.items()}
    sampling = dataclasses.replace(it.task.sampling, temperature=1.0, top_k=None, top_p=None)
    generator = prepare_generator(stage.name, source.decoder, it.tokenizer, sampling, mesh)
    made = generator.sample(params, it.cache, batch, seed=stage.seed)
    columns = rollout.columns_of(made)
    forward = {name: columns[name] for name in base.FORWARD}

    def scores(model: Model, own: PyTree) -> np.ndarray:
        return chunked.in_chunks(_scorer(model, mesh), [own], forward, _rows(mesh), mesh)

    apart = scores(source.decoder, params) - scores(reference.decoder, reference.frozen(mesh))
    return (apart * columns["mask"]).sum(axis=1, dtype=np.float64).tolist()


def _table(stage: Evaluate, workspace: Workspace, results: dict[str, Any], tasks: list[_Prompts]) -> dict[str, Any]:
    names = [task.task.name for task in tasks]
    scores = {  # [seeds, prompts] for each method and task
        entry.method: {
            task: np.array([results[stage_name]["tasks"][task]["scores"] for stage_name in entry.stages])
            for task in names
        }
        for entry in stage.entries
    }
    rows = [_row(stage, entry, results, scores, names) for entry in stage.entries]
    done = [workspace.done(other) for other in workspace.recipe.stages if other.name != stage.name]
    return {
        "title": stage.title,
        "recipe": workspace.recipe.name,
        "stage": stage.name,
        "tasks": [
            {"name": it.task.name, "prompts": it.count, "metric": it.task.verifier, "samples": it.task.samples}
            for it in tasks
        ],
        **({"average": list(stage.average)} if stage.average else {}),
        "rows": rows,
        "seconds": sum(one["seconds"] for one in done if one),
    }


def _row(
    stage: Evaluate, entry: Entry, results: dict[str, Any], scores: dict[str, dict[str, np.ndarray]], names: list[str]
) -> dict[str, Any]:
    """One method's line: means over tasks of means over prompts; errors of independent tasks add in squares.

    The score and the difference are of the tasks that `Evaluate.average` names.
    """
    own = scores[entry.method]
    each = {name: mean(own[name]) for name in names}
    overall = _average([each[name] for name in stage.averaged])
    row: dict[str, Any] = {
        "method": entry.method, "stages": list(entry.stages), "score": overall.value, "stderr": overall.stderr,
        "interval": list(overall.interval), "n": int(sum(own[name].shape[1] for name in stage.averaged)),
        "seeds": len(entry.stages),
        "scores": {
            name: {"score": one.value, "stderr": one.stderr}
            for name, one in {**each, **_further(entry, results, names)}.items()
        },
    }  # fmt: skip
    for what in ("length", "ended"):
        row[what] = float(np.mean([results[s]["tasks"][task][what] for s in entry.stages for task in names]))
    row["kl"] = row["kl_stderr"] = row["over"] = None
    if stage.reference is not None:
        divergence = mean(np.array([results[s]["kl"] for s in entry.stages]))
        row["kl"], row["kl_stderr"] = divergence
    if entry.over is not None:
        apart = _average([difference(own[name], scores[entry.over][name]) for name in stage.averaged])
        row["over"] = {"method": entry.over, "difference": apart.value, "stderr": apart.stderr}
    published = {p.column: p.value for p in stage.published if p.method == entry.method}
    row["published"] = published or None
    return row


def _further(entry: Entry, results: dict[str, Any], names: list[str]) -> dict[str, Estimate]:
    """Means of the further columns of each task (`Task.also`, pass@k), which do not enter the score."""
    columns = {(task, name): None for task in names for name in results[entry.stages[0]]["tasks"][task]["also"]}
    return {
        f"{task} {name}": mean(np.array([results[stage]["tasks"][task]["also"][name] for stage in entry.stages]))
        for task, name in columns
    }


def _average(estimates: list[Estimate]) -> Estimate:
    count = len(estimates)
    return Estimate(sum(one.value for one in estimates) / count, sum(one.stderr**2 for one in estimates) ** 0.5 / count)


def _samples(stage: Evaluate, results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The first answers of every method's first seed."""
    for entry in stage.entries:
        name = entry.stages[0]
        for task, found in results[name]["tasks"].items():
            for sample in found["samples"]:
                prompt = sample["prompt"][-1]["content"]
                yield {"method": entry.method, "stage": name, "task": task, **sample, "prompt": prompt}


def _file_name(model: str) -> str:
    """A model's name where it can be a file's, else a hash of it."""
    plain = all(c.isalnum() or c in "-_." for c in model)
    return model if plain else hashlib.sha256(model.encode()).hexdigest()[:16]
