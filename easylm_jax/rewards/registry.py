"""Verifiers by name, and how one is called: what it raises or returns is told with the prompt that it was for."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from easylm_jax.rewards import code, legacy_instructions, length, maths, rows, spurious, text
from easylm_jax.rewards.expression import parse_call
from easylm_jax.rewards.instructions import scoring
from models.errors import UserError

Verifier = Callable[..., float]  # (response, record, options)

VERIFIERS: dict[str, Verifier] = {
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
    "ifeval_old": legacy_instructions.ifeval_old,
    "code": code.code,
    "code_stdio": code.code_stdio,
    "instructions": scoring.instructions,
    "by_dataset": rows.by_dataset,
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
        return VERIFIERS[name]
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # the module is the user's program: whatever is wrong in it is told
        known = ", ".join(sorted(VERIFIERS))
        raise UserError(
            f"reward: no verifier {name!r} ({error or type(error).__name__}); there are {known}, or write "
            "module:function"
        ) from error
    if not callable(found):
        raise UserError(f"reward: {name!r} is no function that could judge a response")
    return found


def verdict(judge: Verifier, response: str, record: Mapping[str, Any]) -> float:
    """What `judge` says, as a finite number.

    Raises:
        UserError: the record lacks what the verifier reads, the verifier fails, or it gives no finite number.
    """
    name = getattr(judge, "__name__", str(judge))
    where = f"record {record.get('_record')} of {record.get('_source')}"
    try:
        given = judge(response, record)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, KeyError) and error.args and error.args[0] not in record:
            raise UserError(
                f"reward: {name} needs the column {error}, which {where} does not have (DataSpec.keep)"
            ) from None
        raise UserError(f"reward: {name} failed on an answer to {where}: {type(error).__name__}: {error}") from error
    try:
        value = float(given)
    except (TypeError, ValueError):
        raise UserError(f"reward: {name} gave {given!r} for {where}; a reward must be a number") from None
    if not math.isfinite(value):
        raise UserError(f"reward: {name} gave {value} for {where}; a reward must be a finite number")
    return value
