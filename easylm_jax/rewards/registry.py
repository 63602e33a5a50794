"""Verifiers by name, and the verifier that each record chooses for itself (`by_dataset`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from easylm_jax.config.expression import parse_call
from easylm_jax.rewards import code, length, maths, spurious, text
from easylm_jax.rewards.instructions import legacy, scoring
from easylm_jax.rewards.verdict import Verifier
from easylm_jax.runtime.functions import load_function, resolve
from models.errors import UserError

# Records cannot choose these; a recipe must opt in, as in by_dataset(code='code').
OPT_IN = ("by_dataset", "code", "code_stdio", "judge")


def by_dataset(response: str, record: Mapping[str, Any], **remap: str) -> float:
    """The score of the verifier that the record's column `dataset` names, case-insensitively: `"gsm8k"`, `"MATH"`.

    Tülu 3's RLVR data has such records (arXiv 2411.15124, Section 6): `dataset` names a verifier and `ground_truth` is
    its label. Both may be lists of equal length; the scores are then added (spec tulu3 §5.1).

    `remap` replaces the verifier of a name: `by_dataset(ifeval='ifeval_old')` for Tülu 3's constraints. Records choose
    among the verifiers of the registry; only a recipe can name a `module:function`.

    Raises:
        UserError: a record names an unknown verifier, or does not have one label for each name.
    """
    names, labels = record["dataset"], record["ground_truth"]
    if isinstance(names, str):
        names, labels = [names], [labels]
    where = f"record {record.get('_record')} of {record.get('_source')}"
    if not (_is_list(names) and _is_list(labels) and len(names) == len(labels) and len(names) > 0):
        raise UserError(f"reward: {where} must have one ground_truth for each verifier that its column dataset names")
    score = 0.0
    for name, label in zip(names, labels, strict=True):
        score += float(_verifier(name, where, remap)(response, {**record, "dataset": name, "ground_truth": label}))
    return score


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _verifier(name: Any, where: str, remap: Mapping[str, str]) -> Callable[..., float]:
    """The verifier that a record names."""
    plain = str(name).lower()
    if plain in remap:
        return _cached_verifier(remap[plain])
    if plain not in VERIFIERS or plain in OPT_IN:
        known = ", ".join(sorted(set(VERIFIERS) - set(OPT_IN)))
        raise UserError(
            f"reward: {where} names the verifier {name!r}; records may name {known}; map it to another verifier with "
            f"by_dataset({plain if plain.isidentifier() else 'name'}='…')"
        )
    return resolve(VERIFIERS[plain])


@functools.cache
def _cached_verifier(call: str) -> Callable[..., float]:
    return verifier(call)


# A new verifier is a function and a line here; with its "module:function" the line is all that changes in this file.
VERIFIERS: dict[str, Verifier | str] = {
    "math": maths.math,
    "strict_math": maths.strict_math,
    "gsm8k": maths.gsm8k,
    "ifeval": scoring.ifeval,
    "ifbench": scoring.ifbench,
    "boxed_format": spurious.boxed_format,
    "random": spurious.random,
    "python": spurious.python,
    "no_repetition": spurious.no_repetition,
    "ttrl": spurious.ttrl,
    "dense": spurious.dense,
    "flan": text.flan,
    "string_matcher": text.string_matcher,
    "string_f1": text.string_f1,
    "puzzle": text.puzzle,
    "re_search": text.re_search,
    "re_search_f1": text.re_search_f1,
    "multiple_choice": text.multiple_choice,
    "r1_format": text.r1_format,
    "max_length": length.max_length,
    "up_to_max_length": length.up_to_max_length,
    "overlong": length.overlong,
    "ifeval_old": legacy.ifeval_old,
    "code": code.code,
    "code_stdio": code.code_stdio,
    "instructions": scoring.instructions,
    "by_dataset": by_dataset,
    "count": "easylm_jax.rewards.pictures:count",
    "count_valid": "easylm_jax.rewards.pictures:count_valid",
    "points_f1": "easylm_jax.rewards.pictures:points_f1",
    "points_precision": "easylm_jax.rewards.pictures:points_precision",
    "points_recall": "easylm_jax.rewards.pictures:points_recall",
    "short_answer": "easylm_jax.rewards.pictures:short_answer",
}


def verifier(call: str) -> Verifier:
    """The verifier of a call, with its options bound: `"gsm8k"`, `"random(0.5)"`, `"module:function"`.

    Raises:
        UserError: the verifier does not exist, or does not have these options.
    """
    name, options, named = parse_call(call)
    function = _function(name)
    if not (options or named):
        return function
    try:
        inspect.signature(function).bind("", {}, *options, **named)
    except TypeError as error:
        raise UserError(f"reward: {call!r}: {error}") from None

    def with_options(response: str, record: Mapping[str, Any]) -> float:
        return function(response, record, *options, **named)

    functools.update_wrapper(with_options, function)  # keeps attributes such as `reads_group`
    with_options.__name__ = call
    return with_options


def _function(name: str) -> Verifier:
    """A verifier by its name in `VERIFIERS`, or as `module:function`."""
    if name in VERIFIERS:
        return resolve(VERIFIERS[name])
    try:
        return load_function(name)
    except UserError as error:
        known = ", ".join(sorted(VERIFIERS))
        raise UserError(
            f"reward: no verifier {name!r} ({error.__cause__ or error}); there are {known}, or write module:function"
        ) from error
