"""A step of decoding on TPU pods, projected from the compiled program: OLMo 2 7B over a full cache.

    python benchmarks/decode_pods.py                       # the table of docs/decoding.md
    python benchmarks/decode_pods.py --layers 4 --plain    # fewer layers; the path without the kernel beside it

Needs the TPU compiler (pip install 'jax[tpu]'), no TPU. Nothing is measured: seconds are `easylm plan`'s projection of
a block of 32 tokens, divided by 32. The floor is the time to read the weights and the cache once from memory.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from common import run_main, tpu_compiler

# pod, mesh, rows that are decoded at once
CASES = (
    ("v5p:2x2x1", "tp=4", 64), ("v5p:2x2x1", "tp=4", 128), ("v5p:2x2x1", "tp=4", 256),
    ("v5e:4x4", "tp=16", 64), ("v5e:4x4", "tp=16", 128), ("v5e:4x4", "dp=4,tp=4", 128),
)  # fmt: skip
MODEL = "allenai/OLMo-2-1124-7B-SFT"


def compiled(pod: str, mesh_text: str, rows: int, columns: int, layers: int, plain: bool) -> dict[str, Any]:
    """One case: bytes that a step must read, its floor, the projection and the peak."""
    import jax

    from easylm_jax.plan import estimate, hlo, programs, shapes, topology
    from easylm_jax.runtime.compiler import peak_bytes
    from easylm_jax.runtime.mesh import make_mesh
    from models.config import Compute

    topo = topology.parse(pod)
    mesh = make_mesh(mesh_text, topo.devices())
    source = programs.abstract_model(
        shapes.published_config(MODEL).replace(layers=layers),
        Compute(dtype="bfloat16", attention="blocked" if plain else "auto"), mesh,
    )  # fmt: skip
    found = programs.decoding(source, mesh, rows, columns, rows, columns // 2, {})
    decode = next(one for one in found if one.name == "decode")
    row: dict[str, Any] = {"pod": pod, "mesh": mesh_text, "rows": rows, "path": "plain" if plain else "kernel"}
    read = decode.min_bytes / decode.trip_count
    floor = read / topo.chip.bandwidth
    row |= {"gigabytes": read / 1e9, "floor_ms": floor * 1e3}
    try:
        with jax.set_mesh(mesh):
            made = decode.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return row | {"fits": False, "says": " ".join(str(error).split())[:160]}
    program = hlo.HloProgram(made.as_text(), decode.trip_count)
    block = estimate.seconds(program.costs(), topo).high
    program.trip_count += 1  # a token more, by which work of every token is told from that of a block
    longer = estimate.seconds(program.costs(), topo).high
    step = block / decode.trip_count
    return row | {
        "fits": True, "step_ms": step * 1e3, "ratio": step / floor,
        "once_a_block_ms": (block - decode.trip_count * (longer - block)) * 1e3,
        "peak_gib": peak_bytes(made) / 2**30,
        "arguments_gib": made.memory_analysis().argument_size_in_bytes / 2**30,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="A step of decoding on TPU pods, projected")
    parser.add_argument("--columns", type=int, default=2048, help="tokens in the cache of each row")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--plain", action="store_true", help="also the path without the kernel")
    options = parser.parse_args()
    tpu_compiler()
    rows = []
    for case in CASES:
        for plain in (True, False) if options.plain else (False,):
            rows.append(compiled(*case, options.columns, options.layers, plain))
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    worst = max((row["ratio"] for row in rows if row["path"] == "kernel" and row["fits"]), default=None)
    print(json.dumps({"worst_ratio": worst, "model": MODEL, "layers": options.layers, "columns": options.columns,
                      "cases": rows}))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
