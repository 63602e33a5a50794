"""Sums, integrals, limits and the like: equality by computer algebra, in a worker process with a time cap.

What strings and values decide never comes here. SymPy may take any time and memory for an innocent-looking line, so
that it is only ever asked in a process that can be killed; in a pool's worker it is asked directly.
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

SECONDS = 2.0  # for one comparison outside of a pool
_LONGEST = 200
# Without one of these, what `parse` cannot read is no formula.
_NEEDS = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|frac\s*\{\s*\\?(?:d|partial)|gcd|lcm|bmod|mod|max|min|det|binom)(?![a-z])"
)
# What costs too much even where it is short: long numbers, large powers and factorials, towers of them.
_RISKY = re.compile(
    r"\d{13}|\^\s*\{?\s*-?\s*\d{3}|\^\s*\{?\s*-?\s*\d+\s*\^|[\d)}!]{4}\s*!|[)}]\s*!|(?:\^.{0,12}){3}\^|(?:exp|cosh|sinh).{0,4}\d{3}"
    r"|\)\s*\^\s*\{?\d\d"
)
_DEEPEST = 12
_CALL = "easylm_jax.rewards.maths.symbolic:same"
_starting = threading.Lock()


@functools.lru_cache(maxsize=10_000)
def same_formula(candidate: str, gold: str) -> bool:
    """Whether two formulas are equal by computer algebra; false where it cannot tell in time. Never raises."""
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
    """The text for the parser; None where it may be costly: too long, too deep, or with large powers."""
    text = without_unit(tidy(text))[0]
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return None if not text or len(text) > _LONGEST or deepest > _DEEPEST or _RISKY.search(text) else text


def same(response: str, record: Mapping[str, Any]) -> float:
    """1 where the formulas `response` and `ground_truth` are equal, as a verifier for the pool."""
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
    except Exception:  # SymPy and its parser raise whatever they like for what they cannot read
        return 0.0


def warm_up() -> None:
    """Loads the computer algebra: a second, outside of the time that a call has."""
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
