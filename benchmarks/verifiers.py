"""Throughput of verifiers on this machine: responses per second in one process, and with the pool.

    python benchmarks/verifiers.py
    python benchmarks/verifiers.py --peer math_verify --workers 4

Generated responses of about 300 words end with a boxed answer of a competition problem (integers, fractions, roots,
polynomials, pairs); half of them are correct. Every repeat has new responses, so that caches have no effect. The peer
is the library math-verify, called directly; `ours` is the verifier `math` in one process. The last line of standard
output is JSON, in responses per second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from common import ROOT, BenchmarkError, Worker, json_line, kept, machine, measure, median_load, run_main
from verifier_corpus import VERIFIERS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/verifiers.py --peer math_verify"
    )
    parser.add_argument("--responses", type=int, default=1000, help="responses per repeat (1000)")
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats of each side (5)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="most processes of a pool (all cores)")
    parser.add_argument("--peer", choices=("math_verify",), help="the library to compare with")
    options = parser.parse_args()
    if min(options.responses, options.repeats, options.workers) < 1:
        parser.error("responses, repeats and workers must be at least 1")
    return options


def peer_command() -> list[str]:
    """The peer's process, in the environment .peers/math_verify or, without it, in this one."""
    own = ROOT / ".peers" / "math_verify" / "bin" / "python"
    python = str(own) if own.is_file() else sys.executable
    if subprocess.run([python, "-c", "import math_verify"], capture_output=True).returncode:
        raise BenchmarkError("no library math-verify; build its environment with benchmarks/setup_peers.sh math_verify")
    return [python, str(ROOT / "benchmarks" / "peers" / "math_verify_verdicts.py")]


def medians(answers: list[Any], count: int) -> dict[str, float]:
    """Responses per second and latencies of several bursts."""
    found = {name: statistics.median(a[name] for a in answers) for name in ("agreed", "p50_ms", "p95_ms", "max_ms")}
    return {"responses_per_second": count / statistics.median(a["seconds"] for a in answers), **found}


def main() -> None:
    options = arguments()
    count = options.responses
    with ExitStack() as stack:
        ours = stack.enter_context(Worker("ours", [sys.executable, str(ROOT / "benchmarks" / "verifiers_worker.py")]))
        sides = [ours]
        if options.peer:
            sides.append(stack.enter_context(Worker(options.peer, peer_command())))
        for side in sides:
            side.ask("burst", verifier_call="math", seed=0, count=count)
        taken = {side.name: [] for side in sides}
        for repeat in range(options.repeats):
            for side in sides if repeat % 2 == 0 else sides[::-1]:
                taken[side.name].append(measure(side, "burst", verifier_call="math", seed=1 + repeat, count=count))
        each = {"math": medians([repeat.answer for repeat in taken["ours"]], count)}
        for call in VERIFIERS:
            if call != "math":
                bursts = [ours.ask("burst", verifier_call=call, seed=50 + k, count=count) for k in range(3)]
                each[call] = medians(bursts, count)
                del each[call]["agreed"]  # the corpus is only labelled for `math`
        pool = {}
        for workers in range(1, options.workers + 1):
            bursts = [
                ours.ask("pooled", verifier_call="math", seed=100 * workers + k, count=count, workers=workers)
                for k in range(options.repeats)
            ]
            pool[workers] = count / statistics.median(b["seconds"] for b in bursts)

    for call, found in each.items():
        print(
            f"{call:<26}{found['responses_per_second']:>10,.0f} responses/s in one process, p50 {found['p50_ms']:.3f}, "
            f"p95 {found['p95_ms']:.3f}, max {found['max_ms']:.1f} ms"
        )
    for workers, rate in pool.items():
        print(f"math, pool of {workers:<12}{rate:>10,.0f} responses/s")
    repeats, quiet = kept(taken)
    rates = {name: medians([r.answer for r in side], count) for name, side in repeats.items()}
    print(f"agreement with the labels of the corpus: {rates['ours']['agreed']:.4f}")
    if options.peer:
        peer = rates[options.peer]
        print(
            f"{options.peer:<26}{peer['responses_per_second']:>10,.0f} responses/s in one process, p50 "
            f"{peer['p50_ms']:.3f}, p95 {peer['p95_ms']:.3f}, max {peer['max_ms']:.1f} ms, agreed {peer['agreed']:.4f}"
        )
    config = {
        "responses": count, "verifiers": each, "pool": pool, "peer": options.peer and rates[options.peer],
        "repeats": {name: len(side) for name, side in repeats.items()}, "quiet": quiet, "machine": machine(),
    }  # fmt: skip
    rate = rates["ours"]["responses_per_second"]
    load = median_load([r for side in repeats.values() for r in side])
    print(json_line(rate, options.peer and rates[options.peer]["responses_per_second"], "responses/s", load, config))


if __name__ == "__main__":
    run_main(main)
