"""Reads records of seqio tasks and mixtures."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

from easylm_jax.data.records import plain
from models.errors import UserError


def _seqio():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import seqio
    except ImportError as error:
        raise UserError(
            f"data: a seqio source needs seqio and tensorflow: pip install seqio tensorflow ({error})"
        ) from None
    return seqio


def _find(name: str, module: str | None):
    seqio = _seqio()
    if module is not None:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"data: module {module!r} of source seqio:{name} cannot be imported: {error}") from None
    try:
        return seqio.get_mixture_or_task(name)
    except ValueError:
        hint = "" if module else "; name the module that registers it with Source(module=...)"
        raise UserError(f"data: no seqio task or mixture is called {name!r}{hint}") from None


def mixture_rates(name: str, module: str | None) -> dict[str, float]:
    """Rates of the tasks of a mixture, sorted by name (seqio's order varies); empty when `name` is a task."""
    found = _find(name, module)
    if not isinstance(found, _seqio().Mixture):
        return {}
    return {task.name: float(found.get_rate(task)) for task in sorted(found.tasks, key=lambda task: task.name)}


def read_task(name: str, split: str, module: str | None) -> Iterator[tuple[dict[str, Any], str]]:
    """Records of a registered task, in its order. Integer features without text are decoded by their vocabulary."""
    task = _find(name, module)
    if split not in task.splits:
        raise UserError(f"data: seqio task {name!r} has no split {split!r}; it has {', '.join(task.splits)}")
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, use_cached=False)
    for index, example in enumerate(dataset.as_numpy_iterator()):
        yield _readable(plain(example), task), f"seqio:{name} example {index}"


def _readable(record: dict[str, Any], task: Any) -> dict[str, Any]:
    for feature, details in task.output_features.items():
        value = record.get(feature)
        if f"{feature}_pretokenized" in record or not isinstance(value, list) or not details.dtype.is_integer:
            continue
        record[feature] = details.vocabulary.decode(value)
    return record
