"""math-verify's side of benchmarks/verifiers.py: parse both texts, then verify, as in its README."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import percentile, serve, take_stdout
from verifier_corpus import corpus

CHANNEL = take_stdout()

from math_verify import parse, verify  # noqa: E402 - after standard output is redirected


def burst(verifier_call: str, seed: int, count: int) -> dict[str, Any]:
    latencies, agreed = [], 0
    rows = corpus(seed, count)
    cpu, began = time.process_time(), time.perf_counter()
    for response, gold, right in rows:
        start = time.perf_counter()
        agreed += bool(verify(parse(f"${gold}$"), parse(response))) == right
        latencies.append(time.perf_counter() - start)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    ms = [1e3 * latency for latency in latencies]
    return {
        "seconds": seconds, "cpu_seconds": cpu_seconds, "agreed": agreed / count,
        "p50_ms": percentile(ms, 0.5), "p95_ms": percentile(ms, 0.95), "max_ms": max(ms),
    }  # fmt: skip


if __name__ == "__main__":
    parse("$1$")  # its first call loads grammars
    serve({"name": "math-verify"}, {"burst": burst}, CHANNEL)
