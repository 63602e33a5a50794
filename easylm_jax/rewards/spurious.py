"""Rewards with little or no information about correctness (Spurious Rewards, arXiv 2506.10947, Section 2).

    "boxed_format"                  the last box is not empty, correct or not
    "random(0.5)"                   random
    "python", "not python"          the response contains the word, as a proxy for code
    "no_repetition"                 no text is repeated many times in a row
    "ttrl"                          the answer is the majority answer to the same prompt
    "dense"                         a score for each of several answers

Ground-truth, majority-vote and incorrect-label rewards use one verifier, `math(style='spurious')`, with different
labels (see `synthesize.majority_vote`). Compound rewards are expressions: "boxed_format and not python". The random
number of a random reward belongs to the response (`_draw`), so the logged rewards are those trained on.
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

SHORTEST, LONGEST, TIMES = 10, 256, 10  # length of the repeated text in characters, and number of repetitions
EXTRACT = "easylm_jax.rewards.spurious:answer_of"

_FENCE = re.compile(r"```[ \t]*python", re.IGNORECASE)


def boxed_format(response: str, record: Mapping[str, Any], style: str = "plain", compat: str | None = None) -> float:
    """1 if the last box is not empty after clean-up, whether its answer is correct or not.

    `style="r1"` requires text between `<answer>` and `</answer>` instead of a box. The paper's code then also accepted
    any response without tags: `compat="spurious"`. A box that is not closed extends to the end of the text.

    Raises:
        UserError: unknown style or compat.
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
    """1 with probability `share`, independently of the response. Needs `_draw`."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise UserError(f"random: share must be a number from 0 to 1, not {share!r}")
    return float(_rollout_column(record, "_draw", "random") < share)


def python(response: str, record: Mapping[str, Any], fenced: bool = False) -> float:
    """1 if the response contains "python", in any case; with `fenced`, only as the start of a fenced code block."""
    return float(_FENCE.search(response) is not None if fenced else "python" in response.lower())


def no_repetition(response: str, record: Mapping[str, Any]) -> float:
    """0 if some text of 10 to 256 characters occurs 10 or more times in a row, else 1.

    A text of length p that occurs 10 times in a row makes 9 p consecutive characters equal to those p positions later.
    """
    import numpy as np

    text = np.frombuffer(response.encode("utf-32-le", "surrogatepass"), np.uint32)
    for period in range(SHORTEST, min(LONGEST, len(text) // TIMES) + 1):
        # A quick check of every p-th character, which rejects nearly all texts.
        steps = text[::period]
        if _longest_run(steps[:-1] == steps[1:]) < TIMES - 1:
            continue
        if _longest_run(text[:-period] == text[period:]) >= (TIMES - 1) * period:
            return 0.0
    return 1.0


def _longest_run(equal: Any) -> int:
    """The length of the longest run of True."""
    import numpy as np

    breaks = np.flatnonzero(~equal)
    return int(np.diff(breaks, prepend=-1, append=len(equal)).max()) - 1


def ttrl(response: str, record: Mapping[str, Any], extract: str = EXTRACT) -> float:
    """1 if the answer is the majority answer of the responses to the same prompt in this rollout (TTRL).

    `extract` is `module:function`, from a response to its answer as text; empty answers do not vote and score 0. Needs
    `_group`.
    """
    extract_answer = extractor(extract)
    answer = extract_answer(response)
    group = _rollout_column(record, "_group", "ttrl")
    return float(answer != "" and answer == majority(map(extract_answer, group)))


ttrl.reads_group = True  # type: ignore[attr-defined]


def dense(response: str, record: Mapping[str, Any]) -> float:
    """The score of the response's answer in the label, a JSON object of answers with scores; 0 if it is not there.

    Raises:
        UserError: the label is not such an object.
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
        f"reward: record {record.get('_record')} of {record.get('_source')} has neither ground_truth nor answer; name "
        "the label's column in DataSpec.keep"
    )


def answer_of(response: str) -> str:
    """The extracted and normalised answer of a mathematical response, as used for votes; "" if there is none."""
    from easylm_jax.rewards.maths import extract_spurious

    return extract_spurious(response)


def r1_answer_of(response: str) -> str:
    """`answer_of` for the text after the last `<answer>`, for base models that answer between tags."""
    from easylm_jax.rewards.maths import extract_spurious

    return extract_spurious(response, "spurious_r1")


def votes(answers: Iterable[str]) -> list[tuple[str, int]]:
    """Answers with their counts, most frequent first; ties in order of appearance. Empty answers are left out."""
    return Counter(answer for answer in answers if answer).most_common()


def majority(answers: Iterable[str]) -> str | None:
    """The most frequent answer; None if all are empty."""
    ranked = votes(answers)
    return ranked[0][0] if ranked else None


def extractor(name: str) -> Callable[[str], str]:
    """The function from response to answer that `module:function` names."""
    try:
        return load_function(name)
    except UserError as error:
        raise UserError(f"reward: no extractor: {error}") from None


def _rollout_column(record: Mapping[str, Any], column: str, name: str) -> Any:
    if column not in record:
        raise UserError(f"{name}: there is no {column} here; only responses of a rollout or an evaluation have it")
    return record[column]


def _choice(what: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{what} is {value!r}; use {' or '.join(map(repr, allowed))}")
