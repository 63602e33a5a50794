"""`easylm data decontaminate`: leaves out training rows that hold test rows, and reports what was found.

Decision for a set (spec tulu3 §7.2): where a training file holds more than 2 % of the rows of a test set, the whole
file goes if the set is not to be seen in development (`drop_sets`); otherwise its matching rows go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.data.curation.contamination import Index, build_index, find
from easylm_jax.data.curation.job import DecideBlocks, Job
from easylm_jax.data.curation.rows import Block, files_of, lines_of, record_of
from easylm_jax.data.curation.texts import asked_in_test, asked_in_training
from easylm_jax.runtime import files as writing

MOST = 0.02  # share of a test set's rows from which on a training file as a whole is suspect
_EXAMPLES = 5  # removed rows that the report shows for each pair of files
_SHOWN = 160  # characters of a text in the report


def decontaminate(
    train: Sequence[str], against: Sequence[str], out: Path, report: Path | None = None, *, ngram: int = 8,
    share: float = 0.5, column: str | None = None, train_column: str | None = None, drop_sets: bool = False,
    most: float = MOST, workers: int = 1, decide: DecideBlocks | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the kept rows of every training file below `out`; returns the summary, which the report shows.

    Args:
        train: training files, globs or folders.
        against: files of test rows; each file is a test set.
        out: folder of the kept rows.
        report: a Markdown file, or JSON if it ends in .json; beside it `<name>.tsv` (training files by test sets: mean
            covered share). The removed rows are in `removed.jsonl.gz` below `out`.
        ngram: words of an n-gram.
        share: a training row goes if, for some test row, at least this share of its words is covered.
        column: the column of a test row that a model is asked with.
        train_column: the column of a training row that is searched.
        drop_sets: leave out a whole training file that holds more than `most` of the rows of a test set.
        most: share of a test set.
        workers: worker processes.
        decide: makes the decisions otherwise (`scale.on`).
    """
    files, tests = files_of(train), files_of(against)
    settings = {"ngram": ngram, "share": share, "column": column, "train_column": train_column,
                "drop_sets": drop_sets, "most": most}  # fmt: skip
    job = Job("decontaminate", files, out, settings, others=tests, workers=workers)
    with job.opened() as finished:
        if finished is None:
            asked = _Tests(tests, column)
            index = build_index(asked.rows(), ngram, share)
            index.save(job.work)
            arguments = {"folder": str(job.work.absolute()), "column": train_column}
            count = (decide or Job.decide)(job, "easylm_jax.data.curation.decontaminate:decider", arguments)
            finished = _finish(job, index, asked, count, settings)
        if report is not None:
            _write_report(report, finished)
    return finished


class _Tests:
    """The test sets: their names and sizes, and the beginning of each row for the report."""

    def __init__(self, files: Sequence[Path], column: str | None):
        self.names = [file.name for file in files]
        self.sizes = [0] * len(files)
        self.shown: list[str] = []
        self._files, self._column = files, column

    def rows(self) -> Iterator[list[str]]:
        """What each row asks a model; counts them."""
        for number, file in enumerate(self._files):
            for line, place in lines_of(file):
                texts = asked_in_test(record_of(line, place), place, self._column)
                self.sizes[number] += 1
                self.shown.append(" ".join(" ".join(texts).split())[:_SHOWN])
                yield texts

    @property
    def ends(self) -> np.ndarray:
        """int64 [sets]: where the rows of each set end among all."""
        return np.cumsum(np.array(self.sizes, np.int64))

    def place(self, row: int) -> str:
        """The set of a test row, and its number in that from 0."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        return f"{self.names[number]} row {row - int(self.ends[number]) + self.sizes[number]}"


def decider(folder: str, column: str | None) -> Callable[[Block], dict[str, np.ndarray]]:
    """Finds the test rows in the training rows of a block.

    The arrays: `keep`; of each removed row its place in the block (`row`), its best test row (`test`) and the covered
    words of that (`covered`); of each test row that a row of the block shares an n-gram with (`touched`) the most
    covered words (`best`); `contained`: (row, test row) of every pair at or above the threshold.
    """
    index = Index.load(Path(folder))

    def decide(block: Block) -> dict[str, np.ndarray]:
        pairs = zip(block.lines, block.places, strict=True)
        hits = find(index, [asked_in_training(record_of(line, place), place, column) for line, place in pairs])
        over = hits.covered >= index.needed[hits.test]
        row, test, covered = hits.row[over], hits.test[over], hits.covered[over]
        keep = np.ones(len(block.lines), bool)
        keep[row] = False
        # The best test row of each removed row: the largest covered share, the first of equals.
        order = np.lexsort((test, -covered / np.maximum(index.lengths[test], 1), row))
        first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
        touched = np.unique(hits.test)
        best = np.zeros(len(index.lengths), np.int64)
        np.maximum.at(best, hits.test, hits.covered)
        return {
            "keep": keep, "row": row[first], "test": test[first], "covered": covered[first], "touched": touched,
            "best": best[touched], "contained": np.stack([row, test], axis=1),
        }  # fmt: skip

    return decide


def _finish(job: Job, index: Index, tests: _Tests, count: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Counts for each pair of a training file and a test set, and writes the kept and the removed rows."""
    table, read = _table(job, index, tests, count, settings["most"])
    whole = {row["train"] for row in table if row["suspect"]} if settings["drop_sets"] else set()
    dropped = [str(file) in whole for file in job.files]

    def parts() -> Iterator[dict[str, np.ndarray]]:
        for part in job.parts(count, "place", "keep", "row", "test", "covered"):
            if dropped[part["place"][0]]:
                part["keep"] = np.zeros_like(part["keep"])
            yield part

    examples: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def removed(part: dict[str, np.ndarray], i: int) -> dict[str, Any]:
        at = int(np.searchsorted(part["row"], i))
        if at == len(part["row"]) or part["row"][at] != i:
            return {"reason": "its whole file goes"}
        test, covered = int(part["test"][at]), int(part["covered"][at])
        place = tests.place(test)
        said = {"test": place, "share": round(covered / int(index.lengths[test]), 4), "covered_words": covered,
                "test_words": int(index.lengths[test]), "test_text": tests.shown[test]}  # fmt: skip
        shown = examples.setdefault((int(part["place"][0]), place.rpartition(" row ")[0]), [])
        if len(shown) < _EXAMPLES:
            shown.append({"train": job.files[part["place"][0]].name, "row": int(part["place"][1]) + i, **said})
        return said

    kept = job.write_kept(parts(), removed)
    return job.finish(kept, {
        "settings": settings, "train_rows": sum(read), "kept": sum(kept.values()),
        "removed": sum(read) - sum(kept.values()), "test_rows": len(index.lengths),
        "test_rows_too_short": int((index.needed == np.iinfo(np.int64).max).sum()),
        "files": [{"train": str(file), "kept_as": name, "rows": n, "kept": kept[name], "whole": gone}
                  for file, name, n, gone in zip(job.files, job.names, read, dropped, strict=True)],
        "table": table, "examples": [example for shown in examples.values() for example in shown],
    })  # fmt: skip


def _table(job: Job, index: Index, tests: _Tests, count: int, most: float) -> tuple[list[dict[str, Any]], list[int]]:
    """A row for each pair of a training file and a test set, and the rows of each training file."""
    ends = tests.ends
    best = np.zeros((len(job.files), len(index.lengths)), np.int64)
    contained = np.zeros(best.shape, bool)
    matching = np.zeros((len(job.files), len(tests.sizes)), np.int64)  # training rows that hold a row of the set
    read = [0] * len(job.files)
    for part in job.parts(count):
        file = int(part["place"][0])
        best[file, part["touched"]] = np.maximum(best[file, part["touched"]], part["best"])
        row, test = part["contained"].T
        contained[file, test] = True
        pairs = np.unique(np.stack([row, np.searchsorted(ends, test, side="right")], axis=1), axis=0)
        np.add.at(matching[file], pairs[:, 1], 1)
        read[file] += len(part["keep"])
    table = []
    for file, path in enumerate(job.files):
        for test, size in enumerate(tests.sizes):
            own = slice(int(ends[test]) - size, int(ends[test]))
            found = int(contained[file, own].sum())
            table.append({
                "train": str(path), "test": tests.names[test], "test_rows": size, "contaminated": found,
                "contaminated_share": found / size if size else 0.0,
                "mean_share": float((best[file, own] / np.maximum(index.lengths[own], 1)).mean()) if size else 0.0,
                "train_rows": int(matching[file, test]), "suspect": found > most * size,
            })  # fmt: skip
    return table, read


def _write_report(path: Path, summary: dict[str, Any]) -> None:
    """The report, and beside it the table of mean shares as `<name>.tsv`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tests = list(dict.fromkeys(row["test"] for row in summary["table"]))
    trains = list(dict.fromkeys(row["train"] for row in summary["table"]))
    shares = {(row["train"], row["test"]): row["mean_share"] for row in summary["table"]}
    lines = ["\t".join(["train", *tests])]
    lines += ["\t".join([train, *(f"{shares[train, test]:.6f}" for test in tests)]) for train in trains]
    with writing.atomic_write(path.with_suffix(".tsv")) as file:
        file.write(("\n".join(lines) + "\n").encode())
    if path.suffix == ".json":
        writing.write_json(path, summary)
        return
    with writing.atomic_write(path) as file:
        file.write(report_text(summary).encode())


def report_text(summary: dict[str, Any]) -> str:
    """The report as Markdown."""
    settings = summary["settings"]
    short = summary["test_rows_too_short"]
    lines = [
        "# Decontamination", "",
        f"{summary['removed']:,} of {summary['train_rows']:,} training rows were removed, {summary['kept']:,} kept. A "
        f"row goes if at least {settings['share']:.0%} of the words of one test row lie in {settings['ngram']}-grams "
        "that both have, in lower case and without punctuation.",
        f"{summary['test_rows']:,} test rows were looked for"
        + (f"; {short:,} of them have fewer than {settings['ngram']} words and cannot be found." if short else "."),
        "", "| training file | test set | test rows found | share | training rows with one | mean covered share | |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in summary["table"]:
        mark = f"**above {settings['most']:.0%}**" if row["suspect"] else ""
        lines.append(
            f"| {Path(row['train']).name} | {row['test']} | {row['contaminated']:,} of {row['test_rows']:,} | "
            f"{row['contaminated_share']:.2%} | {row['train_rows']:,} | {row['mean_share']:.4f} | {mark} |"
        )
    lines += ["", f"A training file above {settings['most']:.0%} of an unseen test set should go as a whole "
              "(`--drop-sets`); of a set that is used in development, its matching rows.", ""]  # fmt: skip
    lines += ["| training file | rows | kept | kept as |", "|---|---|---|---|"]
    for entry in summary["files"]:
        note = " (the whole file went)" if entry["whole"] else ""
        lines.append(f"| {entry['train']} | {entry['rows']:,} | {entry['kept']:,} | {entry['kept_as']}{note} |")
    if summary["examples"]:
        lines += ["", "## Removed rows, the first of each pair of files", ""]
        for example in summary["examples"]:
            text = example["test_text"].replace("`", "'")
            lines.append(
                f"- {example['train']} row {example['row']}: {example['share']:.0%} of {example['test']}: `{text}`"
            )
    lines += ["", "All removed rows are in `removed.jsonl.gz` beside the kept ones.", ""]
    return "\n".join(lines)
