"""Types of numeric fields that also say which values make sense, such as `every: Count = 1`.

A bound is part of the annotation (`typing.Annotated`), so it stands where the field is declared. `fields.check_types`
checks the bounds of every stage before any work. A number without a bound of its own must be finite.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The range of a number: at least `low` (or above `above`) and at most `high` (or below `below`).

    `infinite`: infinity is accepted too. NaN never is.
    """

    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    infinite: bool = False

    def broken(self, value: float) -> str | None:
        """What a number should be and is not, such as "of at least 1"; None if it lies in the range.

        Whole numbers must also fit 64 bits.
        """
        if isinstance(value, int) and abs(value) >= 2**63:
            return "of 64 bits"
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            return "that is finite"
        if self.low is not None and value < self.low:
            return f"of at least {self.low}"
        if self.above is not None and value <= self.above:
            return f"above {self.above}"
        if self.high is not None and value > self.high:
            return f"of at most {self.high}"
        return f"below {self.below}" if self.below is not None and value >= self.below else None


FINITE = Bounds()
Count = Annotated[int, Bounds(low=1, below=2**31)]  # steps and rows are counted in int32 on the devices
Natural = Annotated[int, Bounds(low=0, below=2**31)]
# jax.random.key takes 32 bits of a seed, so larger ones would repeat smaller ones; NumPy's seeds are not negative.
Seed = Annotated[int, Bounds(low=0, below=2**32)]
Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(low=0)]
Fraction = Annotated[float, Bounds(low=0, high=1)]
BelowOne = Annotated[float, Bounds(low=0, below=1)]
