"""Which dialogues are kept: filters in order, each dialogue with the first reason that applies (spec sdsd §5)."""

from __future__ import annotations

import collections
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from easylm_jax.config.dialogue import Dialogues
from easylm_jax.config.dialogue_prompts import BROKEN, END
from easylm_jax.data.curation import quality
from easylm_jax.data.curation.contamination import build_index, find
from easylm_jax.data.curation.minhash import Signer, bands_for, jaccard
from easylm_jax.data.curation.texts import asked_in_test, words
from easylm_jax.synthesize import dialogue_rules as rules

Row = dict[str, Any]
_FIRST_TURNS = 3  # dialogues whose first turns are nearly the same
_FIRST_SIMILARITY = 0.7
_NGRAM = 13  # of decontamination
_PERSONAL = (
    (re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]+\b"), "[email]"),
    (re.compile(r"(?<!\w)(?:\+\d{1,3}[ -]?)?(?:\(\d{2,4}\)[ -]?)?\d{3}[ -]\d{3,4}[ -]?\d{0,4}(?!\w)"), "[phone]"),
    (re.compile(r"\b(?:\d[ -]?){13,16}\b"), "[number]"),
)


def apply(stage: Dialogues, rows: Sequence[Row], tests: Sequence[Mapping[str, Any]]) -> None:
    """Sets `dropped` of every row: None for a kept one, else the reason. Personal data is masked first."""
    further = quality.parse_rules(stage.rules) if stage.rules else []
    for row in rows:
        for message in row["messages"]:
            for pattern, mask in _PERSONAL:
                message["content"] = pattern.sub(mask, message["content"])
        row["dropped"] = alone(row, further)
    _drop(exact_duplicates(_kept(rows)), "exact duplicate")
    _drop(near_duplicates(_kept(rows), stage.near), "near duplicate")
    _drop(first_turns(_kept(rows)), "first turn")
    _drop(over_cap(_kept(rows), "domain", stage.domain_share), "balance: domain")
    _drop(over_cap(_kept(rows), "gid", stage.goal_share), "balance: goal")
    _drop(uneven(_kept(rows), stage.principle_ratio), "balance: principle")
    if tests:
        _drop(contaminated(_kept(rows), tests), "contaminated")


def _kept(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["dropped"] is None]


def _drop(rows: Iterable[Row], reason: str) -> None:
    for row in rows:
        row["dropped"] = reason


def alone(row: Row, further: Sequence[Callable[[quality.Row], str | None]] = ()) -> str | None:
    """The reason for dropping a dialogue that can be seen in it alone; `further` are rules on its text."""
    messages = row["messages"]
    if not messages or str(row["ended"]).startswith(("plan: ", "turn: ", "no answer")):
        return row["ended"] or "structure"
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2) or len(roles) < 4:
        return "structure"
    if any(not message["content"].strip() for message in messages):
        return "structure"
    if row["is_truncated"]:
        return "truncated"
    text = "\n".join(message["content"] for message in messages)
    if END in text or BROKEN in text or "as planned" in text.casefold():
        return "leakage"
    for secret in (row["plan"], *row["principle"]):
        if any(rules.shares_run(message["content"], secret, 9) for message in messages):
            return "leakage"
    answers = "\n".join(message["content"] for message in messages[1::2])
    for rule in (quality.special, quality.repeats, quality.compression, quality.identity):
        if (reason := rule(quality.Row(text, answers))) is not None:
            return "identity" if rule is quality.identity else f"degenerate: {reason}"
    return next((reason for rule in further if (reason := rule(quality.Row(text, answers))) is not None), None)


def exact_duplicates(rows: Sequence[Row]) -> list[Row]:
    """Rows with the first user turn and the last agent turn of an earlier one."""
    seen: set[bytes] = set()
    again = []
    for row in rows:
        ends = "\n".join(" ".join(words(row["messages"][at]["content"])) for at in (0, -1))
        digest = hashlib.blake2b(ends.encode(), digest_size=16).digest()
        if digest in seen:
            again.append(row)
        seen.add(digest)
    return again


def near_duplicates(rows: Sequence[Row], threshold: float) -> list[Row]:
    """All but the longest of each group of rows that are similar to it, in word 5-grams of the whole dialogue."""
    order = sorted(range(len(rows)), key=lambda i: (-len(_text(rows[i])), i))
    taken = _similar([_text(rows[i]) for i in order], threshold, most=1)
    return [rows[i] for i, again in zip(order, taken, strict=True) if again]


def first_turns(rows: Sequence[Row]) -> list[Row]:
    """Rows whose first turn is similar to those of `_FIRST_TURNS` kept ones."""
    taken = _similar([row["messages"][0]["content"] for row in rows], _FIRST_SIMILARITY, most=_FIRST_TURNS)
    return [row for row, again in zip(rows, taken, strict=True) if again]


def _similar(texts: Sequence[str], threshold: float, most: int) -> list[bool]:
    """Whether a text is similar to `most` earlier ones that are not marked so themselves."""
    signer = Signer(5, *bands_for(threshold))
    wanted = Fraction(str(threshold))
    buckets: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    shingles = [signer.shingles(text.casefold().split()) for text in texts]
    marks = []
    for i, own in enumerate(shingles):
        keys = list(enumerate(signer.band_keys(own).tolist())) if len(own) else []
        close = 0
        for other in sorted({other for key in keys for other in buckets[key]}):
            both, union = jaccard(own, shingles[other])
            close += both >= wanted * union
        marks.append(close >= most)
        if not marks[-1]:
            for key in keys:
                buckets[key].append(i)
    return marks


def over_cap(rows: Sequence[Row], column: str, share: float) -> list[Row]:
    """Rows beyond the share that a value of a column may have, the later ones first."""
    cap = max(1, math.floor(share * len(rows)))
    counts: collections.Counter[str] = collections.Counter()
    over = []
    for row in rows:
        counts[row[column]] += 1
        if counts[row[column]] > cap:
            over.append(row)
    return over


def uneven(rows: Sequence[Row], ratio: float) -> list[Row]:
    """Rows beyond `ratio` times the count of the rarest principle, the later ones first."""
    counts = collections.Counter(pid for row in rows for pid in row["pids"])
    cap = math.floor(ratio * min(counts.values(), default=0))
    seen: collections.Counter[str] = collections.Counter()
    over = []
    for row in rows:
        if any(seen[pid] >= cap for pid in row["pids"]):
            over.append(row)
        else:
            seen.update(row["pids"])
    return over


def contaminated(rows: Sequence[Row], tests: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows that share `_NGRAM` words in a row with a test row."""
    index = build_index([asked_in_test(test, f"test row {i}") for i, test in enumerate(tests)], _NGRAM, 1.0)
    hits = find(index, [[message["content"] for message in row["messages"]] for row in rows])
    return [rows[i] for i in sorted(set(hits.row.tolist()))]


def _text(row: Row) -> str:
    return "\n".join(message["content"] for message in row["messages"])


def first_turn_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of dialogues whose first turn is similar to that of an earlier one."""
    taken = _similar([row["messages"][0]["content"] for row in rows], _FIRST_SIMILARITY, most=1)
    return sum(taken) / len(taken) if taken else 0.0
