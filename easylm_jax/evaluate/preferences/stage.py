"""The stage `PreferenceTable`: reward models scored on preference pairs, with intervals."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from easylm_jax.config.evaluate import PreferenceTable
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.evaluate.preferences.command import Options, judge_of
from easylm_jax.evaluate.preferences.items import item_of
from easylm_jax.evaluate.statistics import mean, share_interval
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import write_json, write_lines
from models.errors import UserError


def preference_table(stage: PreferenceTable, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    began, items = time.perf_counter(), []
    for number, (record, _) in enumerate(read_records(workspace.sources((stage.pairs,))[0])):
        if isinstance(record, BadRecord):
            raise UserError(f"stage {stage.name}: {record}")
        items.append(item_of(record, f"{stage.pairs.path}, pair {number}", number=number))
    if not items:
        raise UserError(f"stage {stage.name}: {stage.pairs.path} holds no pair")
    scores = {}
    for name in stage.reward_models:
        outcomes = judge_of(workspace.model(name).removeprefix("run:"), Options())(items)
        scores[name] = np.array([outcome.scores for outcome in outcomes])  # [pairs, 2]
    rows = []
    for name, values in scores.items():
        wins = values[:, 0] > values[:, 1]
        right = mean(wins)
        rows.append({
            "method": name, "stages": [name], "score": right.value, "stderr": right.stderr, "seeds": 1, "kl": None,
            "kl_stderr": None, "over": None, "interval": list(share_interval(int(wins.sum()), len(wins))),
            "n": len(items), "published": None,
            "scores": {"accuracy": {"score": right.value, "stderr": right.stderr}},
        })  # fmt: skip
    tasks = [{"name": "accuracy", "metric": "chosen above rejected", "prompts": len(items), "samples": 1}]
    table = {"title": stage.title, "recipe": workspace.recipe.name, "stage": stage.name, "tasks": tasks, "rows": rows,
             "seconds": time.perf_counter() - began}  # fmt: skip
    if processes.is_first_process():
        folder = workspace.folder(stage.name)
        write_lines(folder / "items.jsonl", (
            {"id": item.id, **{name: values[number].tolist() for name, values in scores.items()}}
            for number, item in enumerate(items)
        ))  # fmt: skip
        write_json(folder / "table.json", table)
        write_json(workspace.root / "table.json", table)
    margins = {f"{name}/margin": float((values[:, 0] - values[:, 1]).mean()) for name, values in scores.items()}
    return {"table": "table.json", "metrics": {**{row["method"]: row["score"] for row in rows}, **margins}}
