"""Tables of a suite of benchmarks, for recipes whose models the papers ask them (docs/benchmarks_evaluation.md)."""

from __future__ import annotations

from typing import Any

from easylm_jax.config import Ask, Compute, Entry, Evaluate, Published
from easylm_jax.evaluate import suites
from recipes.tulu3.published import rows

# Solved examples that are published inside of other programs only: files in the columns that
# docs/benchmarks_evaluation.md names.
SHOTS = {"gsm8k:olmes": "data/shots/gsm8k.jsonl", "agieval:olmes": "data/shots/agieval.jsonl"}


def suite_table(
    title: str, suite: str, entries: tuple[Entry, ...], published: tuple[Published, ...] = (), name: str = "table",
    settings: dict[str, dict[str, Any]] | None = None,
) -> Evaluate:  # fmt: skip
    """The table of a suite for these models. `settings` are further fields of `Ask`, by benchmark."""
    asks = tuple(
        Ask(one, shots_from=SHOTS.get(one), **(settings or {}).get(one, {})) for one in suites.load(suite).benchmarks()
    )
    return Evaluate(
        name, title=title, tasks=(), benchmarks=asks, suite=suite, entries=entries, published=published,
        compute=Compute(dtype="bfloat16"),
    )  # fmt: skip


def of_suite(suite: str, table: dict[str, tuple[float, ...]], source: str) -> tuple[Published, ...]:
    """Published rows, by method: the average where the paper has one, then the columns of the suite."""
    columns = tuple(column.title for column in suites.load(suite).columns)
    averaged = len(next(iter(table.values()))) > len(columns)
    return rows(table, ("Average", *columns) if averaged else columns, source)
