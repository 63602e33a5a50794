"""What a run did, for a person: tables in the papers' shape, figures, one HTML page. It reads stages' folders alone.

run = report.collect("runs/quickstart")
print(report.tables.markdown(run))
report.write("runs/quickstart")          # runs/quickstart/report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easylm_jax.report import html, tables
from easylm_jax.report.read import RunData, StageData, collect
from easylm_jax.runtime.files import atomic_write
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


def _write(path: Path, text: str) -> Path:
    """Written beside and renamed, so that a reader never sees half a file."""
    try:
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "replace"))  # samples may hold halves of characters
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file") from error
    return path
