"""What a run did, for a person: tables in the papers' shape, figures, one HTML page. It reads stages' folders alone.

run = report.collect("runs/quickstart")
print(report.tables.markdown(run))
report.write("runs/quickstart")          # runs/quickstart/report.html
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from easylm_jax.files import whole
from easylm_jax.report import html, tables
from easylm_jax.report.read import RunData, StageData, collect
from models.errors import UserError

__all__ = ["RunData", "StageData", "as_json", "collect", "html", "tables", "write"]

PAGE = "report.html"


def write(run_folder: str | Path) -> Path:
    """Writes the page of a run into its folder, as `report.html`, and returns its path."""
    run = collect(run_folder)
    return _write(Path(run_folder) / PAGE, html.page(run))


def as_json(run: RunData) -> dict[str, Any]:
    """What the tables are made of: `{"recipe", "folder", "seconds", "tables", "stages": [...], "missing"}`."""
    stages = [
        {"name": it.name, "kind": it.kind, "done": it.finished, "step": it.step, "steps": it.steps,
         "seconds": it.seconds, "needs": list(it.needs), "metrics": it.values, "folder": str(it.folder)}
        for it in run.stages
    ]  # fmt: skip
    return {"recipe": run.recipe, "folder": str(run.folder), "mesh": run.mesh, "seconds": run.seconds,
            "tables": [table for table, _ in run.tables], "stages": stages, "missing": list(run.missing)}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm report`."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as runs/quickstart")
    parser.add_argument("--html", metavar="FILE", help=f"where the page goes (default: RUN/{PAGE})")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument(
        "--json", metavar="FILE", help="also write the tables and every stage's metrics as JSON to FILE"
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm report RUN`: the tables on the screen, the page in a file."""
    run = collect(arguments.run)
    print((tables.markdown if arguments.markdown else tables.text)(run))
    page = _write(Path(arguments.html) if arguments.html else run.folder / PAGE, html.page(run))
    if arguments.json:
        _write(Path(arguments.json), json.dumps(_finite(as_json(run)), indent=2, ensure_ascii=False) + "\n")
    if not arguments.markdown:
        print(f"wrote {page}")
    return 0


def _write(path: Path, text: str) -> Path:
    """Written beside and renamed, so that a reader never sees half a file."""
    try:
        with whole(path) as file:
            file.write(text.encode("utf-8", "replace"))  # samples may hold halves of characters
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file") from error
    return path


def _finite(value: Any) -> Any:
    """NaN and infinity as the strings that metrics files have for them; JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
