"""Measures how far the small ladder's policies concentrate on the modes of their initial SFT model.

    python -m recipes.spurious_rewards.sharpness runs/spurious-ladder

The mode of a held-out problem is the greedy response of the SFT model. For each arm, with 95 % intervals over problems
and seeds, this prints the probability of the mode, its change from the SFT model, the share of sampled responses that
equal the mode, and the mean probability of a sampled token (arXiv 2506.10947, Figure 12).
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from easylm_jax.checkpoint.load import model_from
from easylm_jax.config import Compute, Evaluate
from easylm_jax.config.load import load_recipe
from easylm_jax.data import load_tokenizer
from easylm_jax.data.build import stage_cache
from easylm_jax.data.tokenizer import restrict_vocab
from easylm_jax.decode import Engine, rollout
from easylm_jax.evaluate.statistics import Estimate, difference, mean
from easylm_jax.experiment import Experiment
from easylm_jax.objectives import base as objectives_base
from easylm_jax.objectives import target_scores
from easylm_jax.runtime import chunked
from easylm_jax.runtime.files import write_json
from easylm_jax.runtime.mesh import make_mesh
from models.errors import UserError
from recipes.spurious_rewards.analysis import token_probability

RECIPE = "recipes/spurious_rewards/ladder.py"
PROBLEMS, SAMPLES, ROWS = 600, 2, 200


class Sharpness(NamedTuple):
    """Results of one model, each [problems]: probability of the mode, share of samples that equal the mode, and mean
    probability of a sampled token."""

    mode: np.ndarray
    agreement: np.ndarray
    token: np.ndarray


class _Meter:
    """Measures models of one shape on the problems of an evaluation's first task."""

    def __init__(self, experiment: Experiment, stage: Evaluate):
        self.experiment, self.mesh = experiment, make_mesh(experiment.recipe.mesh)
        task = stage.tasks[0]
        self.sampling, self.cache = task.sampling, stage_cache(experiment, task.data)
        self.tokenizer = load_tokenizer(experiment.data(task.data).tokenizer)
        self.batch = self.cache.read(np.arange(min(PROBLEMS, self.cache.rows)))
        source = self._model(str(stage.reference))
        self.engine = Engine(
            restrict_vocab(source.decoder, self.tokenizer), slots=task.sampling.slots,
            mesh=self.mesh if self.mesh.size > 1 else None,
        )  # fmt: skip
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        self.scores = jax.jit(
            lambda params, rows: target_scores(source.decoder, params, rows).logprobs, out_shardings=everywhere
        )
        with jax.set_mesh(self.mesh):
            self.mode = self._sampled(source.frozen(self.mesh), samples=1, greedy=True)
        self.texts = [rollout.text_of(self.mode, row, self.tokenizer) for row in range(self.mode.rows)]

    def __call__(self, name: str) -> Sharpness:
        """Results of the stage called `name`."""
        with jax.set_mesh(self.mesh):
            params = self._model(name).frozen(self.mesh)
            logprobs, mask = self._scored(params, self.mode)
            sampled = self._sampled(params, samples=SAMPLES, greedy=False)
            own, own_mask = self._scored(params, sampled)
        same = [
            rollout.text_of(sampled, row, self.tokenizer) == self.texts[row // SAMPLES] for row in range(sampled.rows)
        ]
        token = [token_probability(own[row], own_mask[row]) for row in range(sampled.rows)]
        return Sharpness(
            np.exp((logprobs * mask).sum(axis=1, dtype=np.float64)),
            np.reshape(same, (-1, SAMPLES)).mean(axis=1),
            np.reshape(token, (-1, SAMPLES)).mean(axis=1),
        )

    def _model(self, name: str):
        return model_from(self.experiment.model(name), self.mesh, compute=Compute())

    def _sampled(self, params, *, samples: int, greedy: bool) -> rollout.Rollout:
        sampling = self.sampling if greedy else self.sampling.__class__(self.sampling.max_new_tokens)
        return rollout.sample(
            self.engine, params, self.batch, sampling, samples=samples, seed=0, tokenizer=self.tokenizer,
            end_ids=rollout.end_ids(self.cache, self.tokenizer), greedy=greedy,
        )  # fmt: skip

    def _scored(self, params, made: rollout.Rollout) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities [N, T] of the response tokens, and their mask [N, T]."""
        columns = rollout.columns_of(made)
        forward = {name: columns[name] for name in objectives_base.FORWARD}
        return chunked.in_chunks(self.scores, [params], forward, ROWS, self.mesh), columns["mask"]


def measure(folder: Path, recipe: str = RECIPE) -> dict[str, list[Sharpness]]:
    """Results of each entry of the recipe's evaluation, one for each seed; `folder` holds the runs."""
    experiment = Experiment(load_recipe(recipe), folder.parent)
    if experiment.root.resolve() != folder.resolve():
        raise UserError(f"{folder} is no folder of the recipe {experiment.recipe.name}")
    (stage,) = (stage for stage in experiment.recipe.stages if isinstance(stage, Evaluate))
    meter = functools.cache(_Meter(experiment, stage))
    return {entry.method: [meter(name) for name in entry.stages] for entry in stage.entries}


def table(found: dict[str, list[Sharpness]]) -> str:
    """A table with a line for each method and its change from the first one, and the effect of clipping."""
    names = list(found)
    columns = {name: [np.array([getattr(one, what) for one in found[name]]) for what in Sharpness._fields]
               for name in names}  # fmt: skip
    lines = [
        "| | P(mode) % | change, points | samples that are the mode % | P(token) % | change, points |",
        "|---|---|---|---|---|---|",
    ]
    base = columns[names[0]]
    for name in names:
        mode, agreement, token = columns[name]
        changes = ("–", "–") if name == names[0] else (_points(difference(x, b)) for x, b in
                                                       ((mode, base[0]), (token, base[2])))  # fmt: skip
        first, second = changes
        lines.append(f"| {name} | {_percent(mean(mode))} | {first} | {_percent(mean(agreement))} | "
                     f"{_percent(mean(token))} | {second} |")  # fmt: skip
    # Runs with the same seed have the same problems and random rewards, so they are compared seed by seed.
    for name in (name for name in names if f"{name}, no clip" in names):
        with_clip, without = columns[name], columns[f"{name}, no clip"]
        apart = [mean(np.array(with_clip[part]) - np.array(without[part])) for part in (0, 2)]
        lines.append(f"| {name}: clip less no clip | | {_points(apart[0])} | | | {_points(apart[1])} |")
    return "\n".join(lines)


def _percent(one: Estimate) -> str:
    return f"{100 * one.value:.1f}"


def _points(one: Estimate) -> str:
    low, high = one.interval
    return f"{100 * one.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def main(folder: Path, recipe: str = RECIPE) -> None:
    """Measures all methods, prints the table, and writes `sharpness.json` to the folder."""
    found = measure(folder, recipe)
    kept = {name: [{what: values.tolist() for what, values in one._asdict().items()} for one in seeds]
            for name, seeds in found.items()}  # fmt: skip
    write_json(folder / "sharpness.json", kept)
    sys.stdout.write(table(found) + "\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), *sys.argv[2:3])
    except (UserError, IndexError) as error:
        sys.exit(f"{error}\nusage: python -m recipes.spurious_rewards.sharpness runs/spurious-ladder [RECIPE]")
