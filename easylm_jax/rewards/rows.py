"""Rows that name their own verifier, as Tülu 3's data for verifiable rewards do (arXiv 2411.15124, Section 6).

A row has `dataset`, the name of a verifier, and `ground_truth`, its label. Both may be lists of one length; the scores
are then added (spec tulu3 §5.1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.errors import UserError

# Rows cannot call these by themselves: a recipe has to say so, as in by_dataset(code='code').
ASKED_FOR = ("by_dataset", "code", "code_stdio", "judge")


def by_dataset(response: str, record: Mapping[str, Any], **remap: str) -> float:
    """The score of the verifier that the record's column `dataset` names, in any case: `"gsm8k"`, `"MATH"`, `"ifeval"`.

    `remap` has another verifier called in place of one that rows name: `by_dataset(ifeval='ifeval_old')` for Tülu 3's
    constraints. Rows choose among the verifiers of the registry; only a recipe can name a `module:function`.

    Raises:
        UserError: a row names no verifier there is, or has not one label for each name.
    """
    names, labels = record["dataset"], record["ground_truth"]
    if isinstance(names, str):
        names, labels = [names], [labels]
    where = f"record {record.get('_record')} of {record.get('_source')}"
    if not (_is_list(names) and _is_list(labels) and len(names) == len(labels) and len(names) > 0):
        raise UserError(f"reward: {where} has not one ground_truth for each verifier that its column dataset names")
    score = 0.0
    for name, label in zip(names, labels, strict=True):
        score += float(_verifier(name, where, remap)(response, {**record, "dataset": name, "ground_truth": label}))
    return score


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _verifier(name: Any, where: str, remap: Mapping[str, str]) -> Callable[..., float]:
    """The verifier that a row names."""
    from easylm_jax.rewards.registry import VERIFIERS  # here, since the registry lists this module's verifier

    plain = str(name).lower()
    if plain in remap:
        return _named(remap[plain])
    if plain not in VERIFIERS or plain in ASKED_FOR:
        known = ", ".join(sorted(set(VERIFIERS) - set(ASKED_FOR)))
        raise UserError(
            f"reward: {where} names the verifier {name!r}; rows may name {known}; say which other one is meant with "
            f"by_dataset({plain if plain.isidentifier() else 'name'}='…')"
        )
    return VERIFIERS[plain]


@functools.cache
def _named(call: str) -> Callable[..., float]:
    from easylm_jax.rewards.registry import verifier

    return verifier(call)
