"""What the workers of a pod report about a job, collected from one file for each worker, and shown.

    python -m easylm_jax.runtime.launch.status FOLDER --pod STATE --workers N [--json]

FOLDER holds what `worker.py status` printed, in `0.log`, `1.log`, …, as `gcloud … ssh --output-directory` writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easylm_jax.runtime import exit_status


@dataclasses.dataclass(frozen=True)
class Report:
    """The state of a pod and of the job on each of its workers.

    Attributes:
        pod: as Google Cloud names it (`READY`, `PREEMPTED`, …), `ABSENT` if there is none, `UNKNOWN` if it did not say.
        workers: by their number, what `worker.status` returned, or None where one did not answer; empty if none did.
    """

    pod: str
    workers: tuple[dict[str, Any] | None, ...] = ()


def collect(folder: Path, pod: str, workers: int) -> Report:
    """The report of a folder of answers. A worker without a file, or without a JSON line in it, has not answered."""
    found = {
        int(path.stem): last_answer(path.read_text(errors="replace"))
        for path in folder.glob("*.log")
        if path.stem.isdecimal()
    }
    return Report(pod, tuple(found.get(i) for i in range(workers if found else 0)))


def last_answer(text: str) -> dict[str, Any] | None:
    """The last line of a worker's output that begins as a JSON object; None if there is none or it is no JSON."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                return None
    return None


def table(report: Report) -> str:
    """The report as lines of text: one for the pod, one for each worker."""
    lines = [f"pod     {report.pod}"]
    lines += [f"worker {i}  {describe(worker)}" for i, worker in enumerate(report.workers)]
    return "\n".join(lines)


def describe(worker: dict[str, Any] | None) -> str:
    """The state of one worker in a line."""
    if worker is None:
        return "does not answer"
    if worker["state"] == "absent":
        return "nothing started"
    where = "" if worker["step"] is None else f", {worker['stage']} step {worker['step']}"
    if worker["state"] == "running":
        phase = "" if worker["phase"] is None else f", {worker['phase']} for {worker['progress_age']:.0f} s"
        return f"running{where}{phase}"
    said = f": {worker['error']}" if worker["status"] and worker["error"] else ""
    return f"ended{where}, exit status {worker['status']} ({exit_status.meaning(worker['status']).text}){said}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m easylm_jax.runtime.launch.status", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pod", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    report = collect(given.folder, given.pod, given.workers)
    print(json.dumps(dataclasses.asdict(report)) if given.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
