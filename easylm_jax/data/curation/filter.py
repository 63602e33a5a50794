"""`easylm data filter`: leaves out rows by rules. The first rule that applies is the reason; all are counted."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.data.curation.job import DecideBlocks, Job
from easylm_jax.data.curation.quality import parse_rules, row_of
from easylm_jax.data.curation.rows import Block, files_of, record_of


def filter_rows(
    paths: Sequence[str],
    out: Path,
    rules: str,
    *,
    column: str | None = None,
    workers: int = 1,
    decide: DecideBlocks | None = None,
) -> dict[str, Any]:
    """Writes the rows that no rule leaves out below `out`; returns the counts.

    Args:
        paths: files, globs or folders.
        out: folder of the kept rows.
        rules: as `quality.parse_rules` reads them.
        column: the column that rules read; None: all text.
        workers: worker processes.
        decide: makes the decisions otherwise (`scale.on`).
    """
    parse_rules(rules)
    job = Job("filter", files_of(paths), out, {"rules": rules, "column": column}, workers=workers)
    with job.opened() as finished:
        if finished is None:
            arguments = {"rules": rules, "column": column}
            count = (decide or Job.decide)(job, "easylm_jax.data.curation.filter:decider", arguments)
            finished = _finish(job, count, rules)
    return finished


def decider(rules: str, column: str | None) -> Callable[[Block], dict[str, np.ndarray]]:
    """`reason` of each row of a block ("" for a row that stays), and `keep`."""
    chosen = parse_rules(rules)

    def decide(block: Block) -> dict[str, np.ndarray]:
        reasons = []
        for line, place in zip(block.lines, block.places, strict=True):
            row = row_of(record_of(line, place), place, column)
            reasons.append(next((reason for rule in chosen if (reason := rule(row))), ""))
        return {"keep": np.array([not reason for reason in reasons], bool), "reason": np.array(reasons, np.str_)}

    return decide


def _finish(job: Job, count: int, rules: str) -> dict[str, Any]:
    reasons: collections.Counter[str] = collections.Counter()
    for part in job.parts(count, "reason"):
        reasons.update(part["reason"].tolist())
    kept = job.write_kept(job.parts(count, "keep", "reason"), lambda part, i: {"reason": str(part["reason"][i])})
    return job.finish(kept, {
        "rules": rules, "rows": sum(reasons.values()), "kept": reasons.pop("", 0),
        "left_out": dict(reasons.most_common()),
        "files": [{"file": str(file), "kept_as": name, "kept": kept[name]}
                  for file, name in zip(job.files, job.names, strict=True)],
    })  # fmt: skip
