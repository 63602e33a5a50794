"""Whether the quickstart's gains hold: the whole recipe several times, each time with all of its seeds changed.

    python benchmarks/quickstart_seeds.py                    # five runs one after the other, in runs/quickstart-seeds/
    python benchmarks/quickstart_seeds.py --seeds 7 8 --out elsewhere

Seeds of the data (and so of the vocabulary), of pre-training and of SFT are changed together; the methods keep the
seeds that the recipe gives them. It prints each run's table and sentence, its time, CPU time and peak memory, and how
often each method beats SFT by more than two standard errors of the difference. A run that is there already is not run
again, one that was cut short goes on; of those, times are not told. The last line of standard output is JSON: `ours` is
the smallest number of runs in which a method beats SFT, `peer` the number of runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, BenchmarkError, json_line, machine, run_main

RECIPE = ROOT / "recipes" / "quickstart.py"
SEEDED = ("data", "pretrain", "sft")  # the vocabulary is made from the data, with no seed of its own


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/quickstart_seeds.py --seeds 7 8"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15], help="one run each (11 to 15)")
    parser.add_argument(
        "--out", default="runs/quickstart-seeds", help="where the runs are kept (runs/quickstart-seeds)"
    )
    return parser.parse_args()


def run(seed: int, out: Path) -> dict | None:
    """One run of the recipe; its seconds, CPU seconds and peak memory, or None where it was there in part or whole."""
    fresh = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "easylm_jax", "run", str(RECIPE), "--out", str(out)]
    command += [f"{stage}.seed={seed}" for stage in SEEDED]
    began = time.monotonic()
    with open(out / "log.txt", "a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)  # of this process alone, where getrusage has the most of all
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode:
        raise BenchmarkError(f"the run with seed {seed} ended with status {process.returncode}; see {out / 'log.txt'}")
    told = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}
    return told if fresh else None


def gains(table: dict) -> dict[str, dict[str, float]]:
    """What each method gains over SFT, in points, and the standard error."""
    return {
        row["method"]: {"points": 100 * row["over"]["difference"], "stderr": 100 * row["over"]["stderr"]}
        for row in table["rows"]
        if row["over"] is not None and row["over"]["method"] == "SFT"
    }


def beaten(found: list[dict[str, dict[str, float]]]) -> dict[str, int]:
    """In how many runs each method beats SFT by more than two standard errors of the difference."""
    return {
        method: sum(one[method]["points"] > 2 * one[method]["stderr"] for one in found) for method in found[0]
    }  # fmt: skip


def main() -> None:
    options = arguments()
    from easylm_jax.report import tables

    found, told = [], []
    for seed in options.seeds:
        out = Path(options.out).resolve() / f"seed-{seed}"
        cost = run(seed, out)
        table = json.loads((out / "quickstart" / "table.json").read_text())
        found.append(gains(table))
        print(f"seed {seed}\n\n{tables.as_text(tables.ablation(table))}\n")
        if cost is not None:
            told.append(cost)
            print(
                f"{cost['seconds']:.0f} s, {cost['cpu_seconds']:.0f} CPU seconds, "
                f"{cost['peak_mib']:,.0f} MiB at most\n",
                flush=True,
            )
    counts = beaten(found)
    for method, times in counts.items():
        each = ", ".join(f"{one[method]['points']:+.1f} ± {one[method]['stderr']:.1f}" for one in found)
        print(f"{method} beats SFT by more than two standard errors in {times} of {len(found)} runs: {each} points")
    config = {
        "seeds": options.seeds, "gains": found, "beats": counts, "machine": machine(),
        "median": {name: statistics.median(one[name] for one in told) for name in told[0]} if told else None,
    }  # fmt: skip
    print(json_line(min(counts.values()), len(found), "runs", None, config))


if __name__ == "__main__":
    run_main(main)
