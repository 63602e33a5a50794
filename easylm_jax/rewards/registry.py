"""Verifiers by name, and how one is called: what it raises or returns is told with the prompt that it was for."""

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

# Rows cannot call these by themselves: a recipe has to say so, as in by_dataset(code='code').
ASKED_FOR = ("by_dataset", "code", "code_stdio", "judge")


def by_dataset(response: str, record: Mapping[str, Any], **remap: str) -> float:
    """The score of the verifier that the record's column `dataset` names, in any case: `"gsm8k"`, `"MATH"`, `"ifeval"`.

    Tülu 3's data for RLVR have such rows (arXiv 2411.15124, Section 6): `dataset` names a verifier, `ground_truth` is
    its label. Both may be lists of one length; the scores are then added (spec tulu3 §5.1).

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
    plain = str(name).lower()
    if plain in remap:
        return _named(remap[plain])
    if plain not in VERIFIERS or plain in ASKED_FOR:
        known = ", ".join(sorted(set(VERIFIERS) - set(ASKED_FOR)))
        raise UserError(
            f"reward: {where} names the verifier {name!r}; rows may name {known}; say which other one is meant with "
            f"by_dataset({plain if plain.isidentifier() else 'name'}='…')"
        )
    return resolve(VERIFIERS[plain])


@functools.cache
def _named(call: str) -> Callable[..., float]:
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
}


def verifier(call: str) -> Verifier:
    """The verifier that `call` names, with its options bound: `"gsm8k"`, `"random(0.5)"`, `"module:function"`.

    Raises:
        UserError: there is none of this name, or it has no such options.
    """
    name, options, named = parse_call(call)
    found = _function(name)
    if not (options or named):
        return found
    try:
        inspect.signature(found).bind("", {}, *options, **named)
    except TypeError as error:
        raise UserError(f"reward: {call!r}: {error}") from None

    def with_options(response: str, record: Mapping[str, Any]) -> float:
        return found(response, record, *options, **named)

    functools.update_wrapper(with_options, found)  # attributes such as `reads_group` come along
    with_options.__name__ = call
    return with_options


def _function(name: str) -> Verifier:
    """A function by its name here, or as `module:function`."""
    if name in VERIFIERS:
        return resolve(VERIFIERS[name])
    try:
        return load_function(name)
    except UserError as error:
        known = ", ".join(sorted(VERIFIERS))
        raise UserError(
            f"reward: no verifier {name!r} ({error.__cause__ or error}); there are {known}, or write module:function"
        ) from error
