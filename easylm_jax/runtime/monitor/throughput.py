"""Tokens per second and model FLOP/s utilisation (MFU), the share of the hardware's peak that the model uses.

MFU counts the FLOPs that the model needs, whatever the program computes: three times the forward pass (one for it, two
for the gradients), with the matrix products of the parameters that a token is multiplied by, and attention over the
keys that a token can see. Recomputation, norms, masks and the embedding look-up are not counted; the vocabulary head is
(PaLM, arXiv 2204.02311, appendix B, with causal and sliding-window attention counted as computed).
"""

from __future__ import annotations

from collections import deque
from typing import Any


def mfu(flops_per_token: float, tokens_per_second: float, peak_flops: float | None, *, passes: int = 3) -> float | None:
    """Model FLOP/s over `peak_flops` (0 to 1); None if the peak is unknown.

    `flops_per_token` is that of the forward pass; `passes` is 3 for training and 1 for scoring.
    """
    return None if peak_flops is None else passes * flops_per_token * tokens_per_second / peak_flops


class Throughput:
    """Tokens per second over the last `window` steps, weighted by their duration.

    The caller leaves out steps that are not representative, such as the first one, which compiles.
    """

    def __init__(self, window: int = 20, *, flops_per_token: float | None = None, peak_flops: float | None = None):
        self._steps: deque[tuple[int, float]] = deque(maxlen=window)
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops

    def update(self, tokens: int, seconds: float) -> None:
        """Adds a step that trained on `tokens` tokens, summed over all hosts, in `seconds` seconds."""
        self._steps.append((tokens, seconds))

    @property
    def tokens_per_second(self) -> float | None:
        """None before the first step."""
        seconds = sum(seconds for _, seconds in self._steps)
        return sum(tokens for tokens, _ in self._steps) / seconds if seconds > 0 else None

    @property
    def mfu(self) -> float | None:
        """None before the first step, or if the model's FLOPs or the peak are unknown."""
        rate = self.tokens_per_second
        if rate is None or self._flops_per_token is None:
            return None
        return mfu(self._flops_per_token, rate, self._peak_flops)

    def metrics(self) -> dict[str, Any]:
        """`tokens_per_second` and `mfu`, for a metrics line."""
        return {"tokens_per_second": self.tokens_per_second, "mfu": self.mfu}
