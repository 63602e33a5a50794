"""Plans a stage for many pods, meshes, remat policies and batch sizes, to show how step time and memory change.

    --sweep chips=8..4096x8            pods of the same generation: 8, 64, 512 and 4,096 chips
    --sweep "topology=v5p-64 v6e:8x8"  pods by name
    --sweep "mesh=fsdp=-1 fsdp=-1,tp=4" --sweep "remat=attention full" --sweep batch=128..512

All combinations of the axes are planned. Over pods of several sizes, strong scaling keeps the batch of the recipe, and
weak scaling the rows per chip: batch, mini-batch and decode slots grow with the pod. If the recipe's mesh does not
divide the batch, `fsdp` becomes the largest number of devices that does, `tp` the largest part of the rest that divides
the heads, and `cp` what is left. Micro-batches per chip are never larger than on the recipe's own pod.
"""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from easylm_jax.config import Recipe, Stage
from easylm_jax.plan import report, shapes, topology
from easylm_jax.plan.report import Planner
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.chips import GIB
from easylm_jax.runtime.mesh import BATCH_AXES, parse_mesh
from models.errors import UserError

AXES = ("chips", "topology", "mesh", "remat", "batch")
SCALINGS = ("strong", "weak")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:x(\d+))?")


@dataclasses.dataclass
class Point:
    """One combination: a stage on a topology and mesh. `refused` is one line if it cannot be planned, `undecided` if
    there was no time for it."""

    topology: Topology
    mesh: str
    stage: Stage
    refused: str | None = None
    programs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    undecided: bool = False

    @property
    def fits(self) -> bool:
        return self.refused is None and bool(self.programs) and all(program["fits"] for program in self.programs)

    @property
    def seconds(self) -> tuple[float, float]:
        """The step time in seconds, lowest and highest."""
        low, high = (sum(program["step_seconds"][end] for program in self.programs) for end in (0, 1))
        return low, high

    @property
    def gib(self) -> float | None:
        """Memory per device of the program that needs most; None if the compiler does not report it."""
        needs = [program["bytes_per_chip"] for program in self.programs]
        return None if None in needs or not needs else max(needs) / self.topology.chip.per_chip / GIB

    @property
    def tokens(self) -> int:
        """Tokens per step: of its batch, or of the longest prompts and responses of a rollout."""
        return self.stage.tokens_per_step

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second per chip, by the slower end of the projection."""
        return self.tokens / self.seconds[1] / self.topology.chips

    @property
    def mfu(self) -> float:
        """MFU of all programs together, by the slower end of the projection."""
        chip = self.topology.chip
        flops = sum(program["flops"] * program["runs_per_step"] for program in self.programs) / chip.per_chip
        return flops / (self.seconds[1] * chip.flops)

    def part(self, name: str) -> float:
        """Seconds per step of all programs for one entry of `seconds` in `report.Row.as_json`, such as "compute"."""
        return sum(program["seconds"][name] * program["runs_per_step"] for program in self.programs)

    def as_json(self) -> dict[str, Any]:
        stage = self.stage
        result = {"topology": self.topology.name, "chips": self.topology.chips, "mesh": self.mesh, "fits": self.fits,
                "batch": getattr(stage, "batch", None), "accumulate": getattr(stage, "accumulate", None),
                "remat": _remat(stage), "refused": self.refused, "gib_per_device": self.gib}  # fmt: skip
        if self.fits:
            result |= {"step_seconds": list(self.seconds), "tokens_per_second_per_chip": self.tokens_per_second,
                     "mfu": self.mfu}  # fmt: skip
        return {**result, "programs": self.programs}


def parse(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by axis of `AXES`.

    Raises:
        UserError: an unknown axis or one given twice, no values, a range of something that is not counted.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        axis, equals, values = text.partition("=")
        if axis not in AXES:
            near = difflib.get_close_matches(axis, AXES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the axes are {', '.join(AXES)}"
            raise UserError(f"--sweep {text!r}: unknown axis {axis!r}; {hint}")
        if axis in axes:
            raise UserError(f"--sweep {text!r}: {axis} is given twice; write its values side by side, with spaces")
        if not equals or not values.split():
            raise UserError(f"--sweep {text!r}: write values after {axis}=, separated by spaces")
        axes[axis] = [item for value in values.split() for item in _values(text, axis, value)]
    if "chips" in axes and "topology" in axes:
        raise UserError("--sweep: give chips or topology, not both")
    return axes


def _values(text: str, axis: str, value: str) -> list[str]:
    if axis not in ("chips", "batch"):
        return [value]
    if value.isdecimal() and int(value) > 0:
        return [value]
    found = _RANGE.fullmatch(value)
    if found is None or int(found[1]) == 0 or int(found[3] or 2) < 2:
        raise UserError(
            f"--sweep {text!r}: {value!r} is neither a number nor a range such as 8..64 (doubling) or 8..4096x8 (times "
            "8)"
        )
    first, last, factor = int(found[1]), int(found[2]), int(found[3] or 2)
    if last < first:
        raise UserError(f"--sweep {text!r}: the range {value} ends before it begins")
    return [str(first * factor**i) for i in range(int(math.log(last / first, factor) + 1e-9) + 1)]


def points(stage: Stage, recipe: Recipe, pod: Topology, axes: dict[str, list[str]], scaling: str) -> list[Point]:
    """All combinations; `pod` is the recipe's own, relative to which batches and micro-batches are scaled.

    Raises:
        UserError: an error that concerns all combinations; others are recorded in `Point.refused`.
    """
    if scaling == "weak" and "batch" in axes:
        raise UserError("--sweep: weak scaling sets the batch; leave out the batch axis, or use --scaling strong")
    if "remat" in axes and not hasattr(stage, "compute"):
        raise UserError(f"--sweep: stage {stage.name} has no remat setting; leave out the remat axis")
    names = axes.get("topology") or [_pod_name(pod, int(count)) for count in axes.get("chips", [])] or [pod.name]
    pods = [topology.parse(name) for name in names]
    meshes: list[str | None] = [*axes["mesh"]] if "mesh" in axes else [None]
    found = []
    for topo, mesh, remat, batch in itertools.product(
        pods, meshes, axes.get("remat", [None]), axes.get("batch", [None])
    ):  # fmt: skip
        ratio = fractions.Fraction(topo.chips, pod.chips) if scaling == "weak" else fractions.Fraction(1)
        try:
            scaled = _with_remat(_scaled(stage, ratio, batch), remat)
            text = mesh or _mesh_for(scaled, recipe, topo)
            found.append(Point(topo, text, _with_micro_batches(scaled, stage, pod, text, topo)))
        except UserError as error:
            found.append(Point(topo, mesh or recipe.mesh, stage, refused=str(error)))
    return found


def _pod_name(pod: Topology, chips: int) -> str:
    return f"{pod.chip.name}-{chips * pod.chip.cores}"


def _with_remat(stage: Any, remat: str | None) -> Any:
    from easylm_jax.config import fields

    return stage if remat is None else fields.override(stage, "compute.remat", remat)


def _scaled(stage: Any, ratio: fractions.Fraction, batch: str | None) -> Any:
    """The stage with another batch, and mini-batch and decode slots in proportion."""
    if batch is not None:
        ratio = fractions.Fraction(int(batch), stage.batch)
    if ratio == 1:
        return stage
    if not hasattr(stage, "batch"):
        raise UserError(f"stage {stage.name}: a {type(stage).__name__} has no batch to scale; use --scaling strong")

    def times(what: str, count: int) -> int:
        if (count * ratio).denominator != 1:
            raise UserError(f"{what} {count} times {ratio} is not a whole number")
        return int(count * ratio)

    changed: dict[str, Any] = {"batch": times("batch", stage.batch)}
    if getattr(stage, "mini_batch", None) is not None:
        changed["mini_batch"] = times("mini_batch", stage.mini_batch)
    if hasattr(stage, "sampling"):
        changed["sampling"] = dataclasses.replace(stage.sampling, slots=times("slots", stage.sampling.slots))
    return dataclasses.replace(stage, **changed)


def _split(sizes: dict[str, int]) -> int:
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def _mesh_for(stage: Stage, recipe: Recipe, topo: Topology) -> str:
    """The recipe's mesh if it fits the devices and divides the rows; otherwise the largest `fsdp` that divides them."""
    rows = stage.rows_per_update
    try:
        if rows % _split(parse_mesh(recipe.mesh, topo.count)) == 0:
            return recipe.mesh
    except UserError:  # the mesh is for a pod of another size
        pass
    fsdp = math.gcd(rows, topo.count)
    left = topo.count // fsdp
    tp = math.gcd(left, shapes.stage_config(stage, recipe).kv_heads) if shapes.is_training(stage) else left
    return f"fsdp={fsdp},tp={tp}" + (f",cp={left // tp}" if left > tp else "")


def _with_micro_batches(stage: Any, original: Stage, pod: Topology, mesh: str, topo: Topology) -> Any:
    """The stage with micro-batches of at most as many rows per device as the original stage has on its own pod."""
    if not stage.trains or not shapes.is_training(original):
        return stage
    most = fractions.Fraction(original.rows_per_update, original.accumulate * pod.count)
    rows, left = divmod(stage.rows_per_update, _split(parse_mesh(mesh, topo.count)))
    if left:
        return stage  # compiling it reports the error
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    fitting = (n for n in divisors if fractions.Fraction(stage.rows_per_update, n * topo.count) <= most)
    return dataclasses.replace(stage, accumulate=next(fitting, divisors[-1]))


def run(found: Sequence[Point], recipe: Recipe, planner: Planner) -> None:
    """Compiles every point; the error of one that cannot be compiled is recorded in `refused`."""
    for number, point in enumerate(found):
        if point.refused is not None:
            continue
        planner.log(f"{number + 1} of {len(found)}: {point.topology.name}, {point.mesh}")
        stages = tuple(point.stage if other.name == point.stage.name else other for other in recipe.stages)
        inside = dataclasses.replace(recipe, mesh=point.mesh, stages=stages)
        try:
            rows = planner.plan(point.stage, inside, point.topology, point.topology.devices())
        except (UserError, jax.errors.JaxRuntimeError) as error:
            point.refused = " ".join(str(error).split())[:200]
            continue
        point.programs = [row.as_json() for row in rows]


HEAD = (
    "chips", "topology", "mesh", "batch", "micro-batches", "remat", "fits", "GiB per device", "step time, s",
    "tokens/s per chip", "MFU", "exposed collectives",
)  # fmt: skip


def table(found: Sequence[Point]) -> list[tuple[str, ...]]:
    """The header and the rows of the table, as text."""
    return [HEAD, *(_cells(point) for point in found)]


def _cells(point: Point) -> tuple[str, ...]:
    stage: Any = point.stage
    head = (f"{point.topology.chips:,}", point.topology.name, point.mesh)
    if point.refused is not None:
        return (*head, "–", "–", "–", f"no: {point.refused}", *["–"] * 5)
    gib = "more" if point.gib is None else f"{point.gib:.1f}"
    memory = f"{gib} of {point.topology.chip.memory / GIB:.1f}"
    settings = (f"{getattr(stage, 'batch', '–'):,}", str(getattr(stage, "accumulate", "–")), _remat(stage))
    if not point.fits:
        return (*head, *settings, "no", memory, *["–"] * 4)
    low, high = point.seconds
    return (
        *head, *settings, "yes", memory, report.span(low, high), f"{point.tokens_per_second:,.0f}",
        f"{100 * point.mfu:.0f} %", f"{100 * point.part('exposed_collectives') / high:.0f} %",
    )  # fmt: skip


def _remat(stage: Any) -> str:
    return stage.compute.remat if hasattr(stage, "compute") else "–"
