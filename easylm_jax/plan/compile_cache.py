"""Compiles one program for a pod and caches its memory and costs on disk, by a hash of all that they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import jax

from easylm_jax.plan import estimate, gpu, hlo
from easylm_jax.plan.programs import Program
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime import files
from easylm_jax.runtime.chips import GIB
from easylm_jax.runtime.compiler import peak_bytes
from models import reading

VERSION = 6  # of cached results; increase it when the parser or the cost model changes
_NEEDED = re.compile(r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)|[Uu]sed ([\d.]+)([KMGT]?) of")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The memory and costs of a compiled program, per device and for one run. All but `fits` and `peak` are zero if it
    does not fit.

    Attributes:
        fits: whether the program alone fits on the device.
        peak: peak memory in bytes, including arguments; if it does not fit, the bytes it would need, or None if the
            compiler does not report them.
        flops: FLOPs that the program executes.
        compute, kernels, exposed, hidden: see `estimate.Seconds`.
        copies: seconds of plain copies, part of `compute`.
        hottest: (source location, seconds) of the most expensive operations.
        host: bytes of arguments in host memory.
        kernel_runs: (name, runs) of the Pallas kernels in the compiled text.
    """

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
    kernel_runs: tuple[tuple[str, int], ...] = ()

    @property
    def seconds(self) -> estimate.Seconds:
        return estimate.Seconds(self.compute, self.kernels, self.exposed, self.hidden)


def compile_for(program: Program, topology: Topology, mesh: jax.sharding.Mesh, folder: Path) -> Compiled:
    """Compiles a program for the devices of `mesh`, those of the pod, or reads the result cached in `folder`."""
    try:
        with jax.set_mesh(mesh):
            lowered = program.lower()
    except jax.errors.JaxRuntimeError as error:
        return _too_large(error)
    key = _key(lowered, topology, program)
    path = folder / f"{key}.json"
    cached = _cached(path)
    if cached is not None:
        return cached
    compiled = _compile(lowered, topology, mesh, program.trip_count)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, dataclasses.asdict(compiled))
    return compiled


def _key(lowered: jax.stages.Lowered, topology: Topology, program: Program) -> str:
    """A hash of the program's text (with shapes, shardings and donations), the pod, the compiler and its options."""
    from importlib.metadata import version

    hashed = hashlib.sha256()
    compiler = "jax-cuda12-pjrt" if topology.chip.platform == "gpu" else "libtpu"
    options = sorted((program.options or {}).items())
    for part in (VERSION, topology.name, jax.__version__, version(compiler), program.trip_count, *options):
        hashed.update(f"{part}\n".encode())
    hashed.update(lowered.as_text().encode())
    return hashed.hexdigest()[:24]


def _compile(lowered: jax.stages.Lowered, topology: Topology, mesh: jax.sharding.Mesh, trip_count: int) -> Compiled:
    try:
        with jax.set_mesh(mesh):
            executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return _too_large(error)
    memory: Any = executable.memory_analysis()
    text = executable.as_text()
    assert text is not None
    peak = peak_bytes(executable, topology.chip.platform)
    if topology.chip.platform == "gpu":  # the CUDA compiler does not reject large programs
        if peak > topology.chip.memory:
            return Compiled(False, peak)
        costs = gpu.GpuProgram(text, trip_count).roofline(topology.chip)
    else:
        costs = hlo.HloProgram(text, trip_count).costs()
    seconds = estimate.seconds(costs, topology)
    clock = topology.chip.clock
    return Compiled(
        True, peak, costs.matmul_flops + costs.kernel_flops,
        seconds.compute, seconds.kernels, seconds.exposed, seconds.hidden,
        costs.copy_cycles / clock, tuple((name, cycles / clock) for name, cycles in costs.hottest),
        memory.host_argument_size_in_bytes, costs.kernel_runs,
    )  # fmt: skip


def _too_large(error: Exception) -> Compiled:
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return Compiled(False, _bytes_needed(str(error)))


def _bytes_needed(message: str) -> int | None:
    """The bytes that a program would need, parsed from the compiler's out-of-memory error; None if it has none."""
    found = _NEEDED.search(message)
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * _UNITS[unit])


def _cached(path: Path) -> Compiled | None:
    """The result in a file of the cache; None if there is none or it is damaged, so that the program is compiled."""
    if not path.is_file():
        return None
    try:
        compiled = _from_json(reading.read_json(path))
    except (reading.Damaged, KeyError, TypeError, ValueError):
        return None
    return compiled if reading.fault_of_fields(compiled) is None else None


def _from_json(cached: dict[str, Any]) -> Compiled:
    pairs = {name: tuple((key, value) for key, value in cached[name]) for name in ("hottest", "kernel_runs")}
    return Compiled(**{**cached, **pairs})
