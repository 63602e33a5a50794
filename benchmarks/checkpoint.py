"""The cost of a checkpoint every step: the time that it blocks the training loop, and its disk space.

    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --size 35m --steps 8

Runs the quickstart's pre-training with the trainer on a small cache: bursts with a checkpoint every step (saved in the
background) alternate with bursts without checkpoints. "Blocked" is the time of the loop's checkpoint phase. The
background save also uses cores and disk, which makes steps slower. The last line of standard output is JSON: `ours` is
the median blocked milliseconds per step, `ratio` its share of a step without checkpoints (lower is better).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    SIZES,
    BenchmarkError,
    Repeat,
    Worker,
    json_line,
    kept,
    machine,
    measure,
    median_load,
    percentile,
    run_main,
)  # fmt: skip

# The limit of blocked time at the quickstart's size with a checkpoint every step, as a share of a step.
BAR = 0.10


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; files that are deleted meanwhile do not count."""
    total = 0
    for where, _, files in os.walk(folder):  # skips folders that cannot be read any more
        for file in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(where, file)).st_size
    return total


class DiskWatch:
    """The peak size of a folder while this is open, sampled twenty times a second."""

    def __init__(self, folder: Path, seconds: float = 0.05):
        self.largest = 0
        self._folder, self._seconds, self._ended = folder, seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds):
            self.largest = max(self.largest, folder_bytes(self._folder))

    def __enter__(self) -> DiskWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()


def summary(taken: dict[str, list[Repeat]]) -> dict[str, float]:
    """Milliseconds and shares over all steps of the reported repeats."""
    steps = {
        name: [1e3 * s for repeat in repeats for s in repeat.answer["step_seconds"]] for name, repeats in taken.items()
    }
    saving = [repeat.answer for repeat in taken["checkpoints"]]
    blocked = [1e3 * s for answer in saving for s in answer["blocked_seconds"]]
    plain = statistics.median(steps["none"])
    return {
        "step_ms": plain,
        "step_ms_with_checkpoints": statistics.median(steps["checkpoints"]),
        "blocked_ms": statistics.median(blocked),
        "blocked_ms_p95": percentile(blocked, 0.95),
        "blocked_share": statistics.median(blocked) / plain,
        "write_seconds": statistics.median(s for answer in saving for s in answer["write_seconds"]),
        "skipped": sum(answer["skipped"] for answer in saving),
        "checkpoint_mb": max(answer["checkpoint_bytes"] for answer in saving) / 1e6,
    }


def report(found: dict[str, float], largest_mb: float, latest: int) -> None:
    slower = found["step_ms_with_checkpoints"] / found["step_ms"] - 1
    print(
        f"a step: {found['step_ms']:,.0f} ms without checkpoints, {found['step_ms_with_checkpoints']:,.0f} ms with one "
        f"every step ({100 * slower:+.1f} %)"
    )
    print(
        f"blocked: median {found['blocked_ms']:.1f} ms, 95th percentile {found['blocked_ms_p95']:.1f} ms, "
        f"{100 * found['blocked_share']:.1f} % of a step (bar at the quickstart's size: {100 * BAR:.0f} %)"
    )
    print(f"written in {found['write_seconds']:.2f} s each, in the background; {found['skipped']} were skipped")
    print(
        f"disk: at most {largest_mb:,.0f} MB with the newest {latest} kept; one checkpoint is "
        f"{found['checkpoint_mb']:,.0f} MB"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/checkpoint.py --size 5m"
    )
    parser.add_argument("--size", default="quickstart", choices=("quickstart", *SIZES), help="the model (quickstart)")
    parser.add_argument("--repeats", type=int, default=3, help="bursts with and without checkpoints (3)")
    parser.add_argument("--steps", type=int, default=14, help="steps of a burst, including a few of warm-up (14)")
    options = parser.parse_args()
    if options.repeats < 1 or options.steps < 6:
        parser.error("repeats must be at least 1 and steps at least 6")
    return options


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.json"
        spec.write_text(json.dumps({"size": options.size, "folder": folder}))
        command = [sys.executable, str(ROOT / "benchmarks" / "checkpoint_worker.py"), str(spec)]
        with Worker("ours", command) as worker, DiskWatch(Path(worker.about["watch"])) as disk:
            about = worker.about
            taken: dict[str, list[Repeat]] = {"none": [], "checkpoints": []}
            for number in range(options.repeats):
                for name in ("none", "checkpoints") if number % 2 == 0 else ("checkpoints", "none"):
                    taken[name].append(measure(worker, "burst", saving=name == "checkpoints", steps=options.steps))
    if disk.largest == 0:
        raise BenchmarkError("no checkpoint was seen on the disk; the burst was too short")
    counted, quiet = kept(taken)
    found = summary(counted)
    report(found, disk.largest / 1e6, about["checkpoints"]["latest"])
    if not quiet:
        print("the machine was not quiet: too few repeats without other load, so all are reported")
    config = {
        "size": options.size, "repeats": {name: len(repeats) for name, repeats in counted.items()}, "quiet": quiet,
        "steps": options.steps, **found, "largest_disk_mb": disk.largest / 1e6, "machine": machine(),
        "about": {name: value for name, value in about.items() if name != "watch"},
    }  # fmt: skip
    load = median_load([r for repeats in counted.values() for r in repeats])
    print(json_line(found["blocked_ms"], None, "blocked ms/step", load, config, ratio=found["blocked_share"]))


if __name__ == "__main__":
    run_main(main)
