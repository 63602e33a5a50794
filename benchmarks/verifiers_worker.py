"""Our side of benchmarks/verifiers.py: verdicts in this process one by one, or with a pool."""

from __future__ import annotations

import functools
import time
from typing import Any

from common import percentile, serve, take_stdout
from verifier_corpus import corpus

CHANNEL = take_stdout()

from easylm_jax.rewards import verifier  # noqa: E402 - after standard output is redirected
from easylm_jax.rewards.pool import Pool  # noqa: E402
from easylm_jax.rewards.verify import LOOKUP  # noqa: E402


def burst(verifier_call: str, seed: int, count: int) -> dict[str, Any]:
    """Verdicts in this process, with the latency of each."""
    judge, rows = verifier(verifier_call), corpus(seed, count)
    latencies, agreed = [], 0
    cpu, began = time.process_time(), time.perf_counter()
    for response, gold, right in rows:
        start = time.perf_counter()
        value = judge(response, {"ground_truth": gold})
        latencies.append(time.perf_counter() - start)
        agreed += (value > 0) == right
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    ms = [1e3 * latency for latency in latencies]
    return {
        "seconds": seconds, "cpu_seconds": cpu_seconds, "agreed": agreed / count,
        "p50_ms": percentile(ms, 0.5), "p95_ms": percentile(ms, 0.95), "max_ms": max(ms),
    }  # fmt: skip


@functools.cache
def pool_of(workers: int) -> Pool:
    return Pool(workers, lookup=LOOKUP)


def pooled(verifier_call: str, seed: int, count: int, workers: int) -> dict[str, Any]:
    """Verdicts of a pool for all responses at once; its processes start before the measurement."""
    rows, pool = corpus(seed, count), pool_of(workers)
    records = [{"ground_truth": gold} for _, gold, _ in rows]
    for _ in range(3):  # until all processes are up; a missing one would not delay the others and would not be measured
        pool.verdicts([verifier_call], [rows[0][0]] * 8 * workers, [records[0]] * 8 * workers)
        time.sleep(0.5)
    cpu, began = time.process_time(), time.perf_counter()
    got = pool.verdicts([verifier_call], [response for response, _, _ in rows], records)
    seconds = time.perf_counter() - began
    assert not got.timed_out.any()
    return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "busy_seconds": got.busy_seconds}


if __name__ == "__main__":
    serve({"name": "easylm_jax"}, {"burst": burst, "pooled": pooled}, CHANNEL)
