"""From a compiled program's costs to seconds: an interval, never a measured number.

    compute   cycles that the compiler estimates, over the clock
    kernels   their FLOPs over the peak and an assumed share of it, or the bytes that they declare over the memory's
              bandwidth, whichever takes longer (the compiler tells no cycles for kernels)
    network   bytes on the wire over the links of the torus
    high      all of them one after the other; low: overlapped collectives wholly hidden

Nothing here was compared with a real TPU. Beside published throughputs of comparable runs the method came out 3 to 20 %
slow. Left out: the host's input, stragglers, contention.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.plan.hlo import Costs
from easylm_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of one run of a program. `exposed` and `hidden`: collectives that compute waits for, and those it does not."""

    compute: float
    kernels: float
    exposed: float
    hidden: float

    @property
    def low(self) -> float:
        return max(self.compute + self.kernels + self.exposed, self.hidden)

    @property
    def high(self) -> float:
        return self.compute + self.kernels + self.exposed + self.hidden


def seconds(costs: Costs, topology: Topology) -> Seconds:
    """The projection for one run of a program."""
    chip = topology.chip
    slice_devices = topology.count // topology.slices
    wire = {False: 0.0, True: 0.0}
    for it in costs.collectives:
        across = it.group > slice_devices or (topology.slices > 1 and it.group == topology.slices)
        wire[it.overlapped] += it.times * it.wire / (chip.network if across else links(topology))
    kernels = sum(
        max(flops / (chip.flops * chip.kernel_share), moved / chip.bandwidth) for flops, moved in costs.kernels
    )
    return Seconds(costs.cycles / chip.clock, kernels, wire[False], wire[True])


def links(topology: Topology) -> float:
    """Bytes/s that one device sends over all links of its torus at once; half of a chip's where two share it. A side
    of 1 has no link."""
    dims = sum(size > 1 for size in topology.shape)
    return topology.chip.link * 2 * max(1, dims) / topology.chip.per_chip


def utilisation(flops: float, seconds: float, topology: Topology) -> float:
    """Model FLOPs (of one device) over what its peak would do in that time (MFU)."""
    return flops / (seconds * topology.chip.flops) if seconds else 0.0
