"""Equality of formulas with sums, integrals, limits and the like, by computer algebra in a worker process.

It is used only if comparisons as strings and by value are not conclusive. SymPy may need unbounded time and memory even
for short formulas, so it runs only in processes that can be killed; in a worker of the pool it is called directly.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import threading
from collections.abc import Mapping
from typing import Any

from easylm_jax.rewards import pool_worker
from easylm_jax.rewards.maths.tidy import tidy, without_unit
from easylm_jax.rewards.pool import Pool
from models.errors import UserError

SECONDS = 2.0  # limit on the CPU time of one comparison outside of a pool
_LONGEST = 200
# A text that `parse` cannot parse is a formula only if it contains one of these.
_NEEDS = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|frac\s*\{\s*\\?(?:d|partial)|gcd|lcm|bmod|mod|max|min|det|binom)(?![a-z])"
)
# Short formulas that are too expensive: long numbers, large powers and factorials, towers of powers.
_RISKY = re.compile(
    r"\d{13}|\^\s*\{?\s*-?\s*\d{3}|\^\s*\{?\s*-?\s*\d+\s*\^|[\d)}!]{4}\s*!|[)}]\s*!|(?:\^.{0,12}){3}\^|(?:exp|cosh|sinh).{0,4}\d{3}"
    r"|\)\s*\^\s*\{?\d\d"
)
_DEEPEST = 12
_CALL = "easylm_jax.rewards.maths.symbolic:same"
_starting = threading.Lock()


@functools.lru_cache(maxsize=10_000)
def same_formula(candidate: str, gold: str) -> bool:
    """Whether two formulas are equal by computer algebra; false if that is not decided in time. Never raises."""
    a, b = _formula(candidate), _formula(gold)
    if a is None or b is None or not (_NEEDS.search(a) or _NEEDS.search(b)) or not _available():
        return False
    record = {"ground_truth": b}
    if pool_worker.inside:
        return bool(same(a, record))
    try:
        return bool(_pool().verdicts([_CALL], [a], [record]).values[0, 0])
    except (UserError, RuntimeError, OSError):
        return False


def _formula(text: str) -> str | None:
    """The text for the parser; None if it may be too expensive: too long, too deep, or with large powers."""
    text = without_unit(tidy(text))[0]
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return None if not text or len(text) > _LONGEST or deepest > _DEEPEST or _RISKY.search(text) else text


def same(response: str, record: Mapping[str, Any]) -> float:
    """1 if the formulas `response` and `ground_truth` are equal; a verifier for the pool."""
    import sympy
    from latex2sympy2_extended import latex2sympy

    try:
        a, b = (latex2sympy(text).doit() for text in (response, record["ground_truth"]))
        if a == b:
            return 1.0
        if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
            return 0.0
        return float(sympy.simplify(a - b) == 0)
    except MemoryError:
        raise
    except Exception:  # SymPy and its parser raise many kinds of errors for texts that they cannot parse
        return 0.0


def warm_up() -> None:
    """Imports the computer algebra, which takes about a second, before the time limit of a call applies."""
    if _available():
        same("\\sum_{k=1}^{3} k", {"ground_truth": "6"})


same.warm_up = warm_up  # type: ignore[attr-defined]


@functools.cache
def _available() -> bool:
    return importlib.util.find_spec("latex2sympy2_extended") is not None


def _pool() -> Pool:
    with _starting:
        return _shared_pool()


@functools.cache
def _shared_pool() -> Pool:
    return Pool(workers=1, seconds=SECONDS)
