"""Verifiers that run a response's Python program against tests (spec tulu3 §6.1, `code` and `code_stdio`).

Off unless the environment variable EASYLM_RUN_CODE is 1: whether programs that a model wrote may run on a machine is
for whoever runs it to say, not for a recipe or a data set. `sandbox` tells how they are shut in.
"""

from __future__ import annotations

import decimal
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from easylm_jax.rewards.code import sandbox
from easylm_jax.rewards.text import label_of
from models.errors import UserError

SWITCH = "EASYLM_RUN_CODE"
_LANGUAGE = re.compile(r"python\d*\b|[\w+#.-]*[ \t]*\n", re.IGNORECASE)
_LONGEST = 1 << 20  # characters of a program


def code(response: str, record: Mapping[str, Any], threshold: float = 0.0, seconds: float = 1.0) -> float:
    """The share of tests that the program in a response passes; below `threshold` it is 0.

    The program is the last block between ``` marks, or the whole response where there is none. The label is a list of
    tests, such as "assert f(2) == 4", or JSON text of one. Each test is run with the program anew.

    Args:
        seconds: processor time of a test.

    Raises:
        UserError: programs are not to be run here or cannot be shut in; the label is no list of texts.
    """
    tests = _tests(record, str)
    return _share(_run(response, tests, "assert", seconds), threshold)


def code_stdio(response: str, record: Mapping[str, Any], threshold: float = 0.0, seconds: float = 1.0) -> float:
    """The share of runs in which the program in a response writes what is wanted; below `threshold` it is 0.

    The label is a list of {"input": ..., "output": ...}, or JSON text of one. Outputs are compared line by line without
    blanks around them; lines that differ are the same where their words are equal numbers.

    Args, Raises: as `code`.
    """
    tests = _tests(record, dict)
    pairs = [(_text_of(test.get("input", "")), _text_of(test.get("output"))) for test in tests]
    outputs = _run(response, [given for given, _ in pairs], "input", seconds)
    right = [got is not None and same_output(got, wanted) for got, (_, wanted) in zip(outputs, pairs, strict=True)]
    return _share(right, threshold)


def last_block(response: str) -> str:
    """The last closed block between ``` marks, without the name of its language; the whole text where there is none."""
    parts = response.split("```")
    closed = (len(parts) - 1) // 2
    if not closed:
        return response
    block = parts[2 * closed - 1]
    named = _LANGUAGE.match(block)
    return (block[named.end() :] if named else block).strip()


def same_output(got: str, wanted: str) -> bool:
    """Whether a program wrote what is wanted (see `code_stdio`)."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (got, wanted))
    return len(ours) == len(theirs) and all(
        left == right or _same_numbers(left, right) for left, right in zip(ours, theirs, strict=True)
    )


def _same_numbers(left: str, right: str) -> bool:
    ours, theirs = left.split(), right.split()
    if len(ours) != len(theirs):
        return False
    try:
        return all(decimal.Decimal(one) == decimal.Decimal(other) for one, other in zip(ours, theirs, strict=True))
    except (decimal.DecimalException, ValueError):
        return False


def _run(response: str, tests: list[str], kind: Any, seconds: float) -> list[Any]:
    if os.environ.get(SWITCH) != "1":
        raise UserError(f"reward: running programs is off; set {SWITCH}=1 if this machine may run what a model writes")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= 60:
        raise UserError(f"reward: a test's seconds must be above 0 and at most 60, not {seconds!r}")
    program = last_block(response)
    if not program.strip() or len(program) > _LONGEST:
        return [None] * len(tests)
    return sandbox.run(program, tests, kind=kind, seconds=seconds).verdicts


def _share(passed: list[Any], threshold: float) -> float:
    share = sum(map(bool, passed)) / len(passed)
    return share if share >= threshold else 0.0


def _tests(record: Mapping[str, Any], kind: type) -> list[Any]:
    label = label_of(record)
    if isinstance(label, str):
        try:
            label = json.loads(label)
        except (ValueError, RecursionError):
            raise UserError(f"reward: the tests must be a list, or JSON of one, not {label[:80]!r}") from None
    if not isinstance(label, list) or not label or not all(isinstance(test, kind) for test in label):
        what = "texts" if kind is str else "objects with input and output"
        raise UserError(f"reward: the tests must be a list of {what}, not {str(label)[:80]!r}")
    return label


def _text_of(value: Any) -> str:
    """An input or output as text; a list of lines is joined."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    if value is None:
        raise UserError("reward: a test of code_stdio has no output")
    return str(value)
