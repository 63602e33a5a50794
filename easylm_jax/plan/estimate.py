"""Projects the run time of a compiled program from its costs, as an interval; nothing is measured.

    compute   the compiler's estimated cycles over the clock rate
    kernels   FLOPs over an assumed share of the peak, or declared bytes over the memory bandwidth, whichever takes
              longer (the compiler estimates no cycles for kernels)
    network   bytes of collectives over the bandwidth of the torus links
    high      the sum of all of them; low: overlapped collectives cost nothing unless they take longer than the rest

This was not validated on a real TPU. Compared with published throughputs of similar runs, projections are 3 to 20 % too
slow. Not modelled: the input pipeline, stragglers, contention.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.plan.hlo import Costs
from easylm_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds of one run of a program. `exposed`: collectives that compute waits for; `hidden`: overlapped ones."""

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
    """The projected time of one run of a program."""
    chip = topology.chip
    slice_devices = topology.count // topology.slices
    wire = {False: 0.0, True: 0.0}
    for collective in costs.collectives:
        group = collective.group
        across = group > slice_devices or (topology.slices > 1 and group == topology.slices)
        bandwidth = chip.network if across else link_bandwidth(topology)
        wire[collective.overlapped] += collective.times * collective.wire_bytes / bandwidth
    kernels = sum(
        max(flops / (chip.flops * chip.kernel_share), moved / chip.bandwidth) for flops, moved in costs.kernels
    )
    return Seconds(costs.cycles / chip.clock, kernels, wire[False], wire[True])


def link_bandwidth(topology: Topology) -> float:
    """Bytes/s that one device sends over all of its torus links at once; devices of one chip share its links.
    A dimension of size 1 has no link."""
    dims = sum(size > 1 for size in topology.shape)
    return topology.chip.link * 2 * max(1, dims) / topology.chip.per_chip


def utilisation(flops: float, seconds: float, topology: Topology) -> float:
    """MFU: model FLOPs of one device over its peak FLOPs in that time."""
    return flops / (seconds * topology.chip.flops) if seconds else 0.0
