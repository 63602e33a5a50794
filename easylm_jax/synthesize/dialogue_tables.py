"""Statistics of dialogues, as numbers and as tables for a person (spec sdsd §8)."""

from __future__ import annotations

import collections
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from easylm_jax.data.curation.quality import compression_ratio
from easylm_jax.data.curation.statistics import described, distinct, entropy, gini, self_bleu
from easylm_jax.data.curation.texts import words

Row = Mapping[str, Any]
_SAMPLE = 1000  # dialogues of self-BLEU


def of_dialogues(rows: Sequence[Row]) -> dict[str, Any]:
    """All numbers of the tables, of planned dialogues that have been filtered."""
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
            "tokens of a user turn": _per_turn(kept, "tokens_user"),
            "tokens of an agent turn": _per_turn(kept, "tokens_agent"),
        },
        "violations": {
            "planned_judged": _matrix(kept, "planned", "is_violation"),
            "parse_errors": sum(row["parse_error"] for row in kept),
            "by_principle": _rates(kept, "pids", "judged"), "by_goal": _shares(kept, "gid"),
        },
        "coverage": {name: _coverage(kept, name) for name in ("domain", "gid", "persona")},
        "diversity": _diversity(kept),
    }  # fmt: skip


def _per_turn(rows: Sequence[Row], column: str) -> dict[str, float]:
    return described(np.array([row[column] / (len(row["messages"]) / 2) for row in rows]))


def _matrix(rows: Sequence[Row], a: str, b: str) -> list[list[int]]:
    """[[neither, b alone], [a alone, both]]."""
    counts = [[0, 0], [0, 0]]
    for row in rows:
        counts[bool(row[a])][bool(row[b])] += 1
    return counts


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


def _coverage(rows: Sequence[Row], column: str) -> dict[str, float]:
    counts = collections.Counter(row[column] for row in rows)
    top = sum(count for _, count in counts.most_common(20))
    return {"values": len(counts), "entropy_bits": entropy(counts.values()), "gini": gini(counts.values()),
            "top_20_share": top / len(rows) if rows else 0.0}  # fmt: skip


def _diversity(rows: Sequence[Row]) -> dict[str, float]:
    split = [words(" ".join(message["content"] for message in row["messages"])) for row in rows]
    text = "\n".join(" ".join(each) for each in split)
    return {**{f"distinct_{n}": distinct(split, n) for n in (1, 2, 3)}, "self_bleu": self_bleu(split[:_SAMPLE]),
            "compression_ratio": compression_ratio(text.encode()) if text else 0.0}  # fmt: skip


def text(statistics: Mapping[str, Any]) -> str:
    """The tables as Markdown: a section for each part, a row for each number."""
    lines = ["# Dialogues", ""]
    for name, part in statistics.items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", "| | |", "|---|---|"]
        for key, value in part.items():
            values = value.items() if isinstance(value, Mapping) else [("", value)]
            lines += [f"| {key} {inner} | {_shown(number)} |" for inner, number in values]
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def reading_sheet(rows: Sequence[Row], seed: int, count: int = 50) -> str:
    """Random dialogues for a person to read."""
    chosen = random.Random(seed).sample(list(rows), min(count, len(rows)))
    lines = ["# Dialogues to read", ""]
    for row in chosen:
        lines += [f"## {row['id']}: {row['domain']}, {row['subarea']} ({row['mode']})", "", f"Plan: {row['plan']}", ""]
        lines += [f"**{message['role']}**: {message['content']}\n" for message in row["messages"]]
        lines += [f"Judged: {row['judged']}", ""]
    return "\n".join(lines)
