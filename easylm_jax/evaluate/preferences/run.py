"""Runs a judge over the files of a preference bench, and writes what spec m_rewardbench §8 lists.

    items.<language>.jsonl     every item: scores, verdicts, result, whether it flipped or was cut
    scores.json                subsets, sections, languages, agreement, rates, settings
    tables.md, heat_map.html   the tables and the figure

A language whose items are there for the same settings and data is not judged again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.evaluate.preferences import tables
from easylm_jax.evaluate.preferences.analyses import analyse, between, scores_of
from easylm_jax.evaluate.preferences.items import Item, oddities, read_items
from easylm_jax.evaluate.preferences.judges import Judge, record_of
from easylm_jax.evaluate.preferences.languages import ENGLISH
from easylm_jax.runtime.files import plain, write_json, write_lines
from models import reading
from models.errors import UserError

BATCH = 512  # items that are judged before they are shown as done
Records = list[dict[str, Any]]


def judge_bench(
    judge: Judge, files: Mapping[str, str], out: Path, *, bench: str, model: str, settings: Mapping[str, Any],
    limit: int | None = None, beside: Sequence[str | Path] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Judges the files (by language; one under `ENGLISH` for a bench in English) and returns the results.

    Args:
        judge: what judges.
        files: a file, folder or `hf:` set for each language.
        out: the folder to write to.
        bench: one of `config.evaluate.PREFERENCE_BENCHES`.
        model: the judge's name in the results.
        settings: everything that the outcomes depend on, beside the data.
        limit: items of each language.
        beside: folders of other judges' results on the same items, with which the agreement is computed.
        progress: called with a language and the numbers of items that are done and there are.

    Returns:
        The results in the form of `easylm eval --json`.

    Raises:
        UserError: a folder of `beside` holds no results, or none on these items.
    """
    others = _others(beside)
    records: dict[str, Records] = {}
    odd: dict[str, dict[str, int]] = {}
    for code, path in files.items():
        items = read_items(path, code, limit)
        odd[code] = oddities(items)
        records[code] = _judged(judge, items, out / f"items.{code}.jsonl", settings, code, progress)
    several = bench == "m_rewardbench"
    found: dict[str, Any] = (
        analyse(records) if several else {"scores": {code: scores_of(records[code], bench) for code in records}}
    )
    found |= {"model": model, "kind": judge.kind, "bench": bench, "settings": dict(settings), "oddities": odd}
    found["files"] = dict(files)
    if others:
        found["beside"] = _beside(model, records, others)
    write_json(out / "scores.json", plain(found))
    (out / "tables.md").write_text(tables.markdown(found), encoding="utf-8")
    if several:
        (out / "heat_map.html").write_text(tables.heat_map({model: found}), encoding="utf-8")
    tasks = [_task(bench, code, rows, found) for code, rows in records.items()]
    averages: dict[str, Any] = {bench: {"score": found["average"], "deviation": found["deviation"]}} if several else {}
    return plain({"model": model, "tasks": tasks, "averages": averages, "analysis": found})


def _others(folders: Sequence[str | Path]) -> dict[str, dict[str, Records]]:
    """The judged items of other judges by name; one that asks the same model otherwise has its folder's name."""
    found: dict[str, dict[str, Records]] = {}
    for folder in folders:
        name = named(read_scores(folder))
        found[name if name not in found else str(folder)] = read_judged(folder)
    return found


def _beside(
    model: str, records: Mapping[str, Records], others: Mapping[str, Mapping[str, Records]]
) -> list[dict[str, Any]]:  # fmt: skip
    """The agreement of a judge with each other one."""
    found = []
    for other, judged in others.items():
        (pair,) = between({"": records, other: judged})
        if not pair["n"]:
            raise UserError(f"--beside: {other} has judged none of these items; name results on the same data")
        found.append({**pair, "a": model})
    return found


def _judged(
    judge: Judge, items: Sequence[Item], path: Path, settings: Mapping[str, Any], code: str,
    progress: Callable[[str, int, int], None] | None,
) -> Records:  # fmt: skip
    """The records of one language: those that are there, or else new ones."""
    key = hashlib.sha256(
        json.dumps([settings, judge.kind, [(item.id, item.subset, item.prompt, item.completions) for item in items]],
                   ensure_ascii=False, default=str).encode()
    ).hexdigest()  # fmt: skip
    stamp = path.with_suffix(".key")
    if path.is_file() and stamp.is_file() and stamp.read_text() == key:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows: Records = []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        rows += [record_of(item, outcome) for item, outcome in zip(part, judge(part), strict=True)]
        if progress is not None:
            progress(code, len(rows), len(items))
    write_lines(path, rows)
    stamp.write_text(key)
    # As they are read again, so that a resumed run gives the same bytes.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _task(bench: str, code: str, rows: Records, found: Mapping[str, Any]) -> dict[str, Any]:
    results = np.array([row["result"] for row in rows], np.float64)
    stderr = float(results.std(ddof=1) / len(results) ** 0.5) if len(results) > 1 else 0.0
    own = found["scores"].get(code) or found.get(code) or {}
    name = bench if code == ENGLISH and bench != "m_rewardbench" else f"{bench}:{code}"
    return {
        "task": name, "metric": "score", "score": own.get("score", math.nan), "stderr": stderr, "n": len(rows),
        "documents": rows,
    }  # fmt: skip


def read_scores(folder: str | Path) -> dict[str, Any]:
    """The `scores.json` that `judge_bench` wrote; null is NaN again where scores stand."""
    path = Path(folder) / "scores.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no results of a judge (scores.json); easylm eval --suite writes them")
    return reading.read_json(path, mend="judge the bench again")


def read_judged(folder: str | Path) -> dict[str, Records]:
    """The judged items of a folder by language."""
    files = sorted(Path(folder).glob("items.*.jsonl"))
    return {file.name.split(".")[1]: list(reading.read_lines(file, mend="judge the bench again")) for file in files}


def named(found: Mapping[str, Any]) -> str:
    """The judge of some results: the model, with its reference where there is one."""
    reference = (found.get("settings") or {}).get("reference")
    return str(found["model"]) + (f" against {reference}" if reference else "")
