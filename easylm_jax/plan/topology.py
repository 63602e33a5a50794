"""Pod topologies by name, and compile-only devices for them, without the hardware.

    v5p:4x4x4        64 chips by the shape of their torus; v5p-128 in Google Cloud's names (two cores per chip)
    v5e:16x16*2      two slices connected by the data-centre network
    h100:8*4         four nodes of eight GPUs (`gpu`)

The memory that the compiler allows, and the meaning of its figures, were determined by compiling (jax 0.10, libtpu
0.0.42); peak FLOP/s, bandwidths and link speeds are Google's published ones for each generation.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from typing import Any

from easylm_jax.plan import gpu
from easylm_jax.runtime.chips import ALIASES, CHIPS, Chip
from models.errors import UserError

_SHAPES = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices, each a torus of `shape` chips."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}" + (f"*{self.slices}" if self.slices > 1 else "")

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def count(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.per_chip

    def devices(self) -> list[Any]:
        """`count` compile-only devices of the pod.

        Raises:
            UserError: the compiler is not installed, has another version, or does not support this shape.
        """
        if self.chip.platform == "gpu":
            try:
                return gpu.devices(self.slices, self.shape[0])
            except Exception as error:
                raise UserError(
                    f"topology {self.name}: planning for GPUs needs their compiler: pip install "
                    f"'easylm_jax[gpu]' (no GPU is needed): {' '.join(str(error).split())[:120]}"
                ) from error
        from jax.experimental import topologies

        # No slice is smaller than a host, 2x2 chips; a single chip is the first of these.
        small = math.prod(self.shape) < 4
        shape = (2, 2, *(1,) * (self.chip.torus - 2)) if small else self.shape
        options: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        try:
            described = topologies.get_topology_desc(
                f"{self.chip.name}:{'x'.join(map(str, shape))}", "tpu", **options, **dict(self.chip.options)
            )  # fmt: skip
        except Exception as error:
            raise _no_compiler(error, self.name) from error
        return list(described.devices)[: self.count]


def parse(text: str) -> Topology:
    """A topology by its name.

    Raises:
        UserError: there is no such topology; the message suggests the closest name.
    """
    wanted = text.strip().lower()
    named, _, slices = wanted.partition("*")
    if slices and not (slices.isdecimal() and int(slices) > 0):
        raise UserError(f"topology {text!r}: after * comes the number of slices, such as v5e:16x16*2")
    found = re.fullmatch(r"([a-z0-9]+)(?:[:-])(.+)", named)
    generation = ALIASES.get(found[1], found[1]) if found else None
    if generation not in CHIPS:
        close = difflib.get_close_matches(wanted.split(":")[0].split("-")[0], [*CHIPS, *ALIASES], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the generations are {', '.join(CHIPS)};"
        raise UserError(f"topology {text!r}: {hint} write for example v5p:4x4x4, v5e:16x16 or v5p-128")
    assert found is not None and generation is not None
    chip = CHIPS[generation]
    if chip.platform == "gpu":
        if found[2] not in ("1", "2", "4", "8"):
            raise UserError(
                f"topology {text!r}: give 1, 2, 4 or 8 GPUs per node and after * the nodes, such as {chip.name}:8*4"
            )
        return Topology(chip, (int(found[2]),), int(slices or 1))
    shape = _shape(text, chip, found[2])
    return Topology(chip, shape, int(slices or 1))


def _shape(text: str, chip: Chip, rest: str) -> tuple[int, ...]:
    if rest.isdecimal():
        chips, left = divmod(int(rest), chip.cores)
        known = {math.prod(shape): shape for shape in sizes(chip)}
        if left or chips not in known:
            names = [f"{chip.name}-{count * chip.cores}" for count in known]
            near = min(known, key=lambda count: abs(count * chip.cores - int(rest)))
            raise UserError(
                f"topology {text!r}: no slice has {rest} {'cores' if chip.cores > 1 else 'chips'}; the nearest is "
                f"{chip.name}-{near * chip.cores} ({', '.join(names[:4])}, …, {names[-1]})"
            )
        return known[chips]
    parts = _SHAPES.fullmatch(rest)
    dims = tuple(int(part) for part in parts.groups() if part) if parts else ()
    if len(dims) != chip.torus or not all(dims):
        example = "4x4x4" if chip.torus == 3 else "16x16"
        raise UserError(f"topology {text!r}: {chip.name} has a torus of {chip.torus} dimensions, such as {example}")
    if math.prod(dims) > 1 and (dims[0] % 2 or dims[1] % 2):
        raise UserError(f"topology {text!r}: a host has 2x2 chips, so the first two sizes must be even")
    return dims


def sizes(chip: Chip) -> list[tuple[int, ...]]:
    """The shapes of the slices of a generation, smallest first, each with twice the chips of the one before."""
    largest = {"v5e": 256, "v6e": 256, "v3": 1024, "v4": 4096, "v5p": 8192, "tpu7x": 8192}[chip.name]
    shapes: list[tuple[int, ...]] = []
    count = 4
    while count <= largest:
        power = count.bit_length() - 1
        if chip.torus == 2:
            shapes.append((1 << power // 2, 1 << power - power // 2))
        else:
            low, more = divmod(power, 3)
            # 4 chips are a host, 2x2x1; from 64 chips on the torus wraps around in every dimension.
            cut = sorted(low + (i < more) for i in range(3))
            shapes.append((2, 2, 1) if count == 4 else tuple(1 << part for part in cut))
        count *= 2
    return shapes


def configure_compiler_env() -> None:
    """Sets environment variables and JAX options; call it before the TPU compiler is loaded.

    The compiler then prints no logs and does not look for a TPU, and several plans can run at once. JAX starts only its
    CPU backend and does not use its cache of programs. Programs are traced without source locations, which would make
    the text of kernels depend on the folder of the source.
    """
    for name, value in (
        ("TPU_ACCELERATOR_TYPE", "v5e-16"), ("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_LOG_DIR", "disabled"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"), ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"), ("TF_CPP_MIN_LOG_LEVEL", "3"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # programs for a TPU are written there but cannot be read
    jax.config.update("jax_traceback_in_locations_limit", 0)


def _no_compiler(error: Exception, name: str) -> UserError:
    from importlib.metadata import PackageNotFoundError, version

    import jax

    try:
        found = version("libtpu")
    except PackageNotFoundError:
        return UserError(
            "planning needs the TPU compiler, the package libtpu: pip install 'easylm_jax[plan]' (no TPU is needed)"
        )
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"libtpu {found} with jax {jax.__version__} does not support the topology {name} ({reason}); "
        "pip install 'easylm_jax[plan]' installs the libtpu version for this jax"
    )
