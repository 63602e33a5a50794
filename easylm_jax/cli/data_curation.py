"""`easylm data decontaminate|dedup|filter|mix`: which training rows are kept. Heavy modules are imported on use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from easylm_jax.cli import arguments as kinds

EXAMPLES = {
    "decontaminate": "easylm data decontaminate train.jsonl --against gsm8k_test.jsonl --out kept --report report.md",
    "dedup": "easylm data dedup train.jsonl --out kept",
    "filter": "easylm data filter train.jsonl --out kept --rules 'empty,identity,length(least=5)'",
    "mix": "easylm data mix a.jsonl b.jsonl --fractions 1,0.5 --out mix.jsonl --shuffle",
}
HELPS = {
    "decontaminate": "leave out training rows that hold rows of a benchmark, with a report",
    "dedup": "leave out duplicates and near duplicates; of a group the first row stays",
    "filter": "leave out rows by rules of quality, repetition, language and identity",
    "mix": "write one file of rows from several, by counts, fractions or rates",
}


def add_arguments(parsers: dict[str, argparse.ArgumentParser]) -> None:
    """The arguments of the curation commands, into their parsers."""
    removing = parsers["decontaminate"]
    removing.add_argument(
        "train", type=kinds.NAME, nargs="+", metavar="TRAIN", help="training rows: files, globs, folders"
    )
    removing.add_argument(
        "--against",
        type=kinds.NAME,
        nargs="+",
        required=True,
        metavar="TEST",
        help="files of test rows, each a test set",
    )
    removing.add_argument(
        "--report", type=kinds.OUTPUT_FILE, help="a Markdown file, or JSON if it ends in .json (default: DIR/report.md)"
    )
    removing.add_argument("--ngram", type=kinds.COUNT, default=8, help="words of an n-gram (default: 8)")
    removing.add_argument(
        "--share", type=kinds.SHARE, default=0.5,
        help="a row goes if this share of a test row's words lies in n-grams that both have (default: 0.5)",
    )  # fmt: skip
    removing.add_argument("--column", help="the column of a test row that a model is asked with (default: found)")
    removing.add_argument("--train-column", help="the column of a training row to search (default: user turns, prompt)")
    removing.add_argument(
        "--drop-sets",
        action="store_true",
        help="leave out whole training files that hold more than --most of a test set",
    )
    removing.add_argument("--most", type=kinds.SHARE, default=0.02, help="share of a test set (default: 0.02)")
    _add_common(removing)

    joining = parsers["dedup"]
    joining.add_argument("files", type=kinds.NAME, nargs="+", metavar="FILE", help="rows: files, globs, folders")
    joining.add_argument(
        "--threshold",
        type=kinds.SHARE,
        default=0.8,
        help="Jaccard similarity from which on rows are duplicates (default: 0.8)",
    )
    joining.add_argument("--ngram", type=kinds.COUNT, default=5, help="words of an n-gram (default: 5)")
    joining.add_argument("--column", help="the column to compare (default: all text of a row)")
    joining.add_argument("--exact", action="store_true", help="compare whole texts alone")
    joining.add_argument("--report", type=kinds.OUTPUT_FILE, help="a JSON file for the counts")
    _add_common(joining)

    filtering = parsers["filter"]
    filtering.add_argument("files", type=kinds.NAME, nargs="+", metavar="FILE", help="rows: files, globs, folders")
    filtering.add_argument(
        "--rules",
        help="rules with options, comma-separated (default: empty,special,cutoff,identity,repeats,compression)",
    )
    filtering.add_argument("--column", help="the column that rules read (default: all text of a row)")
    _add_common(filtering)

    mixing = parsers["mix"]
    mixing.add_argument("sources", type=kinds.NAME, nargs="+", metavar="SOURCE", help="files, globs, folders")
    amounts = mixing.add_mutually_exclusive_group(required=True)
    amounts.add_argument("--counts", help="rows of each source, comma-separated; more than it has repeats it")
    amounts.add_argument("--fractions", help="multiples of the rows of each source, such as 0.5,2")
    amounts.add_argument("--rates", help="shares of the sources in the mixture, such as 3,1")
    mixing.add_argument("--rows", type=kinds.COUNT, help="rows in all, with --rates (default: what the sources allow)")
    mixing.add_argument("--shuffle", action="store_true", help="in random order (default: in the order of the sources)")
    mixing.add_argument("--seed", type=kinds.SEED, default=42, help="of drawing and order (default: 42)")
    mixing.add_argument("--out", type=kinds.OUTPUT_FILE, required=True, help="the JSONL file")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=kinds.OUTPUT_FOLDER, required=True, help="folder for the kept rows")
    parser.add_argument("--workers", type=kinds.COUNT, help="worker processes (default: one for each processor)")


def decontaminate(arguments: argparse.Namespace) -> dict[str, Any]:
    """`easylm data decontaminate`: writes the kept rows and the report."""
    from easylm_jax.data.curation.decontaminate import decontaminate

    report = Path(arguments.report or Path(arguments.out) / "report.md")
    summary = decontaminate(
        arguments.train, arguments.against, Path(arguments.out), report, ngram=arguments.ngram,
        share=arguments.share, column=arguments.column, train_column=arguments.train_column,
        drop_sets=arguments.drop_sets, most=arguments.most, workers=_workers(arguments),
    )  # fmt: skip
    print(f"kept {summary['kept']:,} of {summary['train_rows']:,} rows in {arguments.out}; report: {report}")
    return summary


def dedup(arguments: argparse.Namespace) -> dict[str, Any]:
    """`easylm data dedup`: writes the first row of every group of duplicates."""
    from easylm_jax.data.curation.dedup import dedup

    summary = dedup(
        arguments.files, Path(arguments.out), Path(arguments.report) if arguments.report else None,
        threshold=arguments.threshold, ngram=arguments.ngram, column=arguments.column, exact_only=arguments.exact,
        workers=_workers(arguments),
    )  # fmt: skip
    print(f"kept {summary['kept']:,} of {summary['rows']:,} rows in {arguments.out}: {summary['removed_exact']:,} have "
          f"the text of an earlier row, {summary['removed_near']:,} nearly")  # fmt: skip
    return summary


def filter(arguments: argparse.Namespace) -> dict[str, Any]:
    """`easylm data filter`: writes the rows that no rule leaves out."""
    from easylm_jax.data.curation.filter import filter_rows
    from easylm_jax.data.curation.quality import DEFAULT

    rules = arguments.rules or ",".join(DEFAULT)
    summary = filter_rows(
        arguments.files, Path(arguments.out), rules, column=arguments.column, workers=_workers(arguments)
    )
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary["left_out"].items()) or "none"
    print(f"kept {summary['kept']:,} of {summary['rows']:,} rows in {arguments.out}; left out: {reasons}")
    return summary


def mix(arguments: argparse.Namespace) -> dict[str, Any]:
    """`easylm data mix`: writes a mixture of the sources."""
    from easylm_jax.data.curation.mix import KINDS, mix
    from models.errors import UserError

    kind = next(kind for kind in KINDS if getattr(arguments, kind))
    text = getattr(arguments, kind)
    try:
        amounts = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"data: --{kind} {text!r} must be numbers separated by commas") from None
    if arguments.rows is not None and kind != "rates":
        raise UserError(f"data: --rows goes with --rates; --{kind} say how many rows there are")
    summary = mix(
        arguments.sources, Path(arguments.out), amounts, kind, rows=arguments.rows, shuffle=arguments.shuffle,
        seed=arguments.seed,
    )  # fmt: skip
    parts = ", ".join(f"{source['taken']:,} of {source['source']}" for source in summary["sources"])
    print(f"{summary['rows']:,} rows in {arguments.out}: {parts}")
    return summary


def stats_of_rows(paths: list[str]) -> dict[str, Any]:
    """`easylm data stats FILE…`: prints what the rows hold."""
    from easylm_jax.data.curation.job import default_workers
    from easylm_jax.data.curation.statistics import row_statistics, stats_text

    summary = row_statistics(paths, default_workers())
    print(stats_text(summary))
    return summary


def _workers(arguments: argparse.Namespace) -> int:
    from easylm_jax.data.curation.job import default_workers

    return arguments.workers or default_workers()
