"""Verifiers that run the Python program of a response against tests (spec tulu3 §6.1, `code` and `code_stdio`).

They are disabled unless the environment variable EASYLM_RUN_CODE is 1: the user of a machine decides whether generated
programs may run on it, not a recipe or a data set. `sandbox` isolates the programs.
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
    """The share of tests that the program in a response passes; 0 if it is below `threshold`.

    The program is the last code block between ``` marks, or the whole response without one. The label is a list of
    tests, such as "assert f(2) == 4", or its JSON text. Each test runs with a fresh copy of the program.

    Args:
        response: the response.
        record: the record with the tests.
        threshold: smaller shares score 0.
        seconds: limit on the CPU time of a test.

    Raises:
        UserError: running programs is disabled or cannot be isolated on this machine, or the label is not a list of
            texts.
    """
    tests = _tests(record, str)
    return _share(_run(response, tests, "assert", seconds), threshold)


def code_stdio(response: str, record: Mapping[str, Any], threshold: float = 0.0, seconds: float = 1.0) -> float:
    """The share of inputs for which the program prints the expected output; 0 if it is below `threshold`.

    The label is a list of {"input": ..., "output": ...}, or its JSON text. Outputs are compared line by line without
    surrounding whitespace; lines that differ are equal if their words are equal numbers.

    Arguments and errors are those of `code`.
    """
    tests = _tests(record, dict)
    pairs = [(_text_of(test.get("input", "")), _text_of(test.get("output"))) for test in tests]
    outputs = _run(response, [given for given, _ in pairs], "input", seconds)
    right = [got is not None and same_output(got, wanted) for got, (_, wanted) in zip(outputs, pairs, strict=True)]
    return _share(right, threshold)


def last_block(response: str) -> str:
    """The last closed block between ``` marks, without its language name; the whole text if there is none."""
    parts = response.split("```")
    closed = (len(parts) - 1) // 2
    if not closed:
        return response
    block = parts[2 * closed - 1]
    named = _LANGUAGE.match(block)
    return (block[named.end() :] if named else block).strip()


def same_output(got: str, wanted: str) -> bool:
    """Whether an output equals the expected output (see `code_stdio`)."""
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
        raise UserError(f"reward: running programs is off; set {SWITCH}=1 if this machine may run generated programs")
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
