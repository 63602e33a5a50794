"""Rewards that carry little or no information about the answer (Spurious Rewards, arXiv 2506.10947, Section 2).

    "boxed_format"                  something stands in the last box, right or not
    "random(0.5)"                   a coin
    "python", "not python"          the word, as a sign that code was written
    "no_repetition"                 no stretch of text again and again
    "ttrl"                          agrees with most of the answers to the same prompt
    "dense"                         a score for each of several answers

Ground truth, majority vote and incorrect labels are one verifier, `math(style='spurious')`, on different labels (see
`majority_vote`). Compound rewards are expressions: "boxed_format and not python". A random reward is drawn once, with
the response (`_draw`), so what is logged is what was trained on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from easylm_jax.rewards.maths.spurious import cleaned, last_boxed
from easylm_jax.runtime.functions import load_function
from models.errors import UserError

SHORTEST, LONGEST, TIMES = 10, 256, 10  # characters of what repeats, and how often it does
EXTRACT = "easylm_jax.rewards.spurious:answer_of"

_FENCE = re.compile(r"```[ \t]*python", re.IGNORECASE)


def boxed_format(response: str, record: Mapping[str, Any], style: str = "plain", compat: str | None = None) -> float:
    """1 where the last box holds something after clean-up; whether it is right does not matter.

    `style="r1"` asks for something between `<answer>` and `</answer>` in place of a box. The paper's code then also
    took a response without tags, whatever it said: `compat="spurious"`. A box that is never closed counts up to the
    end of the text.

    Raises:
        UserError: an unknown style or compat.
    """
    _choice("boxed_format: style", style, ("plain", "r1"))
    _choice("boxed_format: compat", compat, (None, "spurious"))
    if style == "plain":
        return float(bool(cleaned(last_boxed(response) or "").strip()))
    _, opened, inside = response.rpartition("<answer>")
    if compat is None and not (opened and "</answer>" in inside):
        return 0.0
    return float(bool(cleaned(inside.partition("</answer>")[0]).strip()))


def random(response: str, record: Mapping[str, Any], share: float) -> float:
    """1 for a `share` of all responses, independently of what they say. Needs `_draw`."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise UserError(f"random: share must be a number from 0 to 1, not {share!r}")
    return float(_of_rollout(record, "_draw", "random") < share)


def python(response: str, record: Mapping[str, Any], fenced: bool = False) -> float:
    """1 where "python" is written anywhere, in any case; `fenced` asks for the opening of a fenced block of it."""
    return float(_FENCE.search(response) is not None if fenced else "python" in response.lower())


def no_repetition(response: str, record: Mapping[str, Any]) -> float:
    """0 where some text of 10 to 256 characters stands 10 or more times back to back, else 1.

    A text repeats with period p over a stretch where each character equals the one p places on; one that stands 10
    times does so for 9 p places.
    """
    import numpy as np

    text = np.frombuffer(response.encode("utf-32-le", "surrogatepass"), np.uint32)
    for period in range(SHORTEST, min(LONGEST, len(text) // TIMES) + 1):
        # A stretch of 9 p places has 9 places in steps of p: a quick look that nearly always says no.
        steps = text[::period]
        if _longest_run(steps[:-1] == steps[1:]) < TIMES - 1:
            continue
        if _longest_run(text[:-period] == text[period:]) >= (TIMES - 1) * period:
            return 0.0
    return 1.0


def _longest_run(equal: Any) -> int:
    """The most neighbours that are all True."""
    import numpy as np

    breaks = np.flatnonzero(~equal)
    return int(np.diff(breaks, prepend=-1, append=len(equal)).max()) - 1


def ttrl(response: str, record: Mapping[str, Any], extract: str = EXTRACT) -> float:
    """1 where the response's answer is that of most answers to its prompt in this rollout (TTRL). Needs `_group`.

    `extract` is `module:function`, from a response to its answer as text; empty answers have no vote and earn nothing.
    """
    read = extractor(extract)
    answer = read(response)
    return float(answer != "" and answer == majority(map(read, _of_rollout(record, "_group", "ttrl"))))


ttrl.reads_group = True  # type: ignore[attr-defined]


def dense(response: str, record: Mapping[str, Any]) -> float:
    """The score that the label, a JSON object of answers with scores, gives the first answer equal to the response's.

    Raises:
        UserError: the label is none.
    """
    from easylm_jax.rewards.maths import check_math

    gold = label(record)
    try:
        scores = json.loads(gold) if isinstance(gold, str) else gold
        pairs = [(str(answer), float(score)) for answer, score in scores.items()]
    except (ValueError, TypeError, AttributeError):
        where = f"record {record.get('_record')} of {record.get('_source')}"
        raise UserError(f"dense: the label of {where} must be a JSON object of answers with scores") from None
    return next((score for answer, score in pairs if check_math(response, answer, "spurious")), 0.0)


def label(record: Mapping[str, Any]) -> Any:
    """The record's `ground_truth`, or its `answer`."""
    for column in ("ground_truth", "answer"):
        if record.get(column) is not None:
            return record[column]
    raise UserError(
        f"reward: record {record.get('_record')} of {record.get('_source')} has neither ground_truth nor answer "
        "(DataSpec.keep)"
    )


def answer_of(response: str) -> str:
    """The answer of a mathematical response as it is voted on: extracted and normalised; "" where there is none."""
    from easylm_jax.rewards.maths import extract_spurious

    return extract_spurious(response)


def r1_answer_of(response: str) -> str:
    """The same behind the last `<answer>`, for base models that answer between tags."""
    from easylm_jax.rewards.maths import extract_spurious

    return extract_spurious(response, "spurious_r1")


def votes(answers: Iterable[str]) -> list[tuple[str, int]]:
    """Answers with how often each stands there, most first; of equals the first seen. Empty ones are left out."""
    return Counter(answer for answer in answers if answer).most_common()


def majority(answers: Iterable[str]) -> str | None:
    """The answer given most often; None where all are empty."""
    ranked = votes(answers)
    return ranked[0][0] if ranked else None


def extractor(name: str) -> Callable[[str], str]:
    """The function from response to answer that `module:function` names."""
    try:
        return load_function(name)
    except UserError as error:
        raise UserError(f"reward: no extractor: {error}") from None


def _of_rollout(record: Mapping[str, Any], column: str, name: str) -> Any:
    if column not in record:
        raise UserError(f"{name}: there is no {column} here; it is given to the responses of a rollout or evaluation")
    return record[column]


def _choice(what: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{what} is {value!r}; use {' or '.join(map(repr, allowed))}")
