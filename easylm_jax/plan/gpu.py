"""Boxes of GPUs: compile-only devices with no GPU and no driver, and what their compiler's text says of time.

The CUDA compiler tells neither cycles nor a refusal of programs that are too large. So memory is compared with the
GPU's own, and seconds are a roofline: every fusion at the peak rate of its products or of its bytes, whichever takes
longer. That is weaker than the cycles of a TPU's compiler, and the program is not quite the one that would run:
libraries that are chosen by trying on a device (cuBLAS, cuDNN) are absent, so attention is computed in blocks.
"""

from __future__ import annotations

import collections
import re
from typing import TYPE_CHECKING, Any

from easylm_jax.plan import hlo

if TYPE_CHECKING:
    from easylm_jax.runtime.chips import Chip
from easylm_jax.runtime.chips import NANOSECOND

REACHED = 0.7  # of the peak that large products reach; an assumption
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all",
         "iota", "partition-id")  # fmt: skip

# An H100 SXM with 80 GB as its vendor and its driver describe it: what the compiler wants to know of the device.
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


def devices(boxes: int, each: int) -> list[Any]:
    """Compile-only GPUs; raises what JAX does where its CUDA compiler is not installed."""
    from jax.experimental import topologies

    topology = f"1x{boxes}x{each}"
    return list(topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=topology).devices)


class Program(hlo.Program):
    """The text of a program that was compiled for GPUs."""

    def _trips(self, condition: str, body: str) -> int:
        loops = (it for own in self.computations.values() for it in own if it.opcode == "while")
        mine = next((it.text for it in loops if re.search(rf"body=%?{re.escape(body)}\b", it.text)), "")
        told = _TRIPS.search(mine)
        return int(told[1]) if told else super()._trips(condition, body)

    def _collective(self, it: Any, kind: str, times: int, aside: bool) -> hlo.Collective:
        """Every collective has a start; one that is waited for at once says so."""
        found = super()._collective(it, kind, times, aside)
        waited = '"is_sync":true' in it.text
        return hlo.Collective(found.kind, found.bytes, found.group, found.times, not waited, found.name)

    def roofline(self, chip: Chip) -> hlo.Costs:
        """`costs`, with nanoseconds of the roofline as cycles."""
        told = self.costs()
        times: collections.Counter[str] = collections.Counter()
        self._count(self.entry, 1, times)
        spent = copies = 0.0
        hottest: collections.Counter[str] = collections.Counter()
        for name, count in times.items():
            if name in self._fused:
                continue
            for it in self.computations[name]:
                own = count * self._nanoseconds(it, chip)
                spent += own
                copies += own if it.opcode == "copy" else 0.0
                hottest[hlo._place(it)] += round(own)
        return hlo.Costs(
            round(spent), round(copies), 0.0, told.matmul_flops, told.collectives, tuple(hottest.most_common(12))
        )

    def _nanoseconds(self, it: Any, chip: Chip) -> float:
        kind = it.opcode.removesuffix("-start").removesuffix("-done")
        if it.opcode in _FREE or kind in hlo._COLLECTIVES or it.opcode.startswith("async"):
            return 0.0
        flops, todo = self._products(it), hlo._CALLS.findall(it.text) if it.opcode == "fusion" else []
        while todo:
            inside = self.computations.get(todo.pop(), [])
            flops += sum(self._products(one) for one in inside)
            todo += [called for one in inside if one.opcode == "fusion" for called in hlo._CALLS.findall(one.text)]
        moved = self._size(it.text) + sum(self._size(self.shapes.get(name, "")) for name in hlo._operands(it.text))
        return NANOSECOND * max(flops / (chip.flops * REACHED), moved / chip.bandwidth)

    @staticmethod
    def _size(text: str) -> int:
        return sum(hlo._bytes(kind, dims) for kind, dims in hlo._SHAPE.findall(hlo._result(text)))
