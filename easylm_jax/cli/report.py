"""`easylm report`: prints the tables of a run, or of several side by side, and writes them as one HTML page."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from easylm_jax import report
from easylm_jax.cli import arguments as kinds
from easylm_jax.report import COMPARISON_PAGE, PAGE, compare, compare_page, html, tables, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm report`."""
    parser.add_argument(
        "runs",
        type=kinds.INPUT_FOLDER,
        metavar="RUN",
        nargs="+",
        help="a run's folder, such as runs/quickstart; several are compared",
    )
    parser.add_argument(
        "--html", type=kinds.OUTPUT_FILE, metavar="FILE",
        help=f"path of the HTML page (default: RUN/{PAGE}, or {COMPARISON_PAGE} in the folder of the first of several)",
    )  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument(
        "--json",
        type=kinds.OUTPUT_FILE,
        metavar="FILE",
        help="also write the tables and the metrics of all stages as JSON to FILE",
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm report RUN...`: prints the tables and writes the page."""
    if len(arguments.runs) == 1:
        run = report.collect(arguments.runs[0])
        shown = (tables.markdown if arguments.markdown else tables.text)(run)
        place, page, data = run.folder / PAGE, html.page(run), report.as_json(run)
    else:
        comparison = compare.compare(arguments.runs)
        shown = (compare.markdown if arguments.markdown else compare.text)(comparison)
        place = Path(arguments.runs[0]) / COMPARISON_PAGE
        page, data = compare_page.page(comparison), report.comparison_json(comparison)
    print(shown)
    written = write_text(Path(arguments.html) if arguments.html else place, page)
    if arguments.json:
        write_text(Path(arguments.json), json.dumps(_finite(data), indent=2, ensure_ascii=False) + "\n")
    if not arguments.markdown:
        print(f"wrote {written}")
    return 0


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not have, by strings, as in metrics files."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
