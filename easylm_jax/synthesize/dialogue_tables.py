"""Statistics of dialogues and revisions, as numbers and as tables for a person (spec sdsd §8, T1 to T7)."""

from __future__ import annotations

import collections
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from easylm_jax.data.curation.quality import compression_ratio
from easylm_jax.data.curation.statistics import described, distinct, entropy, gini, self_bleu
from easylm_jax.data.curation.texts import words
from easylm_jax.evaluate.preferences.agreement import cohens_kappa, kappa_interval
from easylm_jax.evaluate.statistics import share_interval
from easylm_jax.rewards.moderation import REFUSAL, RESPONSE_HARM
from easylm_jax.synthesize import dialogue_filters
from easylm_jax.synthesize import dialogue_rules as rules

Row = Mapping[str, Any]
_SAMPLE = 1000  # dialogues of self-BLEU
_TOP = 20  # values whose share is shown
LABELS = ("planned", "marker", "judged", "moderator")


def of_dialogues(rows: Sequence[Row], others: Mapping[str, Sequence[Row]] | None = None) -> dict[str, Any]:
    """All numbers of the tables, of planned dialogues that have been filtered, and of other conversations by name."""
    kept = [row for row in rows if row["dropped"] is None]
    held = [row for row in rows if row["messages"]]
    return {
        "size": {
            "specs": len(rows), "plans": sum(bool(row["plan"]) for row in rows), "dialogues": len(held),
            "truncated": sum(row["is_truncated"] for row in held), "kept": len(kept),
            "violations": sum(row["is_violation"] for row in kept),
            "tokens_in": sum(row["tokens_in"] for row in rows),
            "tokens_out": sum(row["tokens_user"] + row["tokens_agent"] for row in rows),
        },
        "dropped": dict(collections.Counter(row["dropped"] for row in rows if row["dropped"]).most_common()),
        "resampled": dict(sum((collections.Counter(row["resampled"]) for row in rows), collections.Counter())),
        "ended": dict(collections.Counter(row["ended"] for row in held).most_common()),
        "length": {
            "messages": described(np.array([len(row["messages"]) for row in kept])),
            "messages with the plan": described(np.array([len(row["messages"]) + 1 for row in kept])),
            "dialogues by messages": _histogram(len(row["messages"]) for row in kept),
            "tokens of a user turn": _per_turn(kept, "tokens_user"),
            "tokens of an agent turn": _per_turn(kept, "tokens_agent"),
        },
        "violations": {
            "planned, judged": _matrix(kept, "planned", "is_violation"),
            "labels": _together(kept), "parse errors": sum(row["parse_error"] for row in kept),
            "by principle": _rates(kept, "pids", "judged"), "by goal": _shares(kept, "gid"),
            "by model": _shares(kept, "model"),
        },
        "agreement": _agreement(kept),
        "coverage": {**{name: _coverage([row[name] for row in kept]) for name in ("domain", "gid", "persona")},
                     "principle": _coverage([pid for row in kept for pid in row["pids"]]),
                     "head noun": _coverage([row["subarea"].split()[-1].casefold() for row in kept])},
        "diversity": {**_diversity(kept), "first turn like an earlier one": dialogue_filters.first_turn_rate(kept)},
        "beside": {name: _conversations(found) for name, found in (
            {"these dialogues": kept, **(others or {})}).items()},
    }  # fmt: skip


def of_revisions(rows: Sequence[Row], margins: Sequence[float] | None = None) -> dict[str, Any]:
    """All numbers of the tables of revisions; `margins` are the reward model's, chosen over rejected, of the pairs."""
    tried, controls = [row for row in rows if not row["control"]], [row for row in rows if row["control"]]
    used = [row for row in tried if row["accepted"]]
    olds, news = [row["messages"][-1]["content"] for row in used], [row["revision"] for row in used]
    both = list(zip(olds, news, strict=True))
    statistics: dict[str, Any] = {
        "size": {"revisions": len(tried), "pairs": len(used), "controls": len(controls),
                 "controls_changed": sum(row["accepted"] for row in controls)},
        "reasons": dict(collections.Counter(row["reject_reason"] or "accepted" for row in tried).most_common()),
        "rounds": _histogram(row["rounds"] for row in tried),
        "change": {
            "characters, revision over original": described(np.array([len(new) / len(old) for old, new in both])),
            "share of words changed": described(np.array([rules.changed(old, new) for old, new in both])),
        },
        "bare refusals": {"before": _share([rules.is_bare_refusal(text) for text in olds]),
                          "after": _share([rules.is_bare_refusal(text) for text in news])},
    }  # fmt: skip
    if used and used[0]["moderator"] is not None:
        columns = (("before", "moderator"), ("after", "revision_moderator"))
        for title, field, value in (("refused", REFUSAL, "refusal"), ("harmful", RESPONSE_HARM, "harmful")):
            statistics[f"moderator: {title}"] = {
                when: _share([row[column][field] == value for row in used]) for when, column in columns
            }
    if margins is not None:
        statistics["reward margin"] = described(np.array(margins))
    return statistics


def _share(values: Sequence[bool]) -> dict[str, float]:
    """The share of true values with its 95 % interval."""
    if not values:
        return {"n": 0}
    low, high = share_interval(sum(values), len(values))
    return {"share": sum(values) / len(values), "low": low, "high": high, "n": len(values)}


def _histogram(values: Any) -> dict[str, int]:
    counts = collections.Counter(values)
    return {str(value): counts[value] for value in sorted(counts)}


def _per_turn(rows: Sequence[Row], column: str) -> dict[str, float]:
    return described(np.array([row[column] / (len(row["messages"]) / 2) for row in rows]))


def _matrix(rows: Sequence[Row], a: str, b: str) -> list[list[int]]:
    """[[neither, b alone], [a alone, both]]."""
    counts = [[0, 0], [0, 0]]
    for row in rows:
        counts[bool(row[a])][bool(row[b])] += 1
    return counts


def label_of(row: Row, name: str) -> int | None:
    """What a label says of a dialogue: 1 violation, 0 none, None unknown."""
    if name == "judged":
        return None if row["judged"] is None else int(bool(row["judged"]))
    if name == "moderator":
        said = row.get("moderator")
        return None if said is None or said[RESPONSE_HARM] is None else int(said[RESPONSE_HARM] == "harmful")
    return None if row[name] is None else int(row[name])


def _together(rows: Sequence[Row]) -> dict[str, int]:
    """How often each combination of the labels occurs."""
    counts = collections.Counter(
        ", ".join(f"{name} {'yes' if label else 'no'}" for name in LABELS if (label := label_of(row, name)) is not None)
        for row in rows
    )
    return dict(sorted(counts.items()))


def _agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Cohen's κ of each pair of labels, with its 95 % interval, over the dialogues that have both."""
    found: dict[str, Any] = {}
    for a, b in itertools.combinations(LABELS, 2):
        pairs = [(x, y) for row in rows if (x := label_of(row, a)) is not None and (y := label_of(row, b)) is not None]
        if pairs:
            first, second = (list(column) for column in zip(*pairs, strict=True))
            kappa, (low, high) = cohens_kappa(first, second), kappa_interval(first, second)
            # None where κ is not defined: both labels are the same throughout.
            values = {"kappa": kappa, "low": low, "high": high}
            found[f"{a}, {b}"] = {name: None if math.isnan(v) else v for name, v in values.items()} | {"n": len(pairs)}
    return found


def _rates(rows: Sequence[Row], asked: str, found: str) -> dict[str, list[int]]:
    """[violated, asked about] of each principle."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        for pid in row[asked]:
            each = counts.setdefault(pid, [0, 0])
            each[0] += pid in (row[found] or ())
            each[1] += 1
    return dict(sorted(counts.items()))


def _shares(rows: Sequence[Row], column: str) -> dict[str, list[int]]:
    """[violations, dialogues] of each value."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        each = counts.setdefault(row[column], [0, 0])
        each[0] += row["is_violation"]
        each[1] += 1
    return dict(sorted(counts.items()))


def _coverage(values: Sequence[str]) -> dict[str, float]:
    counts = collections.Counter(values)
    top = sum(count for _, count in counts.most_common(_TOP))
    return {"values": len(counts), "entropy_bits": entropy(counts.values()), "gini": gini(counts.values()),
            "top_20_share": top / len(values) if values else 0.0}  # fmt: skip


def _diversity(rows: Sequence[Row]) -> dict[str, float]:
    split = [words(" ".join(message["content"] for message in row["messages"])) for row in rows]
    text = "\n".join(" ".join(each) for each in split)
    return {**{f"distinct_{n}": distinct(split, n) for n in (1, 2, 3)}, "self_bleu": self_bleu(split[:_SAMPLE]),
            "compression_ratio": compression_ratio(text.encode()) if text else 0.0}  # fmt: skip


def _conversations(rows: Sequence[Row]) -> dict[str, float]:
    """Size, length and diversity of conversations, system turns left out."""
    plain = [
        {"messages": [turn for turn in row["messages"] if turn["role"] != "system"]} for row in rows if row["messages"]
    ]
    turns = [len(row["messages"]) for row in plain]
    said = [len(turn["content"].split()) for row in plain for turn in row["messages"]]
    diverse = _diversity(plain[:_SAMPLE])
    return {"conversations": len(plain), "messages": float(np.mean(turns)) if turns else 0.0,
            "words of a message": float(np.mean(said)) if said else 0.0,
            **{name: diverse[name] for name in ("distinct_2", "self_bleu", "compression_ratio")}}  # fmt: skip


def text(title: str, statistics: Mapping[str, Any]) -> str:
    """The tables as Markdown: a section for each part, a row for each entry, a column for each of its numbers."""
    lines = [f"# {title}", ""]
    for name, part in statistics.items():
        named = {key: value if isinstance(value, Mapping) else {"": value} for key, value in part.items()}
        columns = list(dict.fromkeys(column for value in named.values() for column in value))
        same = len(named) > 1 and all(len(value) > 1 or not columns[0] for value in named.values())
        lines += [f"## {name[0].upper()}{name[1:]}", ""]
        if same:
            lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            lines += [f"| {key} | {' | '.join(_shown(value.get(column)) for column in columns)} |"
                      for key, value in named.items()]  # fmt: skip
        else:
            lines += ["| | |", "|---|---|"]
            lines += [f"| {' '.join(filter(None, (key, inner)))} | {_shown(number)} |"
                      for key, value in named.items() for inner, number in value.items()]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " of ".join(map(str, value)) if value and not isinstance(value[0], list) else str(value)
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def reading_sheet(rows: Sequence[Row], seed: int, count: int = 50) -> str:
    """Random dialogues for a person to read."""
    chosen = random.Random(seed).sample(list(rows), min(count, len(rows)))
    lines = ["# Dialogues to read", ""]
    for row in chosen:
        lines += [f"## {row['id']}: {row['domain']}, {row['subarea']} ({row['mode']})", "", f"Plan: {row['plan']}", ""]
        lines += [f"**{message['role']}**: {message['content']}\n" for message in row["messages"]]
        lines += [f"Judged: {row['judged']}", ""]
    return "\n".join(lines)
