"""Strict and loose accuracy, by prompt and by instruction, as reported by IFBench and IFEval (spec §3)."""

from __future__ import annotations

import ast
import difflib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easylm_jax.rewards.instructions.base import REGISTRY, Instruction
from easylm_jax.rewards.instructions.tokens import use_nltk_data
from easylm_jax.rewards.text import answer_of
from easylm_jax.rewards.verdict import Explained
from models.errors import UserError

_RESAMPLES = 1000  # of the bootstrap


def find(constraint_id: Any) -> Instruction:
    """The instruction of this id.

    Raises:
        UserError: there is none.
    """
    try:
        return REGISTRY[constraint_id]
    except (KeyError, TypeError):
        close = difflib.get_close_matches(str(constraint_id), REGISTRY, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"no instruction {constraint_id!r}{hint}") from None


def loose_variants(response: str) -> list[str]:
    """The variants of a response for loose accuracy: without first line, last line, or both; each also without "*".

    One of them has to follow the instruction. The response itself comes first; duplicates and blank variants are left
    out.
    """
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    texts = [response, *cut]
    texts += [text.replace("*", "") for text in texts]
    return [text for text in dict.fromkeys(texts) if text.strip()]


@dataclass(frozen=True)
class Verdict:
    """Which instructions a response follows, strictly and loosely, in their order (an id may occur twice)."""

    ids: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def judge(
    ids: Sequence[str], arguments: Sequence[Mapping[str, Any] | None], response: Any, version: str = "r26"
) -> Verdict:
    """The strict and loose verdicts on each instruction. `arguments` is not changed.

    Raises:
        UserError: an unknown id, a malformed argument, or not one set of arguments for each id.
    """
    check_arguments(ids, arguments)
    both = [_follows(one, given, response, version) for one, given in zip(ids, arguments, strict=True)]
    return Verdict(tuple(ids), tuple(strict for strict, _ in both), tuple(loose for _, loose in both))


def _follows(constraint_id: str, given: Mapping[str, Any] | None, response: Any, version: str) -> tuple[bool, bool]:
    """Whether a response follows an instruction, strictly and loosely."""
    instruction, response = find(constraint_id), response if isinstance(response, str) else ""
    strict = instruction.holds(response, given, version)
    return strict, strict or any(instruction.holds(text, given, version) for text in loose_variants(response)[1:])


def check_arguments(ids: Any, arguments: Any) -> None:
    """Checks the instructions of a prompt and their arguments, without any response.

    Raises:
        UserError: an unknown id, a malformed argument, or not one set of arguments for each id.
    """
    if isinstance(ids, str) or not isinstance(ids, Sequence) or not isinstance(arguments, Sequence):
        raise UserError("instruction_id_list and kwargs must be lists")
    if len(ids) != len(arguments):
        raise UserError(f"{len(ids)} instructions with {len(arguments)} sets of arguments; give one for each")
    for constraint_id, given in zip(ids, arguments, strict=True):
        find(constraint_id).clean(given)


def strict_and_loose(response: str, record: Mapping[str, Any]) -> float:
    """A verifier for the pool: 0 if the response does not follow the instruction, 2 if loosely only, 3 if strictly.

    The record has `id`, `kwargs` and `version`, and `nltk_data`, the folder of NLTK's data or None.
    """
    if record["nltk_data"] is not None:
        use_nltk_data(record["nltk_data"])
    strict, loose = _follows(record["id"], record["kwargs"], response, record["version"])
    return float(strict + 2 * loose)


def report(verdicts: Iterable[Verdict], mode: str) -> dict[str, Any]:
    """Accuracies in `mode` "strict" or "loose": by prompt with a 95 % interval, by instruction, by group and by id.

    The interval is a bootstrap over prompts with a fixed seed.
    """
    prompts: list[bool] = []
    by_group: dict[str, list[bool]] = defaultdict(list)
    by_id: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        followed = getattr(verdict, mode)
        prompts.append(all(followed))
        for constraint_id, good in zip(verdict.ids, followed, strict=True):
            by_group[constraint_id.partition(":")[0]].append(good)
            by_id[constraint_id].append(good)
    instructions = [good for found in by_id.values() for good in found]
    return {
        "prompt": share(prompts),
        "prompt_interval": interval(prompts),
        "instruction": share(instructions),
        "groups": {name: share(by_group[name]) for name in sorted(by_group)},
        "ids": {name: share(by_id[name]) for name in sorted(by_id)},
        "counts": {name: len(by_id[name]) for name in sorted(by_id)},
    }


def share(values: Sequence[bool]) -> float:
    """The share of True; 0 if there are no values."""
    return sum(values) / len(values) if values else 0.0


def interval(values: Sequence[bool]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the share of True."""
    if not values:
        return 0.0, 0.0
    rng = random.Random(0)
    shares = sorted(share(rng.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return shares[int(0.025 * _RESAMPLES)], shares[int(0.975 * _RESAMPLES) - 1]


def constraints(record: Mapping[str, Any]) -> tuple[list[str], list[Mapping[str, Any] | None]]:
    """The instructions of a prompt's record and their arguments.

    They are in the columns `instruction_id_list` and `kwargs` (IFBench, IFEval), or in `ground_truth`: a list of one
    dict with `instruction_id` and `kwargs`, or its text as a Python literal or JSON (IF-RLVR).

    Raises:
        UserError: `ground_truth` has another form.
        KeyError: the record has none of the columns.
    """
    if "instruction_id_list" in record:
        return list(record["instruction_id_list"]), list(record["kwargs"])
    given = record["ground_truth"]
    try:
        found = _literal(given) if isinstance(given, str) else given
        found = found[0] if isinstance(found, list) else found
        ids, arguments = list(found["instruction_id"]), list(found["kwargs"])
    except (ValueError, SyntaxError, KeyError, IndexError, TypeError, RecursionError, MemoryError):
        raise UserError(
            f"reward: ground_truth {str(given)[:80]!r} is not a list of a dict with instruction_id and kwargs"
        ) from None
    return ids, arguments


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def instructions(
    response: str,
    record: Mapping[str, Any],
    version: str = "fixed",
    mode: str = "strict",
    level: str = "share",
    group: str = "",
    answer: bool = True,
) -> float:
    """The score of a response on the instructions of its record (see `constraints`), for evaluations and rewards.

    Args:
        response: the response.
        record: the record of its prompt.
        version: "fixed" for rewards, "r26" for published scores, "r25" for the paper's.
        mode: "strict" or "loose".
        level: "share" of instructions followed, "prompt" (1 if all are), or "count" of those followed.
        group: prefixes of ids, separated by spaces ("keywords length_constraints"); other instructions are ignored, and
            a prompt without any of these scores 0.
        answer: whether to score the text after the last </think>, without <answer> tags, instead of the whole response.

    Raises:
        UserError: the instructions of the record or an option are invalid.
    """
    if mode not in ("strict", "loose") or level not in ("share", "prompt", "count"):
        raise UserError(
            f"reward: instructions: no mode {mode!r} (strict, loose) or level {level!r} (share, prompt, count)"
        )
    ids, arguments = constraints(record)
    if not ids or len(ids) != len(arguments):
        raise UserError(f"reward: {len(ids)} instructions with {len(arguments)} sets of arguments in a record")
    if group:
        groups = group.split()
        kept = [place for place, name in enumerate(ids) if str(name).partition(":")[0] in groups]
        ids, arguments = [ids[place] for place in kept], [arguments[place] for place in kept]
        if not ids:
            return 0.0
    text = answer_of(response) if answer else response
    if mode == "loose":
        verdicts = judge(ids, arguments, text, version).loose
    else:
        verdicts = tuple(find(name).holds(text, given, version) for name, given in zip(ids, arguments, strict=True))
    score = {"count": float(sum(verdicts)), "prompt": float(all(verdicts)), "share": share(verdicts)}[level]
    broken = [str(name) for name, followed in zip(ids, verdicts, strict=True) if not followed]
    return Explained(score, f"not followed: {', '.join(broken)}") if broken else score


def ifeval(response: str, record: Mapping[str, Any]) -> float:
    """The share of instructions followed, 0 to 1, with the "fixed" verifiers; for rewards."""
    return instructions(response, record)


def ifbench(response: str, record: Mapping[str, Any]) -> float:
    """The share of instructions followed with the verifiers of IFBench's published scores ("r26"); for evaluation."""
    return instructions(response, record, "r26")
