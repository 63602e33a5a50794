"""Estimates how long a recipe takes on this machine: the length stated in the recipe times the time of a probe.

The length (`Recipe.length`) is in runs of `reference_program` and was measured once: the seconds of all stages divided
by the seconds of the probe just before. Both depend on the speed and the load of the machine, so their ratio is roughly
the same elsewhere. The estimate is rough, because compilation and disks do not scale like matrix products.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    import numpy as np

REPEATS = 15  # timed runs after the one that compiles; together a fraction of a second on an idle core


def probe() -> float:
    """Median seconds of one run of `reference_program` and its gradient on the first device."""
    import jax

    device = jax.local_devices()[0]
    arguments = [jax.device_put(array, device) for array in _arrays()]
    program = jax.jit(jax.grad(reference_program))
    jax.block_until_ready(program(*arguments))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def reference_program(weights: dict[str, Any], rows: jax.Array, targets: jax.Array) -> jax.Array:
    """The cross-entropy of a small feed-forward network; its gradient is timed."""
    import jax
    import jax.numpy as jnp

    hidden = rows
    for up, down in weights["blocks"]:
        hidden = hidden + jax.nn.silu(hidden @ up) @ down
    chosen = jnp.take_along_axis(jax.nn.log_softmax(hidden @ weights["head"]), targets[:, None], axis=1)
    return -chosen.mean()


def _arrays() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Weights, rows and targets: 1,024 tokens through two blocks of width 128."""
    import numpy as np

    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * shape[0] ** -0.5

    weights = {"blocks": [(normal(128, 512), normal(512, 128)) for _ in range(2)], "head": normal(128, 512)}
    return weights, normal(1024, 128), rng.integers(0, 512, 1024)


def announcement(length: float, seconds_of_probe: float) -> str:
    """The message at the start of a run: the estimated duration for this length and time of the probe."""
    minutes = length * seconds_of_probe / 60
    shown = (
        "less than a minute" if minutes < 0.75 else f"about {minutes:.0f} minute{'s' if round(minutes) != 1 else ''}"
    )
    return f"takes {shown} on this machine at its current load (estimated by a probe: {1000 * seconds_of_probe:.1f} ms)"
