"""Projected training steps on TPU pods, of OLMo 2 and of models with published numbers, by setting.

    python benchmarks/pods.py                          # all rows: an hour to two on two cores
    python benchmarks/pods.py --model olmo2-7b --pod v5p:4x4x4

Needs the TPU compiler (pip install 'jax[tpu]') but no TPU. Nothing is measured: seconds are the projection of `easylm
plan`. Compiled plans are kept in --out, so that a second run takes seconds. Published MFU values are MaxText's
(docs/reference/models/tiering.md, synthetic data), whose runs have other settings and whose models have no QK-norm.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import BenchmarkError, run_main, tpu_compiler

PLAIN, LARGE, LARGER = None, 65536, 98304
# model, pod, sequence length, rows per chip, remat, tile_kib, published MFU
CASES = (
    ("olmo2-7b", "v5p:4x4x4", 4096, 1, "full", PLAIN, None),
    ("olmo2-7b", "v5p:4x4x4", 4096, 1, "attention", PLAIN, None),
    ("olmo2-7b", "v5p:4x4x4", 4096, 2, "dots", PLAIN, None),
    ("olmo2-7b", "v5p:4x4x4", 4096, 2, "dots", LARGE, None),
    ("olmo2-7b", "v5p:2x4x4", 4096, 4, "attention", PLAIN, None),
    ("olmo2-7b", "v5p:4x4x4", 4096, 4, "attention", PLAIN, None),
    ("olmo2-13b", "v5p:4x4x4", 4096, 2, "dots", LARGE, None),
    ("olmo2-7b", "v6e:16x16", 4096, 1, "attention", PLAIN, None),
    ("olmo2-7b", "v6e:16x16", 4096, 1, "attention", LARGE, None),
    ("olmo2-7b", "v6e:16x16", 4096, 1, "outputs", LARGER, None),
    ("olmo2-7b", "v6e:16x16", 4096, 2, "outputs", LARGER, None),
    ("olmo2-7b", "v6e:16x16", 4096, 2, "dots", LARGE, None),
    ("olmo2-7b", "v6e:16x16", 4096, 3, "attention", LARGE, None),
    ("olmo2-13b", "v6e:16x16", 4096, 1, "attention", LARGE, None),
    ("llama2-70b", "v5p:8x8x4", 4096, 2, "attention", LARGE, 0.654),
    ("llama3.1-8b", "v6e:16x16", 8192, 3, "full", LARGE, 0.455),
    ("llama3.1-70b", "v6e:16x16", 8192, 1, "full", LARGE, 0.503),
)


def projected(case: tuple[Any, ...], folder: Path) -> dict[str, Any]:
    """One row: seconds per step [low, high], MFU for each, peak memory in GiB, and MFU over the published one."""
    model, pod, length, rows, remat, tile, published = case
    from easylm_jax.config import SFT, Compute, DataSpec, OptimizerConfig, Recipe, Source
    from easylm_jax.experiment import programs_of
    from easylm_jax.plan import compile_cache, estimate, topology
    from easylm_jax.runtime import chips
    from easylm_jax.runtime.mesh import batch_split, make_mesh

    topo = topology.parse(pod)
    mesh = make_mesh("fsdp=-1", topo.devices())
    data = DataSpec((Source("shapes.jsonl"),), "hf:shapes", length, kind="chat", template="tulu", packing="best_fit")
    stage = SFT(
        "sft", model=model, data=data, batch=rows * batch_split(mesh), steps=1, optimizer=OptimizerConfig("1e-4"),
        compute=Compute(dtype="bfloat16", remat=remat, tile_kib=tile),
    )  # fmt: skip
    (planned,) = programs_of(stage, Recipe("pods", mesh="fsdp=-1", stages=(stage,)), mesh)
    found = compile_cache.compile_for(planned, topo, mesh, folder)
    row = {"model": model, "pod": pod, "length": length, "rows": rows, "remat": remat, "tile_kib": tile}
    if not found.fits:
        return {**row, "fits": False}
    seconds = [found.seconds.low, found.seconds.high]
    mfu = [estimate.utilisation(planned.flops, spent, topo) for spent in seconds[::-1]]
    ratio = None if published is None else [share / published for share in mfu]
    return {
        **row, "fits": True, "seconds": seconds, "mfu": mfu, "published": published, "ratio": ratio,
        "gibibytes": (found.peak or 0) / chips.GIB,
    }  # fmt: skip


def shown(row: dict[str, Any]) -> str:
    name = f"{row['model']:<13} {row['pod']:<10} {row['length']:>5} {row['rows']:>2} {row['remat']:<10}"
    tile = f" {row['tile_kib'] or '-':>6}"
    if not row["fits"]:
        return f"{name}{tile}  does not fit"
    low, high = row["seconds"]
    text = f"{name}{tile}  {low:.2f}-{high:.2f} s  MFU {100 * row['mfu'][0]:.1f}-{100 * row['mfu'][1]:.1f} %"
    text += f"  {row['gibibytes']:.1f} GiB"
    if row["ratio"]:
        text += f"  {row['ratio'][0]:.2f}-{row['ratio'][1]:.2f} of the published {100 * row['published']:.1f} %"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="only rows of this model")
    parser.add_argument("--pod", help="only rows of this pod")
    parser.add_argument("--out", default="runs/plans", help="where compiled plans are kept (default: runs/plans)")
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.model in (None, case[0]) and arguments.pod in (None, case[1])]
    if not cases:
        raise BenchmarkError("no row has this model and pod; --help shows where they stand")
    tpu_compiler()
    rows = []
    for case in cases:
        rows.append(projected(case, Path(arguments.out)))
        print(shown(rows[-1]), flush=True)
    print(json.dumps({"unit": "seconds, projected", "rows": rows}))


if __name__ == "__main__":
    run_main(main)
