r"""Is the final answer of a response the right one?

response → candidates (a box, "the answer is", the last number, ...) → equal to the gold answer? → bool

    check_math(r"... so \boxed{\tfrac{1}{2}}.", "0.5")                True
    check_math("The answer is 18.", "18", style="gsm8k")              compared as text, as Tülu 3 does
    check_math(response, gold, style="strict")                        Minerva's sentence alone
    check_math(response, gold, style="spurious")                      extraction and grader of Spurious Rewards

Strings decide first, then values (exact, or to many digits), in bounded time on any input; computer algebra, in a
worker process with a time cap, is only asked about sums, integrals, limits and the like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easylm_jax.rewards.maths import spurious, symbolic
from easylm_jax.rewards.maths.equal import equal, readable
from easylm_jax.rewards.maths.extract import candidates, last_boxed, last_number, minerva, without_commas
from easylm_jax.rewards.maths.tokens import LONGEST
from models.errors import UserError

__all__ = ["STYLES", "check_math", "extract_spurious", "gsm8k", "last_number", "math", "strict_math"]

STYLES = ("math", "strict", "gsm8k", "spurious", "spurious_r1")


def check_math(response: str, gold: str, style: str = "math") -> bool:
    r"""Whether the final answer of `response` is `gold`. Never raises for any response, and never hangs.

    Args:
        response: a whole response, or an answer alone.
        gold: the answer, LaTeX or plain; a whole solution counts by its last box.
        style: "math" takes the last box or Minerva's sentence, else what follows "####" or "the answer is", else
            what stands between the last dollar signs, else the whole text or its last number; mathematically equal
            answers are equal (spec tulu3 §6.2). "strict" takes Minerva's sentence or the whole text. "gsm8k" compares
            the last number as text (spec tulu3 §6.1). "spurious" and "spurious_r1" (behind the last <answer>) are
            the rules of Spurious Rewards (spec spurious_rewards §3).

    Raises:
        UserError: an unknown style.
    """
    response, gold = _text(response), _text(gold)
    if style == "gsm8k":
        found = last_number(response)
        return (response.strip() if found is None else found).lower() == without_commas(gold).strip().lower()
    gold = _gold(gold)
    if style in ("spurious", "spurious_r1"):
        return spurious.grade(spurious.extract(response, r1=style == "spurious_r1"), gold)
    if style == "math":
        found_here = candidates(response)
        if len(found_here) == 2 and found_here[0] == response.strip() and readable(found_here[0]):
            del found_here[1]  # the text is an answer itself, so that a number in it is none
    elif style == "strict":
        said = minerva(response)
        found_here = [response.strip()[: LONGEST + 1] if said is None else said]
    else:
        raise UserError(f"check_math: no style {style!r}; there are {', '.join(STYLES)}")
    return any(_right(candidate, gold) for candidate in found_here)


def _right(candidate: str, gold: str) -> bool:
    verdict = equal(candidate, gold)
    return symbolic.same_formula(candidate, gold) if verdict is None else verdict


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _gold(gold: str) -> str:
    """The answer of a gold text, which may be a solution with a box."""
    boxed = last_boxed(gold) if "boxed" in gold or "\\fbox" in gold else None
    return gold.strip() if boxed is None else boxed.strip()


def extract_spurious(response: str, style: str = "spurious") -> str:
    """The answer as Spurious Rewards extracts and normalises it; "" where there is none."""
    return spurious.extract(response, r1=style == "spurious_r1")


# Verifiers


def math(response: str, record: Mapping[str, Any], style: str = "math") -> float:
    """1 where `check_math` says so. The label is `ground_truth`, `answer`, or the last box of `solution`."""
    return float(check_math(response, _label(record), style))


def strict_math(response: str, record: Mapping[str, Any]) -> float:
    """1 where the answer in Minerva's sentence, else the whole response, is right."""
    return float(check_math(response, _label(record), "strict"))


def gsm8k(response: str, record: Mapping[str, Any]) -> float:
    """1 where the last number is the record's: `ground_truth`, or what follows #### in `answer` (the published set)."""
    gold = record.get("ground_truth")
    if gold is None:
        gold = record["answer"].rpartition("####")[2]
    return float(check_math(response, str(gold).strip(), "gsm8k"))


def _label(record: Mapping[str, Any]) -> str:
    for column in ("ground_truth", "answer"):
        if record.get(column) is not None:
            return _text(record[column]).rpartition("####")[2].strip()
    where = f"record {record.get('_record')} of {record.get('_source')}"
    if record.get("solution") is None:
        raise UserError(f"math: {where} has no column ground_truth, answer or solution (DataSpec.keep)")
    boxed = last_boxed(_text(record["solution"]))
    if boxed is None:
        raise UserError(f"math: the solution of {where} has no \\boxed answer")
    return boxed


math.warm_up = strict_math.warm_up = symbolic.warm_up  # type: ignore[attr-defined]
