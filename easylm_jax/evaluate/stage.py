"""The stage `Evaluate`: samples and scores responses of every model on every task, and writes the table.

The results and responses of a model are written as soon as they are known, so a stopped evaluation resumes with the
next model:

    models/<model>.json     scores by task and prompt
    models/<model>.jsonl    every response with its label, score and reason
    samples.jsonl           the responses of all models, with the method that each belongs to
    table.json              the table, and how many prompts each task left out
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import jax
import numpy as np

from easylm_jax.checkpoint.load import LoadedModel, ModelSource, model_from, model_tokenizer, resolve_model
from easylm_jax.config import Ask, Entry, Evaluate, Reward, Task, fields
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import load_tokenizer
from easylm_jax.data.build import first_records, stage_cache
from easylm_jax.data.tokenizer import restrict_vocab
from easylm_jax.decode import rollout
from easylm_jax.decode.generator import check_samples, prepare_generator
from easylm_jax.decode.rollout import Rollout
from easylm_jax.evaluate import columns, harness, judges, suites
from easylm_jax.evaluate.statistics import Estimate, difference, mean, weighted
from easylm_jax.objectives import base, target_scores
from easylm_jax.rewards.responses import scored_responses
from easylm_jax.rewards.scorer import make_scorer, score_rollout
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime import chunked, compiler, processes, sharding
from easylm_jax.runtime.files import write_json, write_lines, write_sealed_json
from easylm_jax.runtime.mesh import batch_split, make_mesh
from easylm_jax.runtime.monitor import Progress, counting
from easylm_jax.runtime.processes import log_once
from models import reading
from models.model import Model

PyTree = Any
Response = dict[str, Any]
ROWS = 64  # responses in one forward pass of a model


def evaluate(stage: Evaluate, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    folder = workspace.folder(stage.name)
    recipe = workspace.recipe
    mesh = sharding.decode_mesh_of(stage.name, make_mesh(recipe.mesh), recipe.decode_mesh)
    tasks = [_TaskPrompts(task, workspace) for task in stage.tasks]
    _suite(stage)  # an unknown one is an error before any work
    # Made before any work, so that an unknown verifier is an error at once.
    scorers = {
        text: ExpressionScorer(text) for task in stage.tasks for text in (task.verifier, *dict(task.also).values())
    }
    names = dict.fromkeys(name for entry in stage.entries for name in entry.stages)
    results = {name: _saved_results(stage, name, workspace) for name in names}
    missing = [name for name in names if results[name] is None]
    responses = sum(prompts.count * prompts.task.samples for prompts in tasks)
    with counting(stage.name, len(missing) * responses, "responses") as progress, jax.set_mesh(mesh):
        for name in missing:
            result, kept = _evaluate_model(stage, name, tasks, scorers, workspace, mesh, progress)
            if processes.is_first_process():
                path = _results_file(stage, name, workspace)
                write_lines(path.with_suffix(".jsonl"), kept)
                write_sealed_json(path, {"model": name, "key": _key(stage, name, workspace), **result})
            processes.barrier(f"judged {name}")
            results[name] = _saved_results(stage, name, workspace)
    table = _table(stage, workspace, results, tasks)
    if processes.is_first_process():
        write_lines(folder / "samples.jsonl", _samples(stage, folder / "models"))
        write_json(folder / "table.json", table)
        write_json(workspace.root / "table.json", table)
    return {"table": "table.json", "metrics": {row["method"]: row["score"] for row in table["rows"]}}


class _TaskResults(TypedDict):
    scores: list[float]
    also: dict[str, list[float]]
    length: float
    ended: float


class _ModelResults(TypedDict):
    """The results of a model, as they are kept in `models/<name>.json`."""

    key: str
    tasks: dict[str, _TaskResults]
    kl: NotRequired[list[float]]


def _results_file(stage: Evaluate, name: str, workspace: Workspace) -> Path:
    """Where the results of a model are stored; its responses lie beside it with the suffix .jsonl."""
    return workspace.folder(stage.name) / "models" / f"{_file_name(name)}.json"


def _saved_results(stage: Evaluate, name: str, workspace: Workspace) -> dict[str, Any] | None:
    """The stored results of a model; None if there are none for these settings, or without every response, as older
    versions left them."""
    path = _results_file(stage, name, workspace)
    if not (path.is_file() and path.with_suffix(".jsonl").is_file()):
        return None
    saved = _read_results(path)
    return saved if saved is not None and saved["key"] == _key(stage, name, workspace) else None


def _read_results(path: Path) -> dict[str, Any] | None:
    """The results of a model in a file; None, with a warning, if they are damaged and the model is evaluated again."""
    try:
        return reading.read_sealed(path, _ModelResults, mend="the model is evaluated again")[0]
    except reading.Damaged as error:
        log_once(f"easylm: warning: {error}")
        return None


def _key(stage: Evaluate, name: str, workspace: Workspace) -> str:
    """A hash of everything that determines the results of a model: its stage, the tasks and the settings. It also
    changes when a stage was run again with the same settings."""
    stages = {other.name: other for other in workspace.recipe.stages}
    reward_models = [task.best_of for task in stage.tasks]
    models = {
        model: [workspace.settings(stages[model]), workspace.done(stages[model])] if model in stages else model
        for model in (name, stage.reference, *reward_models)
        if model is not None
    }
    asked = [stage.benchmarks, stage.judge] if stage.benchmarks else []
    return fields.digest([models, stage.tasks, stage.kl_prompts, stage.seed, stage.compute, *asked])


class _TaskPrompts:
    """A task with its prompts in memory: those among the first `Task.limit` that the data do not leave out."""

    def __init__(self, task: Task, workspace: Workspace):
        data = workspace.data(task.data)
        if task.limit is not None:
            data = first_records(data, task.limit)
        self.task, self.cache = task, stage_cache(workspace, data, f"task {task.name}")
        self.tokenizer = load_tokenizer(workspace.data(task.data).tokenizer)
        count = self.cache.rows if task.limit is None else min(task.limit, self.cache.rows)
        self.batch = self.cache.read(np.arange(count))

    @property
    def count(self) -> int:
        """The number of prompts."""
        return len(self.batch["lengths"])

    @property
    def facts(self) -> dict[str, Any]:
        """The task's entry in `table.json`. `left_out` counts, by reason, those of the `read` prompts that it omits."""
        task = self.task
        return {
            "name": task.name, "prompts": self.count, "metric": task.verifier, "samples": task.samples,
            "read": self.cache.records_read, "left_out": self.cache.left_out, "longest": self.cache.sequence_length,
            **({} if task.limit is None else {"limit": task.limit}),
        }  # fmt: skip


def _evaluate_model(
    stage: Evaluate, name: str, tasks: list[_TaskPrompts], scorers: Mapping[str, ExpressionScorer],
    workspace: Workspace, mesh: jax.sharding.Mesh, progress: Progress,
) -> tuple[dict[str, Any], list[Response]]:  # fmt: skip
    """The results of one model on all tasks, by prompt, and its responses (on the first process only)."""
    with progress.phase(f"{name}: loading"):
        source = model_from(workspace.model(name), mesh, compute=stage.compute)
        for prompts in tasks:
            task = prompts.task
            check_samples(f"stage {stage.name}: task {task.name}", task.sampling, task.samples)
        params = source.frozen(mesh)
    results: dict[str, Any] = {"tasks": {}}
    responses: list[Response] = []
    for prompts in tasks:
        task, tokenizer = prompts.task, prompts.tokenizer
        name_of_task = f"{stage.name}: task {task.name}"
        generator = prepare_generator(name_of_task, source.decoder, tokenizer, task.sampling, mesh, [prompts.cache])
        with progress.phase(f"{name}: generating for {task.name}"):
            sampled = generator.sample(
                params, prompts.cache, prompts.batch, samples=task.samples, seed=stage.seed, progress=progress.part()
            )
        with progress.phase(f"{name}: scoring {task.name}"):
            results["tasks"][task.name], scored = _score_task(stage, prompts, sampled, scorers, workspace, mesh)
        responses += scored
    for ask in stage.benchmarks:
        with progress.phase(f"{name}: {ask.benchmark}"):
            results["tasks"][ask.benchmark] = _ask(stage, name, ask, source, params, workspace, mesh)
    if stage.reference is not None:
        with progress.phase(f"{name}: KL from {stage.reference}"):
            results["kl"] = _kl_to_reference(stage, source, params, tasks[0], workspace, mesh)
    return results, responses


def _ask(
    stage: Evaluate, name: str, ask: Ask, source: ModelSource, params: PyTree, workspace: Workspace,
    mesh: jax.sharding.Mesh,
) -> dict[str, Any]:  # fmt: skip
    """The results of one model on a benchmark; its responses are kept beside those of the tasks."""
    init, meta, own = resolve_model(workspace.model(name).removeprefix("run:"))
    tokenizer = model_tokenizer(name, source.config, meta, own, own=own)
    data = (meta.get("config") or {}).get("data") or {}
    decoder = restrict_vocab(source.decoder, tokenizer)
    model = LoadedModel(decoder, params, mesh, tokenizer, data.get("template"), bool(data.get("add_bos")))
    folder = workspace.folder(stage.name) / "models" / _file_name(name)
    judge = None
    if stage.judge is not None:
        own = stage.judging_model
        judge = _judge(stage.judge if own is None else workspace.model(own).removeprefix("run:"))
    asked = harness.ask_model(model, ask, folder, identity=_key(stage, name, workspace), seed=stage.seed, judge=judge)
    return columns.column_of(asked)


@functools.lru_cache(maxsize=1)
def _judge(name: str) -> judges.Judge:
    """The judge of a stage, loaded once for all models and benchmarks."""
    return judges.judge_of(name)


def _score_task(
    stage: Evaluate, prompts: _TaskPrompts, sampled: Rollout, scorers: Mapping[str, ExpressionScorer],
    workspace: Workspace, mesh: jax.sharding.Mesh,
) -> tuple[dict[str, Any], list[Response]]:  # fmt: skip
    """The scores of a model's responses to a task, by prompt, and all responses (on the first process only)."""
    task, count = prompts.task, prompts.count
    texts = list(dict.fromkeys((task.verifier, *dict(task.also).values())))
    found = score_rollout(
        [scorers[text] for text in texts], sampled, prompts.cache, prompts.tokenizer, seed=stage.seed
    )  # fmt: skip
    scores = {text: one.scores.reshape(-1, task.samples) for text, one in zip(texts, found, strict=True)}
    selected = np.zeros(count, np.int64)  # the response to each prompt that counts, with best_of
    if task.best_of is not None:
        selected = _best_of(stage, task, sampled, prompts, workspace, mesh)
    selected_scores = scores[task.verifier][np.arange(count), selected]
    means = scores[task.verifier].mean(axis=1) if task.best_of is None else selected_scores
    scored: list[Response] = []
    if processes.is_first_process():
        scored = [{"task": task.name, **one} for one in
                  scored_responses(sampled, prompts.cache, prompts.tokenizer, found[0])]  # fmt: skip
        if task.best_of is not None:
            for one in scored:
                one["selected"] = bool(selected[one["number"]] == one["sample"])
    results = {
        "scores": means.tolist(),
        "also": {name: column.tolist() for name, column in _further_columns(task, scores, selected).items()},
        "length": float(sampled.lengths.mean()), "ended": float(sampled.ended.mean()),
    }  # fmt: skip
    return results, scored


def _further_columns(task: Task, scores: dict[str, np.ndarray], selected: np.ndarray) -> dict[str, np.ndarray]:
    """The further columns of a task, [prompts] each: those of `Task.also`, and pass@k with several samples."""
    index = np.arange(len(selected))
    columns = {
        name: scores[text].mean(axis=1) if task.best_of is None else scores[text][index, selected]
        for name, text in task.also
    }  # fmt: skip
    if task.samples > 1:
        columns[f"pass@{task.samples}"] = scores[task.verifier].max(axis=1)
    return columns


def _best_of(
    stage: Evaluate, task: Task, sampled: Rollout, prompts: _TaskPrompts, workspace: Workspace, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """[prompts]: the index of the response with the highest reward (best-of-N; spec tulu25 §11.3)."""
    scorer = make_scorer(
        stage.name, Reward(model=task.best_of), workspace, mesh, prompts.cache, prompts.tokenizer, stage.compute,
        _rows(mesh), stage.seed, task.sampling.max_new_tokens,
    )  # fmt: skip
    scorer(sampled)
    return sampled.scores.reshape(-1, task.samples).argmax(axis=1)


def _rows(mesh: jax.sharding.Mesh) -> int:
    return -(-ROWS // batch_split(mesh)) * batch_split(mesh)


@functools.lru_cache(maxsize=2)
def _logprob_program(model: Any, mesh: jax.sharding.Mesh):
    return compiler.scorer(lambda params, batch: target_scores(model, params, batch).logprobs, mesh, model.compute)


def _kl_to_reference(
    stage: Evaluate, source: ModelSource, params: PyTree, prompts: _TaskPrompts, workspace: Workspace,
    mesh: jax.sharding.Mesh,
) -> list[float]:  # fmt: skip
    """Σ log π − log π_reference over one sampled response (temperature 1) to each prompt, in nats."""
    assert stage.reference is not None
    reference = model_from(workspace.model(stage.reference), mesh, compute=stage.compute)
    batch = {name: array[: stage.kl_prompts] for name, array in prompts.batch.items()}
    sampling = dataclasses.replace(prompts.task.sampling, temperature=1.0, top_k=None, top_p=None)
    generator = prepare_generator(stage.name, source.decoder, prompts.tokenizer, sampling, mesh)
    columns = rollout.columns_of(generator.sample(params, prompts.cache, batch, seed=stage.seed))
    inputs = {name: columns[name] for name in (*base.FORWARD, *base.IMAGES) if name in columns}

    def logprobs(model: Model, params: PyTree) -> np.ndarray:
        program = _logprob_program(cast(Any, model), mesh)  # models are hashable, but the protocol does not declare it
        return chunked.in_chunks(program, [params], inputs, _rows(mesh), mesh)

    log_ratio = logprobs(source.decoder, params) - logprobs(reference.decoder, reference.frozen(mesh))
    return (log_ratio * columns["mask"]).sum(axis=1, dtype=np.float64).tolist()


def _table(stage: Evaluate, workspace: Workspace, results: dict[str, Any], tasks: list[_TaskPrompts]) -> dict[str, Any]:
    """The content of `table.json`."""
    names = [*(prompts.task.name for prompts in tasks), *(ask.benchmark for ask in stage.benchmarks)]
    scores = {  # [seeds, prompts] for each method and task
        entry.method: {
            task: np.array([results[stage_name]["tasks"][task]["scores"] for stage_name in entry.stages])
            for task in names
        }
        for entry in stage.entries
    }
    suite = _suite(stage)
    rows = [_row(stage, entry, results, scores, names, suite) for entry in stage.entries]
    done = [workspace.done(other) for other in workspace.recipe.stages if other.name != stage.name]
    return {
        "title": stage.title,
        "recipe": workspace.recipe.name,
        "stage": stage.name,
        "tasks": [
            *(prompts.facts for prompts in tasks),
            *(columns.facts_of(ask, next(iter(scores.values()))[ask.benchmark].shape[1]) for ask in stage.benchmarks),
        ],
        **({"average": list(stage.average)} if stage.average else {}),
        **({} if suite is None else {"suite": suite.title, "average": [column.title for column in suite.columns]}),
        "rows": rows,
        "seconds": sum(one.get("seconds", 0.0) for one in done if one),
    }


def _suite(stage: Evaluate) -> suites.Suite | None:
    """The suite whose columns are those of the table."""
    if stage.suite is None:
        return None
    return suites.for_stage(stage.suite, (ask.benchmark for ask in stage.benchmarks), stage.name)


def _columns(
    stage: Evaluate, suite: suites.Suite | None, by_task: Mapping[str, Estimate]
) -> dict[str, list[tuple[str, float]]]:  # fmt: skip
    """The columns whose mean is the score of a row: (task or benchmark, weight) of what each is made of, by title, in
    numbers and an order that are the same for all rows."""
    if suite is None:
        return {name: [(name, 1.0)] for name in stage.averaged}
    values = {name: one.value for name, one in by_task.items()}
    return {column.title: column.weights(values) for column in suite.columns}


def _row(
    stage: Evaluate, entry: Entry, results: dict[str, Any], scores: dict[str, dict[str, np.ndarray]], names: list[str],
    suite: suites.Suite | None,
) -> dict[str, Any]:  # fmt: skip
    """The row of one method: the mean over tasks of the mean over prompts; task variances are added (independence).

    The score and the difference are over the tasks of `Evaluate.average`, or over the columns of the suite. Those stand
    in the row, and the scores of its benchmarks in the row's "benchmarks".
    """
    own = scores[entry.method]
    by_task = {name: mean(own[name]) for name in names}
    made_of = _columns(stage, suite, by_task)
    averaged = {title: weighted((by_task[name], weight) for name, weight in parts) for title, parts in made_of.items()}
    overall = weighted((one, 1 / len(averaged)) for one in averaged.values())
    parts = [(name, weight / len(made_of)) for column in made_of.values() for name, weight in column]
    each = {**by_task, **_further_means(entry, results, names)}
    row: dict[str, Any] = {
        "method": entry.method, "stages": list(entry.stages), "score": overall.value, "stderr": overall.stderr,
        "interval": list(overall.interval), "n": int(sum(own[name].shape[1] for name, _ in parts)),
        "seeds": len(entry.stages),
        "scores": _scores_of(each if suite is None else averaged),
        **({} if suite is None else {"benchmarks": _scores_of(each)}),
    }  # fmt: skip
    for what in ("length", "ended"):
        row[what] = float(np.mean([results[s]["tasks"][task][what] for s in entry.stages for task in names]))
    row["kl"] = row["kl_stderr"] = row["over"] = None
    if stage.reference is not None:
        divergence = mean(np.array([results[s]["kl"] for s in entry.stages]))
        row["kl"], row["kl_stderr"] = divergence
    if entry.over is not None:
        other = scores[entry.over]
        theirs = _columns(stage, suite, {name: mean(other[name]) for name in names})
        others = [name for column in theirs.values() for name, _ in column]
        gain = weighted(
            (difference(own[name], other[base]), weight) for (name, weight), base in zip(parts, others, strict=True)
        )
        row["over"] = {"method": entry.over, "difference": gain.value, "stderr": gain.stderr}
    published = {p.column: p.value for p in stage.published if p.method == entry.method}
    row["published"] = published or None
    return row


def _further_means(entry: Entry, results: dict[str, Any], names: list[str]) -> dict[str, Estimate]:
    """The means of the further columns of each task (`Task.also`, pass@k), which are not part of the score."""
    columns = {(task, name): None for task in names for name in results[entry.stages[0]]["tasks"][task]["also"]}
    return {
        f"{task} {name}": mean(np.array([results[stage]["tasks"][task]["also"][name] for stage in entry.stages]))
        for task, name in columns
    }


def _scores_of(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: {"score": one.value, "stderr": one.stderr} for name, one in estimates.items()}


def _samples(stage: Evaluate, folder: Path) -> Iterator[Response]:
    """Every response of every method; `run` counts the runs (seeds) of a method."""
    for entry in stage.entries:
        for run, name in enumerate(entry.stages):
            path = folder / f"{_file_name(name)}.jsonl"
            for response in reading.read_lines(path, mend="delete it and run the stage again"):
                yield {"method": entry.method, "stage": name, "run": run, **response}


def _file_name(model: str) -> str:
    """The name of a model if it is a valid file name, otherwise a hash of it."""
    plain = all(c.isalnum() or c in "-_." for c in model)
    return model if plain else hashlib.sha256(model.encode()).hexdigest()[:16]
