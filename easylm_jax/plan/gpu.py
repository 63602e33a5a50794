"""Plans for GPU nodes: compile-only GPU devices, without a GPU or a driver, and roofline times from the compiled HLO.

The CUDA compiler neither estimates cycles nor rejects programs that are too large. So peak memory is compared with the
GPU's memory, and times are a roofline: every fusion runs at the peak FLOP/s of its matrix products or at the memory
bandwidth, whichever takes longer. That is less accurate than the cycle estimates of the TPU compiler, and the program
differs from the one that would run: libraries that are selected by autotuning on a device (cuBLAS, cuDNN) are not
used, so attention is computed in blocks.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any

from easylm_jax.plan import hlo
from easylm_jax.runtime.chips import NANOSECOND, Chip

MATMUL_SHARE = 0.7  # of the peak FLOP/s that large matrix products reach; an assumption
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all",
         "iota", "partition-id")  # fmt: skip

# The device description that the compiler needs: an H100 SXM with 80 GB, as specified by its vendor and driver.
H100 = """
gpu_device_info {
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(nodes: int, gpus_per_node: int) -> list[Any]:
    """Compile-only GPU devices; raises an error of JAX if its CUDA compiler is not installed."""
    from jax.experimental import topologies

    topology = f"1x{nodes}x{gpus_per_node}"
    return list(topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=topology).devices)


class GpuProgram(hlo.HloProgram):
    """The HLO text of a program compiled for GPUs."""

    def _trips(self, condition: str, body: str) -> int:
        loops = (op for own in self.computations.values() for op in own if op.opcode == "while")
        text = next((op.text for op in loops if re.search(rf"body=%?{re.escape(body)}\b", op.text)), "")
        known = _TRIPS.search(text)
        return int(known[1]) if known else super()._trips(condition, body)

    def _collective(self, op: Any, kind: str, times: int, overlapped: bool) -> hlo.Collective:
        """On GPUs every collective has a start operation; synchronous ones are marked `is_sync`."""
        found = super()._collective(op, kind, times, overlapped)
        synchronous = '"is_sync":true' in op.text
        return dataclasses.replace(found, overlapped=not synchronous)

    def roofline(self, chip: Chip) -> hlo.Costs:
        """Like `costs`, with the nanoseconds of the roofline in place of cycles."""
        costs = self.costs()
        times: collections.Counter[str] = collections.Counter()
        self._count(self.entry, 1, times)
        total = copies = 0.0
        hottest: collections.Counter[str] = collections.Counter()
        for name, count in times.items():
            if name in self._fused:
                continue
            for op in self.computations[name]:
                nanoseconds = count * self._nanoseconds(op, chip)
                total += nanoseconds
                copies += nanoseconds if op.opcode == "copy" else 0.0
                hottest[hlo._source_location(op)] += round(nanoseconds)
        return hlo.Costs(
            round(total), round(copies), 0.0, costs.matmul_flops, costs.collectives, tuple(hottest.most_common(12))
        )

    def _nanoseconds(self, op: Any, chip: Chip) -> float:
        kind = op.opcode.removesuffix("-start").removesuffix("-done")
        if op.opcode in _FREE or kind in hlo._COLLECTIVES or op.opcode.startswith("async"):
            return 0.0
        flops, todo = self._matmul_flops(op), hlo._CALLS.findall(op.text) if op.opcode == "fusion" else []
        while todo:
            body = self.computations.get(todo.pop(), [])
            flops += sum(self._matmul_flops(inner) for inner in body)
            todo += [called for inner in body if inner.opcode == "fusion" for called in hlo._CALLS.findall(inner.text)]
        moved = self._size(op.text) + sum(self._size(self.shapes.get(name, "")) for name in hlo._operands(op.text))
        return NANOSECOND * max(flops / (chip.flops * MATMUL_SHARE), moved / chip.bandwidth)

    @staticmethod
    def _size(text: str) -> int:
        return sum(hlo._bytes(kind, dims) for kind, dims in hlo._SHAPE.findall(hlo._result(text)))
