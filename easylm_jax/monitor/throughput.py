"""Tokens a second and model FLOP/s utilisation (MFU): what the hardware could do and how much of it the model used.

MFU counts the arithmetic that the mathematics needs, whatever the program does: three times the forward pass (one for
it, two for the gradients), the products of parameters that a token meets, and attention over the keys a token can see.
Recomputation, norms, masks and the embedding look-up are not counted; the vocabulary head is (PaLM, arXiv 2204.02311,
appendix B, with causal and sliding-window attention counted as computed).
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

    from models.config import DecoderConfig

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


def matmul_parameters(config: DecoderConfig) -> int:
    """Parameters that one token is multiplied by: projections, feed-forward and head, not the embedding table."""
    attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    feed_forward = 3 * config.width * config.ffn
    return config.layers * (attention + feed_forward) + config.width * config.vocab


def mean_visible_keys(sequence_length: int, window: int | None) -> float:
    """Keys that a token sees, itself included, averaged over the positions of a sequence."""
    window = min(window or sequence_length, sequence_length)
    growing = window * (window + 1) / 2  # the first `window` positions see 1, 2, …, window keys
    return (growing + (sequence_length - window) * window) / sequence_length


def model_flops_per_token(config: DecoderConfig, sequence_length: int) -> float:
    """FLOPs of the forward pass for each token of a sequence of this length.

    Two for each parameter met, and 4·heads·head_dim for each key seen (scores and weighted values). Packed rows are
    counted as one document: where they hold several short ones, the true attention is less.
    """
    per_key = 4 * config.heads * config.head_dim
    attention = sum(per_key * mean_visible_keys(sequence_length, window) for window in config.pattern)
    return 2 * matmul_parameters(config) + attention


def mfu(flops_per_token: float, tokens_per_second: float, peak_flops: float | None, *, passes: int = 3) -> float | None:
    """The share (0 to 1) of `peak_flops` that goes into the model; None where the peak is unknown.

    `flops_per_token` is the forward pass's; `passes` is 3 for training and 1 for scoring.
    """
    return None if peak_flops is None else passes * flops_per_token * tokens_per_second / peak_flops


class Throughput:
    """Tokens a second over the last `window` steps, weighted by their length in seconds.

    The caller leaves out what is no ordinary step, such as the first one, which compiles.
    """

    def __init__(self, window: int = 20, *, flops_per_token: float | None = None, peak_flops: float | None = None):
        self._steps: deque[tuple[int, float]] = deque(maxlen=window)
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops

    def update(self, tokens: int, seconds: float) -> None:
        """Adds a step that trained on this many tokens, all hosts together, in this many seconds."""
        self._steps.append((tokens, seconds))

    @property
    def tokens_per_second(self) -> float | None:
        """None before the first step."""
        seconds = sum(seconds for _, seconds in self._steps)
        return sum(tokens for tokens, _ in self._steps) / seconds if seconds > 0 else None

    @property
    def mfu(self) -> float | None:
        """None before the first step, or where the model's FLOPs or the peak are unknown."""
        rate = self.tokens_per_second
        if rate is None or self._flops_per_token is None:
            return None
        return mfu(self._flops_per_token, rate, self._peak_flops)

    def metrics(self) -> dict[str, Any]:
        """`tokens_per_second` and `mfu`, as a metrics line has them."""
        return {"tokens_per_second": self.tokens_per_second, "mfu": self.mfu}
