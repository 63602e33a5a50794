"""Which stages have the same programs, told from the recipe before anything is lowered.

A figure of a paper trains one shape many times: with other data, verifiers, rates and seeds. None of these changes what
is compiled but for constants in it, so one of them is planned for all. What is dropped is listed here; whatever else a
stage says stays, so that a field that is new makes stages differ rather than wrongly alike.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax

import easylm_jax
import models
from easylm_jax.config import DataSpec, Recipe, Stage, fields
from easylm_jax.plan import compile_cache, shapes
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.mesh import parse_mesh

# Names, texts, seeds and lengths of runs: nothing of them reaches a program. Models are replaced by their shapes.
_OUTSIDE = {
    "name", "seed", "steps", "epochs", "examples", "checkpoints", "monitoring", "validation", "check", "keep_samples",
    "value_only", "refill", "limit", "lr", "entries", "published", "title", "variants", "extract", "label", "pairs",
    "verifier", "also", "stop_strings", "kl_prompts", "model", "init", "value", "reward", "best_of", "average",
    "head_init",
}  # fmt: skip
# Of data, what gives a batch its shape.
_OF_DATA = ("kind", "sequence_length", "max_side_length", "max_pairs_per_row", "packing")


def key(stage: Stage, recipe: Recipe, topology: Topology) -> str:
    """The same for stages whose programs differ at most in constants."""
    said = {
        "stage": _plain(stage), "models": [fields.encode(config) for config in _models(stage, recipe)],
        "mesh": parse_mesh(recipe.mesh, topology.count), "topology": topology.name,
    }  # fmt: skip
    if recipe.decode_mesh is not None and stage.generates:
        said["decode mesh"] = parse_mesh(recipe.decode_mesh, topology.count)
    if stage.family != "train":  # there it is the name of a model
        said["stage"].pop("reference", None)
    if stage.models.get("judge") is not None:
        said["judge"] = _plain(stage.reward.judge)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]


def _models(stage: Stage, recipe: Recipe) -> list[Any]:
    """The configurations of the models that a stage runs."""
    own = [shapes.stage_config(stage, recipe)] if stage.trains else []
    named = stage.models.values()
    return [*own, *(None if name is None else shapes.config_of(name, recipe) for name in named)]


def _plain(value: Any) -> Any:
    """JSON of what can change a program; of a real number, whether it is zero, finite or infinite."""
    if isinstance(value, DataSpec):
        return {name: getattr(value, name) for name in _OF_DATA}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [name for name in fields.encoded_fields(value) if name not in _OUTSIDE]
        own = {name: _plain(getattr(value, name)) for name in kept}
        return {"class": type(value).__name__, **fields.removed_fields(value), **own}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return "0" if value == 0 else "infinite" if math.isinf(value) else "real"
    return value


@functools.cache
def versions() -> str:
    """A hash of the compiler, JAX, and the source that makes and reads programs: what is kept under it holds for them
    alone."""
    from importlib.metadata import PackageNotFoundError, version

    hashed = hashlib.sha256(f"{compile_cache.VERSION} {jax.__version__}".encode())
    try:
        hashed.update(version("libtpu").encode())
    except PackageNotFoundError:
        hashed.update(b"none")
    for package in (models, easylm_jax):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            hashed.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return hashed.hexdigest()[:24]
