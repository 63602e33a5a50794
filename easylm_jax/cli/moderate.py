"""`easylm moderate FILE --model M`: is a request harmful, is the response a refusal, is the response harmful."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.rows import prompt_rows
from models.errors import UserError

BATCH = 256  # rows between two lines of progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm moderate`."""
    parser.add_argument(
        "file", type=kinds.INPUT_FILE, metavar="FILE",
        help="JSON lines with prompt and, where there is one, response (both texts)",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=kinds.NAME, metavar="MODEL", required=True,
        help="the moderator: a stage's or checkpoint's folder, or hf:FOLDER (or hf:OWNER/NAME on the hub)",
    )  # fmt: skip
    parser.add_argument("--tokenizer", type=kinds.NAME, metavar="SPEC", help="default: the model's own")
    parser.add_argument(
        "--template", type=kinds.INPUT_FILE, metavar="FILE",
        help="the input that the moderator was trained with, with {prompt} and {response} (default: this project's)",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=("slots", "generate"), default="slots",
        help="slots gives the labels and asks for the answers alone; generate decodes and parses (default: slots)",
    )  # fmt: skip
    parser.add_argument("--limit", type=kinds.COUNT, metavar="N", help="only the first N rows")
    parser.add_argument("--json", type=kinds.OUTPUT_FILE, metavar="FILE", help="write the rows as JSON lines to FILE")


def main(arguments: argparse.Namespace) -> int:
    """`easylm moderate`: prints the counts of all answers; with --json writes a line for each row."""
    from easylm_jax.rewards.moderation import FIELDS, VALUES
    from easylm_jax.rewards.moderator import load_moderator
    from easylm_jax.runtime.files import write_lines

    rows = read_rows(arguments.file)[: arguments.limit]
    moderator = load_moderator(
        arguments.model, template=arguments.template, mode=arguments.mode, tokenizer=arguments.tokenizer
    )
    began, records = time.perf_counter(), []
    for start in range(0, len(rows), BATCH):
        records += moderator(rows[start : start + BATCH])
    seconds = time.perf_counter() - began
    if arguments.json:
        try:
            write_lines(Path(arguments.json), ({**row, **record} for row, record in zip(rows, records, strict=True)))
        except OSError as error:
            raise UserError(f"cannot write {arguments.json}: {error.strerror}; give another file with --json") from None
    for field in FIELDS:
        counts = [sum(record[field] == value for record in records) for value in VALUES[field]]
        said = ", ".join(f"{count} {value}" for count, value in zip(counts, VALUES[field], strict=True))
        print(f"{field:<22} {said}, {len(records) - sum(counts)} none")
    errors, cut = (sum(bool(record[name]) for record in records) for name in ("is_parsing_error", "truncated"))
    print(f"{len(records)} rows in {seconds:.1f} s; {errors} not parsed, {cut} cut to fit the context")
    return 0


def read_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines.

    Raises:
        UserError: a line is no object with a text `prompt`, its response is no text, or there is no line.
    """
    rows = []
    for where, row in prompt_rows(path):
        if not isinstance(row.get("response"), str | None):
            raise UserError(f"{where} has a response that is not a text")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no row; give one JSON object with a prompt a line")
    return rows
