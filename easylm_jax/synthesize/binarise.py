"""The stage `Binarise`: ratings → preference pairs and the best responses (spec tulu3 §7.4, step 5, and §7.5)."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterable, Sequence
from typing import Any

from easylm_jax.config.preferences import Binarise
from easylm_jax.config.workspace import Workspace
from easylm_jax.runtime import files, processes
from easylm_jax.synthesize.opening import rows_of, write_text
from models.errors import UserError

Row = dict[str, Any]


def binarise(stage: Binarise, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    judged = [rows_of(workspace, source, f"stage {stage.name}: ratings") for source in stage.ratings]
    by_id = [{row["id"]: row for row in rows} for rows in judged]
    counts: collections.Counter[str] = collections.Counter()
    pairs, best = [], []
    for row in judged[0]:
        if stage.parts and row.get("part") not in stage.parts:
            continue
        counts["prompts"] += 1
        others = [rows.get(row["id"]) for rows in by_id]
        texts = [one["text"] for one in row["responses"]]
        if any(other is None or [one["text"] for one in other["responses"]] != texts for other in others):
            counts["not rated by every judge"] += 1
            continue
        scores = [means_of(other) for other in others if other is not None]
        rng = random.Random(f"{stage.seed} {row['id']}")
        best_one, pair, reason = decided(scores, texts, stage.rejected, rng)
        counts[reason or "pair"] += 1
        if best_one is not None:
            best.append(_best(row, best_one, scores))
        if pair is not None:
            pairs.append(_pair(row, *pair, scores))
    chosen = _shared(stage, [pair for pair in pairs if stage.policy in ("any", _policy(pair))])
    on = sum(_policy(pair) == "on" for pair in chosen)
    metrics = {**dict(sorted(counts.items())), "pairs": len(chosen), "on_policy": on, "best": len(best)}
    if processes.is_first_process():
        folder = workspace.folder(stage.name)
        files.write_lines(folder / "pairs.jsonl", chosen)
        files.write_lines(folder / "best.jsonl", best)
        files.write_json(folder / "stats.json", {**metrics, "wins": _wins(chosen)})
        write_text(folder / "tables.md", _table(metrics, chosen))
    processes.barrier(f"{stage.name} written")
    return {"files": ["pairs.jsonl", "best.jsonl", "stats.json", "tables.md"], "metrics": metrics}


def means_of(row: Row) -> list[float | None]:
    """The mean rating of each response over the aspects that were rated; None where none was."""
    means: list[float | None] = []
    for one in row["responses"]:
        values = [value for value in one["ratings"].values() if value is not None]
        means.append(sum(values) / len(values) if values else None)
    return means


def decided(
    scores: Sequence[Sequence[float | None]], texts: Sequence[str], rejected: str, rng: random.Random
) -> tuple[int | None, tuple[int, int] | None, str | None]:
    """The best response, (chosen, rejected), and why there is no pair; responses without a rating take no part.

    Each judge votes for its best; the most votes win, and of equal ones one at random. The rejected response is drawn
    from those whose mean over the judges is below that of the chosen one, or with "any" from all others.
    """
    rated = [i for i in range(len(texts)) if all(own[i] is not None for own in scores)]
    if len(rated) < 2:
        return None, None, "fewer than two rated"
    if len({texts[i].strip() for i in rated}) == 1:
        return None, None, "all the same"
    mean = {i: sum(own[i] or 0.0 for own in scores) / len(scores) for i in rated}
    votes: collections.Counter[int] = collections.Counter()
    for own in scores:
        top = max(own[i] or 0.0 for i in rated)
        votes[rng.choice([i for i in rated if own[i] == top])] += 1
    most = max(votes.values())
    best = rng.choice([i for i in rated if votes[i] == most])
    others = [
        i for i in rated if texts[i].strip() != texts[best].strip() and (rejected == "any" or mean[i] < mean[best])
    ]
    return best, (best, rng.choice(others)) if others else None, None if others else "all tied"


def _pair(row: Row, chosen: int, rejected: int, scores: Sequence[Sequence[float | None]]) -> Row:
    sides = {"chosen": row["responses"][chosen], "rejected": row["responses"][rejected]}
    made: Row = {"id": row["id"], "part": row.get("part")}
    for side, one in sides.items():
        made[side] = [*row["messages"], {"role": "assistant", "content": one["text"]}]
        made[f"{side}_model"] = one["model"]
        made[f"{side}_on_policy"] = one["on_policy"]
    for side, at in (("chosen", chosen), ("rejected", rejected)):
        made[f"{side}_rating"] = sum(own[at] or 0.0 for own in scores) / len(scores)
    return made


def _best(row: Row, best: int, scores: Sequence[Sequence[float | None]]) -> Row:
    one = row["responses"][best]
    return {"id": row["id"], "part": row.get("part"), "model": one["model"],
            "messages": [*row["messages"], {"role": "assistant", "content": one["text"]}],
            "scores": [list(own) for own in scores]}  # fmt: skip


def _policy(pair: Row) -> str:
    return "on" if pair["chosen_on_policy"] or pair["rejected_on_policy"] else "off"


def _shared(stage: Binarise, pairs: list[Row]) -> list[Row]:
    """The pairs with the share of on-policy ones that is asked for, as many as there may be, in their order."""
    order = list(range(len(pairs)))
    random.Random(f"{stage.seed} shares").shuffle(order)
    if stage.on_share is not None:
        sides = {name: [i for i in order if _policy(pairs[i]) == name] for name in ("on", "off")}
        shares = {"on": stage.on_share, "off": 1 - stage.on_share}
        most = min(len(sides[name]) / share for name, share in shares.items() if share)
        most = min(most, stage.count or most)
        if most < 1:
            raise UserError(f"stage {stage.name}: no pair is left with on_share {stage.on_share:g}; "
                            f"there are {len(sides['on'])} on-policy and {len(sides['off'])} other pairs")  # fmt: skip
        keep = set().union(*(sides[name][: round(most * share)] for name, share in shares.items()))
    else:
        keep = set(order[: stage.count])
    return [pair for i, pair in enumerate(pairs) if i in keep]


def _wins(pairs: Iterable[Row]) -> dict[str, list[int]]:
    """[chosen, rejected] of each model."""
    counts: dict[str, list[int]] = {}
    for pair in pairs:
        counts.setdefault(pair["chosen_model"], [0, 0])[0] += 1
        counts.setdefault(pair["rejected_model"], [0, 0])[1] += 1
    return dict(sorted(counts.items()))


def _table(metrics: dict[str, Any], pairs: Sequence[Row]) -> str:
    lines = ["# Preference pairs", "", "| | |", "|---|---:|", *(f"| {key} | {n} |" for key, n in metrics.items()), ""]
    lines += ["| part | pairs |", "|---|---:|"]
    parts = collections.Counter(str(pair["part"]) for pair in pairs)
    lines += [f"| {part} | {n} |" for part, n in sorted(parts.items())]
    lines += ["", "| model | chosen | rejected | share chosen |", "|---|---:|---:|---:|"]
    for model, (won, lost) in _wins(pairs).items():
        lines.append(f"| {model} | {won} | {lost} | {won / (won + lost):.1%} |")
    return "\n".join(lines) + "\n"
