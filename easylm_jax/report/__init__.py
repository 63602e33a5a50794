"""Reports of a run: tables in the layout of the papers, figures, one HTML page. Reads only the folders of stages.

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

__all__ = ["RunData", "StageData", "as_json", "collect", "html", "tables", "write", "write_text"]

PAGE = "report.html"


def write(run_folder: str | Path) -> Path:
    """Writes the page of a run into its folder, as `report.html`, and returns its path."""
    run = collect(run_folder)
    return write_text(Path(run_folder) / PAGE, html.page(run))


def as_json(run: RunData) -> dict[str, Any]:
    """The data of the tables: `{"recipe", "folder", "mesh", "seconds", "tables", "stages": [...], "missing"}`."""
    method_of = {stage.name: method for method, seeds in run.methods(run.stages).items() for stage in seeds}
    stages = [
        {"name": stage.name, "kind": stage.kind, "method": method_of[stage.name], "done": stage.finished,
         "step": stage.step, "steps": stage.steps, "seconds": stage.seconds, "needs": list(stage.needs),
         "metrics": stage.values, "folder": str(stage.folder)}
        for stage in run.stages
    ]  # fmt: skip
    return {"recipe": run.recipe, "folder": str(run.folder), "mesh": run.mesh, "seconds": run.seconds,
            "tables": [table for table, _ in run.tables], "stages": stages, "missing": list(run.missing)}  # fmt: skip


def write_text(path: Path, text: str) -> Path:
    """Writes a file atomically; returns its path."""
    try:
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "replace"))  # samples may contain lone surrogates
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file") from error
    return path
