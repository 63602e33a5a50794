r"""Mathematical verifiers: whether the final answer of a response is correct.

response → candidates (a box, "the answer is", the last number, ...) → equal to the gold answer? → bool

    check_math(r"... so \boxed{\tfrac{1}{2}}.", "0.5")                True
    check_math("The answer is 18.", "18", style="gsm8k")              compared as text, as Tülu 3 does
    check_math(response, gold, style="strict")                        Minerva's sentence alone
    check_math(response, gold, style="spurious")                      extraction and grader of Spurious Rewards

Answers are compared as strings first, then by value (exactly, or to many digits), in bounded time on any input.
Computer algebra, in a worker process with a time limit, is used for sums, integrals, limits and the like only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easylm_jax.rewards.maths import spurious, symbolic
from easylm_jax.rewards.maths.equal import equal, readable
from easylm_jax.rewards.maths.extract import candidates, last_boxed, last_number, minerva, without_commas
from easylm_jax.rewards.maths.tokens import LONGEST
from easylm_jax.rewards.verdict import Explained
from models.errors import UserError

__all__ = ["STYLES", "check_math", "extract_spurious", "gsm8k", "last_number", "math", "strict_math"]

_SHOWN = 80  # characters of an answer in a reason
STYLES = ("math", "strict", "gsm8k", "spurious", "spurious_r1")


def check_math(response: str, gold: str, style: str = "math") -> bool:
    r"""Whether the final answer of `response` is `gold`. Never raises for any response, and never hangs.

    Args:
        response: a whole response, or an answer only.
        gold: the correct answer, LaTeX or plain text; of a whole solution, its last box is used.
        style: "math" extracts the last box or Minerva's sentence, else the text after "####" or "the answer is", else
            the text between the last dollar signs, else the whole text or its last number; mathematically equal
            answers are equal (spec tulu3 §6.2). "strict" uses Minerva's sentence or the whole text. "gsm8k" compares
            the last number as text (spec tulu3 §6.1). "spurious" and "spurious_r1" (after the last <answer>) follow
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
            del found_here[1]  # the whole text is an answer, so a number in it is not a second candidate
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
    """The answer of a gold text, which may be a whole solution with a box."""
    boxed = last_boxed(gold) if "boxed" in gold or "\\fbox" in gold else None
    return gold.strip() if boxed is None else boxed.strip()


def extract_spurious(response: str, style: str = "spurious") -> str:
    """The answer as extracted and normalised by Spurious Rewards; "" if there is none."""
    return spurious.extract(response, r1=style == "spurious_r1")


# Verifiers


def math(response: str, record: Mapping[str, Any], style: str = "math") -> float:
    """1 if `check_math` accepts the response. The label is `ground_truth`, `answer`, or the last box of `solution`."""
    return _score(response, _label(record), style)


def strict_math(response: str, record: Mapping[str, Any]) -> float:
    """1 if the answer in Minerva's sentence, or else the whole response, is correct."""
    return _score(response, _label(record), "strict")


def gsm8k(response: str, record: Mapping[str, Any]) -> float:
    """1 if the last number equals `ground_truth`, or the text after #### in `answer` (the published data set)."""
    gold = record.get("ground_truth")
    if gold is None:
        gold = record["answer"].rpartition("####")[2]
    return _score(response, str(gold).strip(), "gsm8k")


def _score(response: str, gold: str, style: str) -> float:
    """1 if `check_math` accepts the response; otherwise 0, with what was read as its answer as the reason."""
    if check_math(response, gold, style):
        return 1.0
    if style == "gsm8k":
        found = last_number(response)
    elif style == "math":
        found = next(iter(candidates(response)), None)
    elif style == "strict":
        found = minerva(response)
    else:
        found = extract_spurious(response, style)
    read = f"the answer {found.strip()[:_SHOWN]!r} was read" if found and found.strip() else "no answer was found"
    return Explained(0.0, f"{read}; expected {gold[:_SHOWN]!r}")


def _label(record: Mapping[str, Any]) -> str:
    for column in ("ground_truth", "answer"):
        if record.get(column) is not None:
            return _text(record[column]).rpartition("####")[2].strip()
    where = f"record {record.get('_record')} of {record.get('_source')}"
    if record.get("solution") is None:
        raise UserError(f"math: {where} has no column ground_truth, answer or solution; name one in DataSpec.keep")
    boxed = last_boxed(_text(record["solution"]))
    if boxed is None:
        raise UserError(f"math: the solution of {where} has no \\boxed answer")
    return boxed


math.warm_up = strict_math.warm_up = symbolic.warm_up  # type: ignore[attr-defined]
