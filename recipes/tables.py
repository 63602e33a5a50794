"""Tables of a suite of benchmarks, for recipes whose models the papers ask them (docs/benchmarks_evaluation.md)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from easylm_jax.config import Ask, Benchmarks, Compute, Entry, Evaluate, Published
from easylm_jax.evaluate import suites
from recipes.tulu3.published import rows

# Solved examples that are published inside of other programs only: files in the columns that
# docs/benchmarks_evaluation.md names.
SHOTS = {"gsm8k:olmes": "data/shots/gsm8k.jsonl", "agieval:olmes": "data/shots/agieval.jsonl"}


# Options ranked without examples, and letters of MMLU with five: what base models are asked while they are trained.
RANKED = (
    "piqa", "hellaswag", "openbookqa", "arc_challenge", "arc_easy", "csqa", "socialiqa", "winogrande", "boolq", "mmlu",
    "mmlu:mc5",
)  # fmt: skip


def while_training(every: int, *further: str) -> Benchmarks:
    """The benchmarks of `RANKED` and further ones every so many steps."""
    return Benchmarks(tuple(Ask(name) for name in (*RANKED, *further)), every=every)


def suite_table(
    title: str, suite: str, entries: tuple[Entry, ...], published: tuple[Published, ...] = (), name: str = "table",
    files: Mapping[str, str] = MappingProxyType({}),
) -> Evaluate:  # fmt: skip
    """The table of a suite for these models. `files` hold the documents of some benchmarks."""
    asks = tuple(Ask(one, file=files.get(one), shots_from=SHOTS.get(one)) for one in suites.load(suite).benchmarks())
    return Evaluate(
        name, title=title, tasks=(), benchmarks=asks, suite=suite, entries=entries, published=published,
        compute=Compute(dtype="bfloat16"),
    )  # fmt: skip


def of_suite(suite: str, table: dict[str, tuple[float, ...]], source: str) -> tuple[Published, ...]:
    """Published rows, by method: the average where the paper has one, then the columns of the suite."""
    columns = tuple(column.title for column in suites.load(suite).columns)
    averaged = len(next(iter(table.values()))) > len(columns)
    return rows(table, ("Average", *columns) if averaged else columns, source)
