"""Finds stages that compile to the same programs, from the recipe, before anything is lowered.

A figure of a paper trains models of one shape many times, with different data, verifiers, learning rates and seeds.
These change at most constants in the compiled programs, so one plan counts for all of them. The ignored fields are
listed here; all others are compared, so that a new field makes stages different rather than wrongly equal.
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

# Ignored: names, texts, seeds and lengths of runs do not affect programs. Models are compared by their configurations.
_IGNORED = {
    "name", "seed", "steps", "epochs", "examples", "checkpoints", "monitoring", "validation", "check", "keep_samples",
    "value_only", "refill", "limit", "lr", "entries", "published", "title", "variants", "extract", "label", "pairs",
    "verifier", "also", "stop_strings", "kl_prompts", "model", "init", "value", "reward", "best_of", "average",
    "head_init", "benchmarks", "suite",
}  # fmt: skip
# The fields of data that determine the shape of a batch.
_DATA_FIELDS = ("kind", "sequence_length", "max_side_length", "max_pairs_per_row", "packing")
_PICTURE_FIELDS = ("row_crops",)  # and, of data with pictures, also these


def key(stage: Any, recipe: Recipe, topology: Topology) -> str:
    """A hash that is equal for stages whose programs differ at most in constants."""
    compared: dict[str, Any] = {
        "stage": _plain(stage), "models": [fields.encode(config) for config in _models(stage, recipe)],
        "mesh": parse_mesh(recipe.mesh, topology.count), "topology": topology.name,
    }  # fmt: skip
    if recipe.decode_mesh is not None and stage.generates:
        compared["decode mesh"] = parse_mesh(recipe.decode_mesh, topology.count)
    if stage.family != "train":  # in other families `reference` names a model
        compared["stage"].pop("reference", None)
    if stage.models.get("judge") is not None:
        compared["judge"] = _plain(stage.reward.judge)
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:24]


def _models(stage: Stage, recipe: Recipe) -> list[Any]:
    """The configurations of the models that a stage runs."""
    own: list[Any] = [shapes.stage_config(stage, recipe)] if shapes.is_training(stage) else []
    for role, name in stage.models.items():
        config = None if name is None else shapes.config_of(name, recipe)
        scores = config is not None and role in ("value", "reward")  # these get a scalar head, if they have none
        own.append(config.replace(scalar_head=True) if config is not None and scores else config)
    return own


def _plain(value: Any) -> Any:
    """The JSON value of what can affect a program; of a float only whether it is zero, finite or infinite."""
    if isinstance(value, DataSpec):
        names = _DATA_FIELDS if value.vision is None else (*_DATA_FIELDS, *_PICTURE_FIELDS)
        return {name: getattr(value, name) for name in names}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [name for name in fields.encoded_fields(value) if name not in _IGNORED]
        own = {name: _plain(getattr(value, name)) for name in kept}
        return {"class": type(value).__name__, **fields.removed_fields(value), **own}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return "0" if value == 0 else "infinite" if math.isinf(value) else "real"
    return value


@functools.cache
def versions() -> str:
    """A hash of the versions of the compiler and JAX and of the source code; cached plans are valid only for these."""
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
