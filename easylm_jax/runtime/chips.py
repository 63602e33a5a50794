"""Accelerators by name: peak FLOP/s, memory, bandwidth, interconnect. The one table for plans and for MFU."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from easylm_jax.runtime import chips as runtime_chips

if TYPE_CHECKING:
    import jax


# Dense bf16 FLOP/s of one JAX device, by the start of its `device_kind`, the longer names first. TPUs: the "System
# architecture" pages of the Cloud TPU documentation, figures of a chip; a device is one of two cores on v3 and one of
# two chiplets on v7. GPUs: NVIDIA's A100, H100 and H200 datasheets, figures without sparsity.
PEAK_FLOPS: dict[str, float] = {
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
    "TPU v7": 2307e12 / 2,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}


def device_peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device of this kind (`jax.Device.device_kind`), or None where the table lacks it."""
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if device_kind.lower().startswith(name.lower()):
            return PEAK_FLOPS[name]
    return None


def total_peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """FLOP/s of all these devices together, or None where a kind is unknown.

    A CPU has no figure in a table: it is measured, f32, once a process. Its simulated devices share the same cores, and
    so do processes on one machine, so that the measured figure stands for all of them together.
    """
    if devices[0].platform == "cpu":
        return measured_cpu_flops()
    peaks = [device_peak_flops(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if len(known) == len(peaks) else None


@functools.cache
def measured_cpu_flops(size: int = 1024, repeats: int = 5) -> float:
    """f32 FLOP/s of this machine: the fastest of a few square products, by XLA and by NumPy's BLAS; about 0.3 s."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    square = np.ones((size, size), np.float32)
    on_device = jax.device_put(square, jax.local_devices(backend="cpu")[0])
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    product(on_device).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        for multiply in (lambda: product(on_device).block_until_ready(), lambda: square @ square):
            start = time.perf_counter()
            multiply()
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


NANOSECOND = 1e9  # a GPU's `clock`: its roofline is counted in these


GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a generation as JAX sees it (half a chip on v3 and tpu7x).

    `memory` bytes that the compiler lets one program use, read from its own message when a program is too large;
    `flops` peak bfloat16 FLOP/s; `bandwidth` bytes/s of HBM; `link` bytes/s one way over one link between chips;
    `clock` Hz by which the compiler's cycles become seconds (peak FLOP/s over the width of the matrix units);
    `torus` dimensions; `per_chip` devices of a chip; `cores` that Google Cloud counts for a chip in its names.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    clock: float
    torus: int
    per_chip: int = 1
    cores: int = 1
    kernel_share: float = 0.5  # of peak that an attention kernel reaches; an assumption
    network: float = 6.25e9  # bytes/s of each device between slices or boxes: 50 Gb/s of a TPU's chip, an assumption
    platform: str = "tpu"
    options: tuple[tuple[str, str], ...] = ()  # for the description of the topology


_MEGACORE = (("chip_config_name", "megacore"),)  # both cores of a chip as one device
CHIPS: dict[str, Chip] = {
    "v3": Chip("v3", int(15.48 * GIB), 61.5e12, 450e9, 70e9, 0.94e9, 2, per_chip=2, cores=2),
    "v4": Chip(
        "v4", int(30.75 * GIB), 275e12, 1228e9, 45e9, 1.05e9, 3, cores=2, options=(("chip_config_name", "megacore"),)
    ),
    "v5e": Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 45e9, 1.5e9, 2),
    "v5p": Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 90e9, 1.75e9, 3, cores=2),
    "v6e": Chip("v6e", int(31.25 * GIB), 918e12, 1640e9, 90e9, 1.75e9, 2, kernel_share=0.4),
    "tpu7x": Chip("tpu7x", int(94.75 * GIB), 1153e12, 3690e9, 90e9, 2.2e9, 3, per_chip=2, kernel_share=0.4),
    # 80 GB; 450 GB/s each way over NVLink inside a box, 400 Gb/s of InfiniBand a GPU between boxes.
    "h100": Chip("h100", 80 * 10**9, 989e12, 3352e9, 225e9, runtime_chips.NANOSECOND, 1, network=50e9, platform="gpu"),
}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x", "7x": "tpu7x", "v7": "tpu7x", "ironwood": "tpu7x",
            "trillium": "v6e"}  # fmt: skip
