"""One program compiled for a pod: what it needs and what it costs, kept on disk under a hash of all that decides it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax

from easylm_jax.plan import estimate, gpu, hlo
from easylm_jax.plan.programs import PlannedProgram
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime import files
from easylm_jax.runtime.chips import GIB
from easylm_jax.runtime.compiler import peak_bytes

VERSION = 4  # of what is kept; goes up with the parser and the method
_NEEDED = re.compile(r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)|[Uu]sed ([\d.]+)([KMGT]?) of")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """`peak` bytes on one device while the program runs, its arguments among them (of one that does not fit, what the
    compiler says it would need; None where it does not say); `fits` alone on the device. The rest is of one run on one
    device, and zero where it does not fit: `flops` that it does, `seconds`, the hottest places, `host` bytes of its
    arguments that lie in the host's memory."""

    fits: bool
    peak: int | None
    flops: float = 0.0
    compute: float = 0.0
    kernels: float = 0.0
    exposed: float = 0.0
    hidden: float = 0.0
    copies: float = 0.0
    hottest: tuple[tuple[str, float], ...] = ()
    host: int = 0

    @property
    def seconds(self) -> estimate.Seconds:
        return estimate.Seconds(self.compute, self.kernels, self.exposed, self.hidden)


def compile_for(planned: PlannedProgram, topology: Topology, mesh: jax.sharding.Mesh, folder: Path) -> Compiled:
    """Compiles a program for the devices of `mesh`, which are the pod's, or reads what that gave the last time."""
    try:
        with jax.set_mesh(mesh):
            lowered = planned.lower()
    except jax.errors.JaxRuntimeError as error:
        return _too_large(error)
    key = _key(lowered, topology, planned)
    path = folder / f"{key}.json"
    if path.is_file():
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    found = _compiled(lowered, topology, mesh, planned.rounds)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, dataclasses.asdict(found))
    return found


def _key(lowered: jax.stages.Lowered, topology: Topology, planned: PlannedProgram) -> str:
    """Of the program's text (shapes, shardings and donations are in it), the pod, the compiler and what it is told."""
    from importlib.metadata import version

    hashed = hashlib.sha256()
    compiler = "jax-cuda12-pjrt" if topology.chip.platform == "gpu" else "libtpu"
    told = sorted((planned.options or {}).items())
    for part in (VERSION, topology.name, jax.__version__, version(compiler), planned.rounds, *told):
        hashed.update(f"{part}\n".encode())
    hashed.update(lowered.as_text().encode())
    return hashed.hexdigest()[:24]


def _compiled(lowered: jax.stages.Lowered, topology: Topology, mesh: jax.sharding.Mesh, rounds: int) -> Compiled:
    try:
        with jax.set_mesh(mesh):
            program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return _too_large(error)
    memory = program.memory_analysis()
    if topology.chip.platform == "gpu":  # its compiler refuses nothing and tells no peak
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        peak -= memory.alias_size_in_bytes
        if peak > topology.chip.memory:
            return Compiled(False, peak)
        costs = gpu.Program(program.as_text(), rounds).roofline(topology.chip)
    else:
        peak = peak_bytes(program)
        costs = hlo.Program(program.as_text(), rounds).costs()
    spent = estimate.seconds(costs, topology)
    clock = topology.chip.clock
    return Compiled(
        True, peak, costs.matmul_flops + costs.kernel_flops, spent.compute, spent.kernels, spent.exposed, spent.hidden,
        costs.copy_cycles / clock, tuple((name, cycles / clock) for name, cycles in costs.hottest),
        memory.host_argument_size_in_bytes,
    )  # fmt: skip


def _too_large(error: Exception) -> Compiled:
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return Compiled(False, _told(str(error)))


def _told(message: str) -> int | None:
    """The bytes that a program would need, from what the compiler says when it gives up."""
    found = _NEEDED.search(message)
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * _UNITS[unit])


def _from_json(kept: dict[str, Any]) -> Compiled:
    return Compiled(**{**kept, "hottest": tuple((name, spent) for name, spent in kept["hottest"])})
