"""Runs the stage `ModerationTable`: moderators on moderation benchmarks, beside baselines.

table.json         F1 by set and task with standard errors; the mean over columns is the score

and the files of `moderation_report.write`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from easylm_jax.config.moderation import ModerationTable
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.evaluate import moderation_report
from easylm_jax.evaluate.moderation import f1_difference
from easylm_jax.evaluate.moderation_report import Classify
from easylm_jax.evaluate.moderation_sets import Row, read_set
from easylm_jax.rewards.moderation import FIELDS, VALUES
from easylm_jax.rewards.moderator import MODES, Moderator, load_moderator
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import plain, write_json
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.monitor import counting
from models.errors import UserError


def moderation_table(stage: ModerationTable, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns its entries of `done.json`."""
    began = time.perf_counter()
    sets = {
        each.name: read_set(each.name, _path(each.path, workspace), each.limit) for each in stage.sets
    }  # fmt: skip
    mesh = make_mesh(workspace.recipe.mesh)
    methods: dict[str, Classify] = {}
    for name in stage.moderators:
        init = workspace.model(name).removeprefix("run:")
        methods[name] = load_moderator(init, template=stage.template, mode=stage.mode, mesh=mesh)
    training = list(_training_rows(stage, workspace))
    if training:
        methods |= {"majority": majority(training), "TF-IDF": tf_idf(training, stage.seed)}
    total = len(methods) * sum(map(len, sets.values()))
    answers: dict[str, dict[str, list[Row]]] = {}
    with counting(stage.name, total, "rows") as progress:
        for number, (method, classify) in enumerate(methods.items()):
            before = number * total // len(methods)
            answers[method] = moderation_report.answered(classify, sets, functools.partial(_show, progress, before))
    agreement = {name: _agreement(methods[name], sets, stage.compare) for name in stage.moderators
                 if stage.compare is not None}  # fmt: skip
    result = {
        **moderation_report.scored(stage.title, answers), "differences": _differences(stage, answers),
        "modes_agree": agreement,
    }  # fmt: skip
    table = _table(stage, workspace, result["scores"], time.perf_counter() - began)
    if processes.is_first_process():
        folder = workspace.folder(stage.name)
        moderation_report.write(folder, result, answers)
        write_json(folder / "table.json", table)
        write_json(workspace.root / "table.json", table)
    return {"table": "table.json", "metrics": {row["method"]: row["score"] for row in table["rows"]}}


def _show(progress: Any, before: int, done: int) -> None:
    progress.update(before + done, {})


def _path(path: str | None, workspace: Workspace) -> str | None:
    if path is None or not path.startswith("stage:"):
        return path
    return str(workspace.root / path.removeprefix("stage:"))


def _training_rows(stage: ModerationTable, workspace: Workspace) -> Iterator[Row]:
    for source in workspace.sources(stage.baselines):
        for record, _ in read_records(source):
            if isinstance(record, BadRecord):
                raise UserError(str(record))
            yield record


def _text(row: Mapping[str, Any], field: str) -> str:
    """What a field is read from: the prompt alone, or prompt and response."""
    return str(row["prompt"]) if field == FIELDS[0] else f"{row['prompt']}\n\n{row.get('response') or ''}"


def majority(training: Sequence[Row]) -> Classify:
    """The most frequent label of each field in training, whatever the row."""
    most: dict[str, str | None] = {}
    for field in FIELDS:
        labels = [row[f"gold_{field}"] for row in training if row.get(f"gold_{field}")]
        most[field] = max(VALUES[field], key=labels.count) if labels else None
    return lambda rows: [dict(most) for _ in rows]


def tf_idf(training: Sequence[Row], seed: int = 0) -> Classify:
    """Logistic regression on TF-IDF of words and pairs of words, a model for each field.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise UserError("the TF-IDF baseline needs scikit-learn: pip install 'easylm_jax[evals]'") from None
    fitted: dict[str, Any] = {}
    for field in FIELDS:
        rows = [row for row in training if row.get(f"gold_{field}")]
        labels = [row[f"gold_{field}"] == VALUES[field][0] for row in rows]
        if len(set(labels)) == 2:
            features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
            model = make_pipeline(features, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000,
                                                               random_state=seed))  # fmt: skip
            fitted[field] = model.fit([_text(row, field) for row in rows], labels)

    def classify(rows: Sequence[Row]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{} for _ in rows]
        for field in FIELDS:
            if field not in fitted:
                continue
            shares = fitted[field].predict_proba([_text(row, field) for row in rows])[:, 1]
            for record, share in zip(found, shares, strict=True):
                record[field] = VALUES[field][0 if share >= 0.5 else 1]
        return found

    return classify


def _agreement(moderator: Classify, sets: Mapping[str, Sequence[Row]], count: int | None) -> dict[str, Any]:
    """The share of labels that slots and generating have in common, over the first rows of all sets in turn."""
    assert isinstance(moderator, Moderator)
    chosen = [
        row for place in range(max(map(len, sets.values()))) for rows in sets.values() for row in rows[place:][:1]
    ]
    chosen = chosen[:count]
    other = Moderator(
        moderator.model, moderator.params, moderator.tokenizer, template=moderator.template, mesh=moderator.mesh,
        start=moderator.start[0].token if moderator.start else None,
        mode=next(mode for mode in MODES if mode != moderator.mode),
    )  # fmt: skip
    pairs = list(zip(moderator(chosen), other(chosen), strict=True))
    labels = [(one[field], two[field]) for (one, two), row in zip(pairs, chosen, strict=True)
              for field in FIELDS[: 3 if row.get("response") else 1]]  # fmt: skip
    errors = sum(bool(one["is_parsing_error"] or two["is_parsing_error"]) for one, two in pairs)
    return {"rows": len(chosen), "labels": len(labels), "agree": float(np.mean([a == b for a, b in labels])),
            "parse_errors": errors}  # fmt: skip


def _differences(stage: ModerationTable, answers: Mapping[str, Mapping[str, list[Row]]]) -> list[dict[str, Any]]:
    """F1 of each moderator minus that of each baseline on the same rows, with a paired standard error."""
    found = []
    for name in stage.moderators:
        for other in (method for method in answers if method not in stage.moderators):
            for benchmark, rows in answers[name].items():
                for field in FIELDS:
                    if any(row.get(f"gold_{field}") for row in rows):
                        value = f1_difference(rows, answers[other][benchmark], field)
                        found.append({"method": name, "over": other, "set": benchmark, "field": field, **value})
    return found


def _table(
    stage: ModerationTable, workspace: Workspace, scores: Mapping[str, Any], seconds: float
) -> dict[str, Any]:  # fmt: skip
    rows = []
    for method, own in scores.items():
        columns = {
            f"{name} {field}": {"score": each["f1"], "stderr": each["stderr"]}
            for name, fields in own.items()
            for field, each in fields.items()
        }
        values = [each["score"] for each in columns.values() if not math.isnan(each["score"])]
        errors = [each["stderr"] for each in columns.values() if not math.isnan(each["stderr"])]
        stderr = sum(error**2 for error in errors) ** 0.5 / max(1, len(errors))
        score = float(np.mean(values)) if values else 0.0
        published = {each.column: each.value for each in stage.published if each.method == method}
        rows.append({
            "method": method, "stages": [method], "score": score, "stderr": stderr, "seeds": 1, "kl": None,
            "kl_stderr": None, "over": None, "interval": [score - 1.96 * stderr, score + 1.96 * stderr],
            "n": sum(each["n"] for fields in own.values() for each in fields.values()),
            "scores": plain(columns), "published": published or None,
        })  # fmt: skip
    names = [name for name in rows[0]["scores"]]
    counts = {f"{name} {field}": each["n"] for own in scores.values() for name, fields in own.items()
              for field, each in fields.items()}  # fmt: skip
    tasks = [{"name": name, "metric": "F1", "prompts": counts[name], "samples": 1} for name in names]
    return {"title": stage.title, "recipe": workspace.recipe.name, "stage": stage.name, "tasks": tasks, "rows": rows,
            "seconds": seconds}  # fmt: skip
