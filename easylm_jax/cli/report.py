"""`easylm report`: prints the tables of a run and writes the whole run as one HTML page."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from easylm_jax.report import PAGE, as_json, html, tables, write_text
from easylm_jax.report.read import collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm report`."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as runs/quickstart")
    parser.add_argument("--html", metavar="FILE", help=f"path of the HTML page (default: RUN/{PAGE})")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument(
        "--json", metavar="FILE", help="also write the tables and the metrics of all stages as JSON to FILE"
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm report RUN`: prints the tables and writes the page."""
    run = collect(arguments.run)
    print((tables.markdown if arguments.markdown else tables.text)(run))
    page = write_text(Path(arguments.html) if arguments.html else run.folder / PAGE, html.page(run))
    if arguments.json:
        write_text(Path(arguments.json), json.dumps(_finite(as_json(run)), indent=2, ensure_ascii=False) + "\n")
    if not arguments.markdown:
        print(f"wrote {page}")
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
