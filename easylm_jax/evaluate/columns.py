"""Benchmarks as columns of a stage's table, and as metrics while a model is trained; both ask through `harness`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from easylm_jax.checkpoint.load import LoadedModel
from easylm_jax.config import Ask, Train
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import load_tokenizer
from easylm_jax.data.tokenizer import restrict_vocab
from easylm_jax.evaluate import asking, harness, results
from easylm_jax.evaluate.benchmark import Metric, Scored
from easylm_jax.evaluate.harness import Asked
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import write_json
from models.errors import UserError
from models.model import Model

PyTree = Any


def contributions(metric: Metric, groups: Sequence[str], values: Sequence[Any]) -> np.ndarray:
    """float64 [documents]: numbers whose mean is the metric's aggregate, so that columns of all kinds can be averaged
    over seeds and compared document by document.

    Of a mean they are the values; of a macro average and of a ratio, the terms of the linearised statistic; of a
    function, its jackknife pseudo-values, moved so that their mean is the aggregate itself.
    """
    count = len(values)
    if metric.aggregate == "mean":
        return np.array(values, np.float64)
    if metric.aggregate == "macro":
        sizes = {group: list(groups).count(group) for group in dict.fromkeys(groups)}
        scale = [count / (len(sizes) * sizes[group]) for group in groups]
        return np.array(values, np.float64) * np.array(scale)
    if metric.aggregate == "ratio":
        pairs = np.array(values, np.float64)
        top, bottom = pairs.sum(axis=0)
        ratio = top / bottom
        return ratio + (pairs[:, 0] - ratio * pairs[:, 1]) * count / bottom
    assert callable(metric.aggregate)
    scored = [Scored(group, value) for group, value in zip(groups, values, strict=True)]
    whole = metric.aggregate(scored)[0]
    if count == 1:
        return np.array([whole])
    rest = np.array([metric.aggregate(scored[:i] + scored[i + 1 :])[0] for i in range(count)])
    pseudo = count * whole - (count - 1) * rest
    return pseudo + (whole - pseudo.mean())


def column_of(asked: Asked) -> dict[str, Any]:
    """The results of a benchmark in the form of a task's (`stage.py`): scores by document, further metrics."""
    benchmark = asked.benchmark
    groups, values = results.values_of(asked)
    columns = {
        metric.name: contributions(metric, groups, values[metric.name]).tolist() for metric in benchmark.metrics
    }  # fmt: skip
    lengths = [len(text) for response in asked.responses for text in response.texts]
    return {
        "scores": columns.pop(benchmark.metric.name), "also": columns,
        "length": float(np.mean(lengths)) if lengths else 0.0, "ended": 1.0,
    }  # fmt: skip


def facts_of(ask: Ask, count: int) -> dict[str, Any]:
    """The entry of a benchmark in `table.json`."""
    benchmark = asking.resolve(ask)
    return {
        "name": ask.benchmark, "prompts": count, "metric": benchmark.metric.name, "samples": benchmark.samples,
        "read": count, "left_out": {}, **({} if ask.limit is None else {"limit": ask.limit}),
    }  # fmt: skip


def asker(
    stage: Train, workspace: Workspace, decoder: Model, mesh: jax.sharding.Mesh
) -> Callable[[PyTree, int], dict[str, float]] | None:  # fmt: skip
    """`(parameters, step)` → the scores of the stage's benchmarks as metrics; None if it asks none.

    Responses are kept in `benchmarks/<step>/` of the stage's folder, so that a run that was killed while it asked goes
    on there.

    The documents are read here, before the first step: what cannot be read is told before anything is trained.

    Raises:
        UserError: a benchmark does not exist, cannot be read, needs a judge, or asks in a chat that the stage's data do
            not have.
    """
    if stage.benchmarks is None:
        return None
    data = workspace.data(stage.data)
    read = []
    for ask in stage.benchmarks.asks:
        benchmark = asking.resolve(ask)
        if benchmark.request == "judge":
            raise UserError(
                f"stage {stage.name}: benchmark {ask.benchmark} needs a judge, which training has not; ask it in an "
                "Evaluate stage"
            )
        chat = benchmark.chat and ask.template != asking.PLAIN
        if chat and not (ask.template or data.template):
            raise UserError(f"stage {stage.name}: benchmark {ask.benchmark} asks in a chat; give it a template")
        try:
            read.append(asking.questions(ask, benchmark))
        except UserError as error:
            raise UserError(f"stage {stage.name}, asked while it trains: {error}; or set {stage.name}.benchmarks=none"
                            ) from None  # fmt: skip
    tokenizer = load_tokenizer(data.tokenizer)
    decoder = restrict_vocab(decoder, tokenizer)
    asks, folder = stage.benchmarks.asks, workspace.folder(stage.name) / "benchmarks"

    def ask_all(params: PyTree, step: int) -> dict[str, float]:
        model = LoadedModel(decoder, params, mesh, tokenizer, data.template, data.add_bos)
        own: Path = folder / str(step)
        answered = [
            harness.ask_model(model, ask, own, identity=[workspace.settings(stage), step], seed=stage.seed, read=found)
            for ask, found in zip(asks, read, strict=True)
        ]  # fmt: skip
        found = results.summary(f"{stage.name} at step {step}", answered, stage.seed)
        if processes.is_first_process():
            write_json(own / "results.json", found)
        return {f"benchmark/{task['task']}": task["score"] for task in found["tasks"]}

    return ask_all
