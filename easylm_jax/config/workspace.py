"""A recipe with its output folder: resolves names of stages to paths, and reads what is done.

runs/<recipe>/<stage>/   config.json  metrics.jsonl  checkpoints/  done.json
runs/cache/              packed data caches, shared by all runs
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from easylm_jax.config import fields
from easylm_jax.config.base import Stage
from easylm_jax.config.data import DataSpec, Source
from easylm_jax.config.recipe import Recipe
from models import reading
from models.errors import UserError

MEND = "restore it from a copy, or run the stage again with --overwrite"


class Done(TypedDict):
    """What is read of `done.json`; there are further entries, by kind of stage.

    `hash`: of the settings; `checkpoint`: the folder of the model that the stage leaves, relative to its own;
    `seconds`: the time of all runs of the stage; `metrics`: its last ones.
    """

    hash: NotRequired[str]
    checkpoint: NotRequired[str]
    seconds: NotRequired[float]
    metrics: NotRequired[dict[str, Any]]


def read_done(folder: Path) -> Done | None:
    """The content of `done.json` in a stage's folder, or None when there is none; `Damaged` when it is no such file."""
    path = folder / "done.json"
    return reading.read_json(path, Done, mend=MEND) if path.exists() else None


def checkpoint_of(folder: Path, done: Done) -> Path:
    """The checkpoint that a finished stage leaves; `Damaged` when it would lie outside of the stage's folder."""
    return reading.inside(folder, done["checkpoint"], folder / "done.json", mend=MEND)


class Workspace:
    """What a stage can ask about the other stages of its recipe: their folders, order, settings and results."""

    def __init__(self, recipe: Recipe, out: Path):
        self.recipe, self.out, self.root = recipe, out, out / recipe.name

    def folder(self, name: str) -> Path:
        """The folder of a stage."""
        return self.root / name

    def in_order(self) -> list[Stage]:
        """All stages, each after those that it needs; `UserError` when stages need each other in a circle."""
        ordered: list[Stage] = []

        def visit(stage: Stage, above: tuple[str, ...]) -> None:
            if stage.name in above:
                raise UserError(f"recipe {self.recipe.name}: stages need each other in a circle: {' → '.join(above)}")
            for need in stage.needs:
                visit(self.recipe.stage(need), (*above, stage.name))
            if stage not in ordered:
                ordered.append(stage)

        for stage in self.recipe.stages:
            visit(stage, ())
        return ordered

    def settings(self, stage: Stage) -> dict[str, Any]:
        """What decides the result of a stage: its fields and, under `needs`, those of the stages it needs."""
        own = {name: value for name, value in fields.encode(stage).items() if name not in stage.NOT_HASHED}
        return {**own, "needs": {need: self.settings(self.recipe.stage(need)) for need in stage.needs}}

    def asker(self, stage: Any, decoder: Any, mesh: Any) -> Callable[[Any, int], dict[str, float]] | None:
        """`(parameters, step)` → the scores of the benchmarks that a model is asked while stage `stage` trains it; None
        if there are none."""
        if stage.benchmarks is not None:
            raise UserError(f"stage {stage.name}: benchmarks are asked where a recipe is run (`easylm run`)")
        return None

    def done(self, stage: Stage) -> Done | None:
        """The contents of `done.json`, or None when the stage is not done."""
        return read_done(self.folder(stage.name))

    def sources(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """The sources with `stage:<name>/<file>` replaced by the path of that file."""
        return tuple(
            dataclasses.replace(source, path=str(self.root / source.path.removeprefix("stage:")))
            if source.path.startswith("stage:") else source
            for source in sources
        )  # fmt: skip

    def data(self, spec: DataSpec) -> DataSpec:
        """The spec with `stage:<name>` in its tokenizer and sources replaced by paths."""
        tokenizer = spec.tokenizer
        if tokenizer.startswith("stage:"):
            tokenizer = f"sp:{self.folder(tokenizer.removeprefix('stage:')) / 'tokenizer.model'}"
        return dataclasses.replace(spec, sources=self.sources(spec.sources), tokenizer=tokenizer)

    def result(self, name: str) -> Path:
        """The checkpoint of a finished stage of this recipe; `UserError` when it has none."""
        done = self.done(self.recipe.stage(name))
        if done is None or "checkpoint" not in done:
            raise UserError(f"stage {name} left no checkpoint to start from ({self.folder(name)})")
        return checkpoint_of(self.folder(name), done)

    def model(self, name: str) -> str:
        """The model called `name` in the form of `checkpoint.load`: a stage becomes `run:<its checkpoint>`, `hf:<name>`
        and `run:<folder>` stay unchanged.

        Raises:
            UserError: the stage is not done, or has no checkpoint.
        """
        return name if name.startswith(("hf:", "run:")) else f"run:{self.result(name)}"
