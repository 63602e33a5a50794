"""The scores of benchmarks, computed from the responses that `harness` keeps, as `easylm eval --json` writes them."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config import fields
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Response, Scored
from easylm_jax.evaluate.harness import Asked, filled, fingerprint
from easylm_jax.evaluate.statistics import Estimate, grouped_mean, mean, ratio
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime.packages import version_of


def result_of(asked: Asked) -> dict[str, Any]:
    """The scores of a benchmark, as `easylm eval --json` writes them."""
    benchmark = asked.benchmark
    responses = _extracted(asked)
    documents = [question.document for question in asked.questions]
    groups, columns = values_of(asked)
    estimates = {
        metric.name: _aggregated(metric, groups, columns[metric.name]) for metric in benchmark.metrics
    }  # fmt: skip
    score = estimates[benchmark.metric.name]
    by_group = {
        group: _aggregated(benchmark.metric, *zip(*[(g, v) for g, v in
                           zip(groups, columns[benchmark.metric.name], strict=True) if g == group], strict=True))
        for group in dict.fromkeys(groups)
    }  # fmt: skip
    return {
        "task": asked.ask.benchmark, "title": benchmark.title, "metric": benchmark.metric.name, "score": score.value,
        "stderr": score.stderr, "n": len(documents), "cut": sum(response.cut > 0 for response in responses),
        "units": {one.name: one.unit for one in benchmark.metrics},
        "shots": benchmark.shots, "samples": benchmark.samples, "settings": fields.encode(asked.ask),
        "sampling": fields.encode(benchmark.sampling), "sources": _sources(asked),
        "metrics": {name: {"score": one.value, "stderr": one.stderr} for name, one in estimates.items()},
        **({"groups": {name: {"score": one.value, "stderr": one.stderr, "n": groups.count(name)}
                       for name, one in by_group.items()}} if benchmark.group else {}),
        "documents": [
            {
                "number": question.number, "prompt": question.shown, **_shown(response),
                "label": _plain(benchmark.label(question.document)),
                "score": _plain(columns[benchmark.metric.name][at]),
                "scores": {name: _plain(values[at]) for name, values in columns.items()},
                **({"group": groups[at]} if benchmark.group else {}),
            }
            for at, (question, response) in enumerate(zip(asked.questions, responses, strict=True))
        ],
    }  # fmt: skip


def _sources(asked: Asked) -> dict[str, list[str]]:
    """Where documents and solved examples were read: the names of published sets, or a file with its SHA-256."""
    ask, examples = asked.ask, asked.benchmark.examples if asked.benchmark.shots else None
    published = {
        "documents": (ask.file, asked.benchmark.documents),
        **({"examples": (ask.shots_from, examples.sources)} if examples is not None else {}),
    }
    return {
        name: [source.path for source in sources] if file is None
        else list(dict.fromkeys([file, fingerprint(Path(file).expanduser())]))
        for name, (file, sources) in published.items()
    }  # fmt: skip


def values_of(asked: Asked) -> tuple[list[str], dict[str, list[Any]]]:
    """The group of each document, and what each metric gives for it, by the metric's name."""
    benchmark, responses = asked.benchmark, _extracted(asked)
    documents = [question.document for question in asked.questions]
    groups = [benchmark.group(document) if benchmark.group else "" for document in documents]
    return groups, {metric.name: _values(metric, benchmark, documents, responses) for metric in benchmark.metrics}


def _extracted(asked: Asked) -> list[Response]:
    """The responses with the answers that `Benchmark.extract` finds in their texts."""
    extract = asked.benchmark.extract
    if extract is None:
        return [dataclasses.replace(response, answers=response.texts) for response in asked.responses]
    return [
        dataclasses.replace(response, answers=tuple(extract(text, question.document) for text in response.texts))
        for question, response in zip(asked.questions, asked.responses, strict=True)
    ]


def _shown(response: Response) -> dict[str, Any]:
    """A response in a document's entry: "response" (or "responses"), or "choices" with their log-probabilities."""
    values: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in filled(response).items()
    }
    texts = values.pop("texts", [])
    if texts:
        values |= {"response": texts[0]} if len(texts) == 1 else {"responses": texts}
        if response.answers != response.texts:
            values["answers"] = [_plain(answer) for answer in response.answers]
    if "options" in values:
        values["choices"] = values.pop("options")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic,)):
        return value.item()
    if isinstance(value, (tuple, list, set, frozenset)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, dict)) or value is None else str(value)


def _values(
    metric: Metric, benchmark: Benchmark, documents: Sequence[Mapping[str, Any]], responses: Sequence[Response]
) -> list[Any]:  # fmt: skip
    """What a metric gives for each document."""
    if isinstance(metric.score, str):
        verdicts = _verified(metric, documents, responses)
        over = metric.over
        return verdicts if over is None else [
            (verdict, over(benchmark.label(document))) for verdict, document in zip(verdicts, documents, strict=True)
        ]  # fmt: skip
    subjects = documents if metric.of_document else [benchmark.label(document) for document in documents]
    return [metric.score(subject, response) for subject, response in zip(subjects, responses, strict=True)]


def _verified(metric: Metric, documents: Sequence[Mapping[str, Any]], responses: Sequence[Response]) -> list[float]:
    """The number of each document by a reward expression of its texts: the mean, or what `Metric.samples` makes."""
    texts = [text for response in responses for text in response.texts]
    records = [
        {**document, "_record": number, "_source": "the benchmark", "_length": len(text)}
        for number, (document, response) in enumerate(zip(documents, responses, strict=True)) for text in response.texts
    ]  # fmt: skip
    scores = ExpressionScorer(str(metric.score))(texts, records).scores
    ends = np.cumsum([len(response.texts) for response in responses])
    combine = metric.samples or np.mean
    return [float(combine(part.tolist())) for part in np.split(scores, ends[:-1])]


def _aggregated(metric: Metric, groups: Sequence[str], values: Sequence[Any]) -> Estimate:
    if callable(metric.aggregate):
        return Estimate(*metric.aggregate([Scored(g, v) for g, v in zip(groups, values, strict=True)]))
    if metric.aggregate == "ratio":
        return ratio(np.array(values, np.float64))
    numbers = np.array(values, np.float64)
    return mean(numbers) if metric.aggregate == "mean" else grouped_mean(numbers, groups)


def summary(model: str, asked: Sequence[Asked], seed: int, judge: str | None = None) -> dict[str, Any]:
    """The content of the file that `easylm eval --json` writes; the averages of suites are added to it."""
    return {
        "model": model, "judge": judge, "seed": seed, "versions": {"python": platform.python_version()}
        | {name: version_of(name) for name in ("easylm_jax", "jax", "jaxlib", "flax", "numpy")},
        "tasks": [result_of(one) for one in asked], "averages": {},
    }  # fmt: skip
