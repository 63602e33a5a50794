"""The train step and its update under two checkouts of this code in one run: time and memory.

    python benchmarks/optimizer.py --against ../before                       # AdamW in both
    python benchmarks/optimizer.py --against ../before --set skip_step=true  # other settings, of both
    python benchmarks/optimizer.py --size 5m --set name=lion                 # this checkout alone

Both sides train the same OLMo 2 in float32 on the same batch, each with its own code in a process of its own, and take
turns, burst by burst. The same program is up to half as slow again in one process as in another, wherever its memory
happens to lie, so that several pairs of processes are measured. `ratio` of the last line (JSON) is the median of our
time over theirs for a step, round by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    SIZES,
    BenchmarkError,
    Repeat,
    Worker,
    json_line,
    machine,
    median_load,
    random_rows,
    run_main,
    spread,
    take_turns,
)  # fmt: skip

# Steps and updates of a burst, so that one lasts about a second.
STEPS = {"tiny": (5, 20), "5m": (4, 40), "35m": (2, 10)}


def ratios(ours: Sequence[Repeat], theirs: Sequence[Repeat]) -> list[float]:
    """Our time over the other's, round by round: what slows a machine down for a while slows both."""
    return [a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True)]


def report(what: str, taken: Mapping[str, Sequence[Repeat]], steps: int) -> dict[str, float]:
    """Prints a line for each side; returns the median milliseconds of each."""
    medians = {}
    for name, repeats in taken.items():
        told = spread([1e3 * repeat.seconds / steps for repeat in repeats])
        cpu = statistics.median(1e3 * repeat.cpu_seconds / steps for repeat in repeats)
        medians[name] = told["median"]
        print(
            f"{what:<8}{name:<10}{told['median']:>10.2f} ms ({told['min']:.2f} to {told['max']:.2f}), {cpu:.2f} ms of "
            "CPU time"
        )
    return medians


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/optimizer.py --against ../before"
    )
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, to run beside this one")
    parser.add_argument("--size", default="35m", choices=SIZES, help="the model (35m)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of a pair of processes (7)")
    parser.add_argument("--restarts", type=int, default=3, help="pairs of processes, one after the other (3)")
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch (4)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row (128)")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of OptimizerConfig")
    options = parser.parse_args()
    if min(options.repeats, options.restarts, options.rows, options.length) < 1:
        parser.error("repeats, restarts, rows and length must be at least 1")
    if options.against and not (options.against / "easylm_jax").is_dir():
        raise BenchmarkError(f"{options.against} is no checkout of this code: it has no folder easylm_jax")
    return options


def spec_of(options: argparse.Namespace) -> dict[str, Any]:
    shape = SIZES[options.size]
    tokens = random_rows(shape["vocab"], options.rows, options.length + 1)
    checkouts = {"ours": str(ROOT), **({"other": str(options.against.resolve())} if options.against else {})}
    return {
        "shape": shape, "length": options.length, "tokens": tokens, "settings": options.set, "checkouts": checkouts,
    }  # fmt: skip


def main() -> None:
    options = arguments()
    spec, counts = spec_of(options), dict(zip(("step", "update"), STEPS[options.size], strict=True))
    taken: dict[str, dict[str, list[Repeat]]] = {what: {name: [] for name in spec["checkouts"]} for what in counts}
    script = str(Path(__file__).with_name("optimizer_worker.py"))
    for _ in range(options.restarts):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            path = Path(folder) / "spec.json"
            path.write_text(json.dumps(spec))
            commands = {name: [sys.executable, script, str(path), name] for name in spec["checkouts"]}
            workers = [stack.enter_context(Worker(name, command)) for name, command in commands.items()]
            about = {worker.name: worker.about for worker in workers}
            for what, steps in counts.items():
                for name, repeats in take_turns(workers, options.repeats, what, steps=steps).items():
                    taken[what][name] += repeats
    print(f"{options.size}: {about['ours']['parameters']:,} parameters, {options.rows} rows of {options.length}")
    milliseconds = {what: report(what, taken[what], steps) for what, steps in counts.items()}
    found = {}
    if options.against:
        found = {what: spread(ratios(both["ours"], both["other"])) for what, both in taken.items()}
        cpu = {what: _cpu_ratio(both) for what, both in taken.items()}
        for what, ratio in found.items():
            print(f"{what}: {ratio['median']:.3f} of the other's time, {cpu[what]:.3f} of its CPU time")
        found = {what: {**ratio, "cpu": cpu[what]} for what, ratio in found.items()}
    for name, side in about.items():
        for what, memory in side["memory"].items():
            print(
                f"{what:<8}{name:<10}{memory['temporary']:>14,} bytes beside its arguments, peak {memory['peak']:,}, "
                f"{memory['flops']:,} operations on {memory['touched']:,} bytes"
            )
    config = {
        "size": options.size, **SIZES[options.size], "rows": options.rows, "length": options.length,
        "settings": options.set, "repeats": options.repeats,
        "restarts": options.restarts, "milliseconds": milliseconds, "ratios": found,
        "machine": machine(), "about": about,
    }  # fmt: skip
    load = median_load([repeat for both in taken.values() for repeats in both.values() for repeat in repeats])
    step, ratio = milliseconds["step"], found["step"]["median"] if found else None
    print(json_line(step["ours"], step.get("other"), "ms", load, config, ratio))


def _cpu_ratio(both: Mapping[str, Sequence[Repeat]]) -> float:
    """Our CPU time over the other's: hardly touched by other processes on the machine."""
    return statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in zip(both["ours"], both["other"], strict=True))


if __name__ == "__main__":
    run_main(main)
