"""Checkpoints of several processes: what two processes wrote, one reads, and the other way round.

Run as a script, this file is one of the processes.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from easylm_jax.checkpoint import store

VALUES = {"rows": np.arange(64, dtype=np.float32).reshape(8, 8), "columns": np.arange(32, dtype=np.int32).reshape(4, 8)}


def one_process(folder: str, action: str, index: int, count: int, port: int) -> None:
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from easylm_jax.checkpoint.checkpointer import Checkpointer, Retention
    from easylm_jax.runtime.processes import barrier

    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, index)
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    specs = {"rows": P("x"), "columns": P(None, "x"), "step": P()}
    values = {**VALUES, "step": np.int32(3)}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    result = {"devices": jax.device_count()}
    with Checkpointer(folder, Retention(latest=2, history=2), when_busy="skip", deadline_seconds=60) as checkpointer:
        if action == "save":
            for step in range(4):
                state = {
                    "params": {
                        name: jax.make_array_from_callback(
                            np.shape(x), shardings[name], lambda i, x=x, step=step: (x + step)[i]
                        )
                        for name, x in values.items()
                    },
                    "host": np.int64(step),
                }
                checkpointer.save(step, state, {"data": {"step": step}}, name="last" if step == 3 else None)
                checkpointer.wait()
        else:
            wanted = {
                "params": {
                    name: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=shardings[name])
                    for name, x in values.items()
                },
                "host": np.int64(0),
            }
            restored, meta = checkpointer.restore(wanted)
            step = meta["data"]["step"]
            for name, x in values.items():
                for shard in restored["params"][name].addressable_shards:
                    np.testing.assert_array_equal(np.asarray(shard.data), (x + step)[shard.index])
            assert int(restored["host"]) == step
            result["step"] = step
        barrier("listing")  # process 0 alone deletes, after it has waited
        result["steps"] = checkpointer.steps()
    print(json.dumps(result))


def run_processes(folder: Path, action: str, count: int) -> list[dict]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), action, str(index), str(count), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(count)
    ]
    results = []
    try:
        for process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err[-3000:]
            results.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in running:
            process.kill()
            process.wait()
    return results


def test_two_processes_write_one_reads_and_falls_back_together(tmp_path):
    folder = tmp_path / "checkpoints"
    assert run_processes(folder, "save", 2) == [{"devices": 4, "steps": [2, 3]}] * 2
    assert store.committed_steps(folder / "history") == [0, 2]
    assert all(store.damage(folder / str(step)) == [] for step in (2, 3))
    assert store.read_manifest(folder / "3").name == "last"
    assert run_processes(folder, "restore", 1) == [{"devices": 2, "step": 3, "steps": [2, 3]}]
    # One flipped bit, seen by the one process whose share of the files it is in: both fall back.
    path = max((p for p in (folder / "3" / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert run_processes(folder, "restore", 2) == [{"devices": 4, "step": 2, "steps": [2]}] * 2


def test_one_process_writes_two_read(tmp_path):
    assert run_processes(tmp_path, "save", 1)[0]["devices"] == 2
    assert run_processes(tmp_path, "restore", 2) == [{"devices": 4, "step": 3, "steps": [2, 3]}] * 2


if __name__ == "__main__":
    one_process(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
