"""Runs the stage `Losses`: held-out losses of models beside each other, with errors and paired differences.

losses.json    {"title", "unit", "sets", "rows": [{"method", "score", "stderr", "scores", "over", …}]}
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.checkpoint.load import model_from
from easylm_jax.config import Entry
from easylm_jax.config.losses import Losses
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.build import stage_cache
from easylm_jax.data.cache import Cache
from easylm_jax.objectives.forward import forward
from easylm_jax.runtime import processes, sharding
from easylm_jax.runtime.files import write_json
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.monitor import counting
from models.model import Model

UNIT = "nats per token"


class Sums(NamedTuple):
    """Of each row with a trained token: the summed loss of its tokens, and their number; float64 [rows]."""

    loss: np.ndarray
    tokens: np.ndarray


class Loss(NamedTuple):
    """A mean loss over tokens, and its standard error over rows."""

    value: float
    stderr: float


def mean_loss(runs: list[Sums]) -> Loss:
    """The mean over tokens and runs. Rows are the sample: the error is that of a ratio of two sums over rows, from the
    rows' mean over runs; with several runs the variance between their means is added."""
    loss = np.mean([run.loss for run in runs], axis=0)
    tokens = runs[0].tokens
    value = float(loss.sum() / tokens.sum())
    variance = _ratio_variance(loss - value * tokens, tokens) + _between(runs)
    return Loss(value, variance**0.5)


def loss_difference(runs: list[Sums], base: list[Sums]) -> Loss:
    """How much larger the loss of `runs` is than that of `base`, whose rows are the same."""
    apart = np.mean([run.loss for run in runs], axis=0) - np.mean([run.loss for run in base], axis=0)
    tokens = runs[0].tokens
    value = float(apart.sum() / tokens.sum())
    variance = _ratio_variance(apart - value * tokens, tokens) + _between(runs) + _between(base)
    return Loss(value, variance**0.5)


def _ratio_variance(residuals: np.ndarray, tokens: np.ndarray) -> float:
    count = len(residuals)
    return float((residuals**2).sum() * count / max(1, count - 1) / tokens.sum() ** 2) if count > 1 else 0.0


def _between(runs: list[Sums]) -> float:
    means = np.array([run.loss.sum() / run.tokens.sum() for run in runs])
    return float(means.var(ddof=1) / len(means)) if len(means) > 1 else 0.0


def losses(stage: Losses, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns its entries of `done.json`."""
    mesh = make_mesh(workspace.recipe.mesh)
    sharding.check_rows(stage.batch, 1, mesh)
    caches = {held_out.name: stage_cache(workspace, held_out.data, held_out.name) for held_out in stage.sets}
    found: dict[str, dict[str, Sums]] = {}
    rows = sum(cache.rows for cache in caches.values())
    with counting(stage.name, rows * len(stage.names), "rows") as progress, jax.set_mesh(mesh):
        for number, name in enumerate(stage.names):
            source = model_from(workspace.model(name), mesh, compute=stage.compute)
            params, score = source.frozen(mesh), _scorer(source.decoder, mesh)
            found[name] = {}
            for column, cache in caches.items():
                with progress.phase(f"{name} on {column}"):
                    found[name][column] = _sums(score, params, cache, stage.batch, mesh)
            progress.update((number + 1) * rows, {})
            del params
    table: dict[str, Any] = {"title": stage.title, "unit": UNIT, "sets": list(caches), "recipe": workspace.recipe.name,
             "stage": stage.name, "rows": [_row(entry, stage, found) for entry in stage.entries]}  # fmt: skip
    if processes.is_first_process():
        write_json(workspace.folder(stage.name) / "losses.json", table)
        write_json(workspace.root / "table.json", table)
    return {"table": "losses.json", "metrics": {row["method"]: row["score"] for row in table["rows"]}}


def _scorer(model: Model, mesh: jax.sharding.Mesh):
    """(params, batch) → summed loss and trained tokens of each row, float32 [rows] on every process."""
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    @functools.partial(jax.jit, out_shardings=everywhere)
    def score(params, batch):
        output = forward(model, params, batch)
        scores = model.target_scores(params, output.hidden, batch["targets"])
        weights = (batch["loss_weights"] > 0).astype(jnp.float32)
        return -(weights * scores.logprobs).sum(axis=1), weights.sum(axis=1)

    return score


def _sums(score, params, cache: Cache, batch_rows: int, mesh: jax.sharding.Mesh) -> Sums:
    parts = []
    for local in cache.in_order(batch_rows, sharding.local_rows(batch_rows, mesh)):
        parts.append(jax.device_get(score(params, sharding.place_batch(local, batch_rows, mesh))))
    loss, tokens = (np.concatenate([np.asarray(part[i], np.float64) for part in parts]) for i in range(2))
    return Sums(loss[tokens > 0], tokens[tokens > 0])


def _row(entry: Entry, stage: Losses, found: dict[str, dict[str, Sums]]) -> dict[str, Any]:
    """A row of the table; its score is the mean of the sets."""
    over = next((other for other in stage.entries if other.method == entry.over), None)
    columns = [held_out.name for held_out in stage.sets]
    each = {column: mean_loss([found[name][column] for name in entry.stages]) for column in columns}
    row: dict[str, Any] = {
        "method": entry.method, "stages": list(entry.stages), "seeds": len(entry.stages), **_mean(each),
        "scores": {column: {"score": loss.value, "stderr": loss.stderr} for column, loss in each.items()},
    }  # fmt: skip
    if over is not None:
        apart = {
            column: loss_difference([found[name][column] for name in entry.stages],
                                    [found[name][column] for name in over.stages])
            for column in columns
        }  # fmt: skip
        mean = _mean(apart)
        row["over"] = {"method": over.method, "difference": mean["score"], "stderr": mean["stderr"]}
    return row


def _mean(each: dict[str, Loss]) -> dict[str, float]:
    """The plain mean over sets, which are independent samples."""
    values = list(each.values())
    score = sum(loss.value for loss in values) / len(values)
    return {"score": score, "stderr": sum(loss.stderr**2 for loss in values) ** 0.5 / len(values)}
