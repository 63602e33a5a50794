"""Reports of runs: tables in the layout of the papers, figures, one HTML page. Reads only the folders of stages.

run = report.collect("runs/quickstart")
print(report.tables.markdown(run))
report.write("runs/quickstart")          # runs/quickstart/report.html
both = report.compare.compare(["runs/a", "runs/b"])
print(report.compare.text(both))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easylm_jax.report import compare, compare_page, html, tables
from easylm_jax.report.compare import Comparison
from easylm_jax.report.read import RunData, StageData, collect
from easylm_jax.runtime.files import atomic_write
from models.errors import UserError

__all__ = [
    "Comparison", "RunData", "StageData", "as_json", "collect", "compare", "compare_page", "comparison_json", "html",
    "tables", "write", "write_text",
]  # fmt: skip

PAGE = "report.html"
COMPARISON_PAGE = "comparison.html"


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


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The data of a comparison: `{"runs": {name: as of as_json}, "tables": [{"stage", "title", "rows"}], "settings":
    [{"method", "setting", "values"}], "methods": [{"method", "kind", "stages"}]}`; rows have a `run` each, `values`
    and `stages` are by run."""
    tables = [
        {"stage": str(group[0].table.get("stage", "")), "title": str(group[0].table.get("title", "")),
         "rows": [{"run": result.name, **row} for result in group for row in result.table["rows"]]}
        for group in comparison.results
    ]  # fmt: skip
    settings = [{"method": one.method, "setting": one.setting, "values": one.values} for one in comparison.differences]
    methods = [
        {"method": line.method, "kind": line.kind,
         "stages": {run: [stage.name for stage in stages] for run, stages in line.stages.items()}}
        for line in comparison.lines
    ]  # fmt: skip
    return {"runs": {name: as_json(run) for name, run in comparison.runs.items()}, "tables": tables,
            "settings": settings, "methods": methods}  # fmt: skip


def write_text(path: Path, text: str) -> Path:
    """Writes a file atomically; returns its path."""
    try:
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "replace"))  # samples may contain lone surrogates
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file") from error
    return path
