"""How long a whole recipe takes on this machine: a length that the recipe states, times a probe that is timed here.

A recipe states its length in runs of `reference_program` (`Recipe.length`), as it was measured once: the seconds that
all stages took, over the seconds of the probe just before. Both go up and down with a machine's speed, and with what
else it is doing, so that their ratio can be told elsewhere. It is a rough guess (compiling and disks do not scale like
products of matrices), and is told as such.
"""

from __future__ import annotations

import statistics
import time

REPEATS = 15  # of the program, after one that compiles it: a fraction of a second on a quiet core


def probe() -> float:
    """Seconds of one run of `reference_program` on this machine's first device, the median of a few."""
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


def reference_program(weights, rows, targets):
    """A feed-forward block and a vocabulary's cross-entropy at a small size; its gradient is what is timed."""
    import jax
    import jax.numpy as jnp

    hidden = rows
    for up, down in weights["blocks"]:
        hidden = hidden + jax.nn.silu(hidden @ up) @ down
    chosen = jnp.take_along_axis(jax.nn.log_softmax(hidden @ weights["head"]), targets[:, None], axis=1)
    return -chosen.mean()


def _arrays() -> tuple:
    """Weights, rows and targets: 1,024 tokens through two blocks of width 128."""
    import numpy as np

    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * shape[0] ** -0.5

    weights = {"blocks": [(drawn(128, 512), drawn(512, 128)) for _ in range(2)], "head": drawn(128, 512)}
    return weights, drawn(1024, 128), rng.integers(0, 512, 1024)


def announcement(length: float, seconds_of_probe: float) -> str:
    """The line at the start of a run: how long a recipe of this length takes where the probe takes so long."""
    minutes = length * seconds_of_probe / 60
    shown = (
        "less than a minute" if minutes < 0.75 else f"about {minutes:.0f} minute{'s' if round(minutes) != 1 else ''}"
    )
    return f"this takes {shown} on this machine as busy as it is now (by a probe of {1000 * seconds_of_probe:.1f} ms)"
