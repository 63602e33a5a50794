"""The report of moderators on moderation benchmarks: scores, categories, what filters would have stopped.

moderation.json    all scores by method, set and task: F1, precision, recall, rates, parts, calibration, categories
items.jsonl        every row with each method's answers and probabilities
tables.md          the same as text
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from easylm_jax.evaluate import guarded
from easylm_jax.evaluate.moderation import GROUP_OF, HARMS, category_recall, field_scores
from easylm_jax.evaluate.moderation_sets import Row
from easylm_jax.rewards.moderation import FIELDS
from easylm_jax.runtime.files import plain, write_json, write_lines

Classify = Callable[[Sequence[Row]], list[dict[str, Any]]]
Answers = Mapping[str, Mapping[str, list[Row]]]  # by method and set, the rows with the method's answers
BATCH = 128  # rows between two updates of the progress


def answered(
    classify: Classify, sets: Mapping[str, Sequence[Row]], progress: Callable[[int], Any] | None = None
) -> dict[str, list[Row]]:  # fmt: skip
    """The rows of each set with a method's answers; `progress` is called with the number of rows that are done."""
    found: dict[str, list[Row]] = {}
    done = 0
    for name, rows in sets.items():
        records: list[dict[str, Any]] = []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            records += classify(part)
            done += len(part)
            if progress is not None:
                progress(done)
        found[name] = [{**row, **record} for row, record in zip(rows, records, strict=True)]
    return found


def scored(title: str, answers: Answers) -> dict[str, Any]:
    """The scores, recalls by category and filters of every method on every set."""
    filters = {
        method: {name: guarded.table(found) for name, rows in own.items() if (found := guarded.exchanges_of_rows(rows))}
        for method, own in answers.items()
    }
    return {
        "title": title,
        "scores": {method: {name: field_scores(rows) for name, rows in own.items()} for method, own in answers.items()},
        "categories": {method: {name: category_recall(rows) for name, rows in own.items()}
                       for method, own in answers.items()},
        "filters": filters,
    }  # fmt: skip


def write(folder: Path, result: Mapping[str, Any], answers: Answers) -> None:
    """Writes the files of the report."""
    write_json(folder / "moderation.json", plain(result))
    write_lines(folder / "items.jsonl", _items(answers))
    (folder / "tables.md").write_text(markdown(result), encoding="utf-8")


def _items(answers: Mapping[str, Mapping[str, list[Row]]]) -> Iterator[Row]:
    kept = (*FIELDS, "probabilities", "is_parsing_error", "truncated")
    first = next(iter(answers.values()))
    for name, rows in first.items():
        for number, row in enumerate(rows):
            plain = {key: value for key, value in row.items() if key not in kept}
            said = {
                method: {key: own[name][number][key] for key in kept if key in own[name][number]}
                for method, own in answers.items()
            }
            yield {"set": name, **plain, "answers": said}


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    heads = ("method", "set", "task", "F1", "95 %", "precision", "recall", "FPR", "n", "positives", "errors", "ECE")
    lines = [f"# {result['title']}", "", f"| {' | '.join(heads)} |", "|---" * 3 + "|---:" * 9 + "|"]
    for method, own in result["scores"].items():
        for name, fields in own.items():
            for field, each in fields.items():
                parts = [("", each)] + [
                    (f" ({part})", each[part]) for part in ("vanilla", "adversarial") if part in each
                ]
                for suffix, one in parts:
                    interval = f"{_percent(each['low'])} to {_percent(each['high'])}" if not suffix else ""
                    ece = "–" if suffix or "calibration_error" not in each else f"{each['calibration_error']:.3f}"
                    lines.append(
                        f"| {method} | {name}{suffix} | {field} | {_percent(one['f1'])} | {interval} "
                        f"| {_percent(one['precision'])} | {_percent(one['recall'])} | {_percent(one['fpr'])} "
                        f"| {one['n']} | {one['positives']} | {_percent(one['error_rate'])} | {ece} |"
                    )
    lines += _categories(result["categories"]) + _filters(result["filters"])
    if result.get("differences"):
        lines += ["", "| method | over | set | task | F1 difference | standard error |", "|---|---|---|---|---:|---:|"]
        lines += [
            f"| {each['method']} | {each['over']} | {each['set']} | {each['field']} | {_percent(each['difference'])} "
            f"| {_percent(each['stderr'])} |" for each in result["differences"]
        ]  # fmt: skip
    for name, each in result.get("modes_agree", {}).items():
        lines += ["", f"{name}: slots and generating give {_percent(each['agree'], 2)} % of {each['labels']} labels of "
                  f"{each['rows']} rows alike; {each['parse_errors']} rows could not be parsed."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _categories(categories: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Recall by category: a table for each method and set that has categories."""
    lines = []
    for method, own in categories.items():
        for name, found in own.items():
            if not found:
                continue
            lines += ["", f"{method}, {name}: recall by category", "",
                      "| group | category | harmful prompts | 95 % | n | harmful responses | 95 % | n |",
                      "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
            for category, each in found.items():
                cells = [cell for field in HARMS for cell in (
                    _percent(each[field]["recall"]),
                    f"{_percent(each[field]['low'])} to {_percent(each[field]['high'])}" if each[field]["n"] else "–",
                    str(each[field]["n"]),
                )]  # fmt: skip
                lines.append(f"| {GROUP_OF.get(category, '–')} | {category} | {' | '.join(cells)} |")
    return lines


def _filters(filters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What filters by each method make of the labelled responses of the sets."""
    lines = []
    for method, own in filters.items():
        if own:
            lines += [
                "",
                f"{method} before and behind the models whose responses are labelled",
                "",
                guarded.markdown(own),
            ]
    return lines


def _percent(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}"
