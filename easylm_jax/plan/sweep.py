"""A stage planned over many pods, meshes, policies of rematerialisation and batches: how time and memory move.

    --sweep chips=8..4096x8            pods of the same generation: 8, 64, 512 and 4,096 chips
    --sweep "topology=v5p-64 v6e:8x8"  pods by name
    --sweep "mesh=fsdp=-1 fsdp=-1,tp=4" --sweep "remat=attention full" --sweep batch=128..512

Axes multiply. Over pods of several sizes, strong scaling keeps the batch of the recipe and weak scaling the rows a
chip: batch, mini-batch and the rows decoded at once grow with the pod. Where the recipe's mesh does not divide the
batch, the largest part of the devices that does is `fsdp`, as much of the rest as divides the heads is `tp`, and what
is left `cp`; micro-batches are never larger, for a chip, than on the recipe's own pod.
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
    """One combination: the stage as it would run, where. `refused` says in a line why it cannot."""

    topology: Topology
    mesh: str
    stage: Stage
    refused: str | None = None
    programs: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def fits(self) -> bool:
        return self.refused is None and bool(self.programs) and all(one["fits"] for one in self.programs)

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a step, lowest and highest."""
        return tuple(sum(one["step_seconds"][end] for one in self.programs) for end in (0, 1))  # type: ignore

    @property
    def gib(self) -> float | None:
        """Of one device, by the program that needs most; None where the compiler does not say."""
        needs = [one["bytes_per_chip"] for one in self.programs]
        return None if None in needs or not needs else max(needs) / self.topology.chip.per_chip / GIB

    @property
    def tokens(self) -> int:
        """Of one step: of its batch, or of the longest prompts and responses of a rollout."""
        return self.stage.tokens_per_step

    @property
    def tokens_a_second(self) -> float:
        """Of one chip, by the slower end."""
        return self.tokens / self.seconds[1] / self.topology.chips

    @property
    def mfu(self) -> float:
        """Model FLOPs of all programs over the peak, by the slower end."""
        chip = self.topology.chip
        flops = sum(one["flops"] * one["runs_per_step"] for one in self.programs) / chip.per_chip
        return flops / (self.seconds[1] * chip.flops)

    def part(self, name: str) -> float:
        """Seconds of a step that all programs spend on a part of `report.Row.as_json`'s `seconds`."""
        return sum(one["seconds"][name] * one["runs_per_step"] for one in self.programs)

    def as_json(self) -> dict[str, Any]:
        stage = self.stage
        said = {"topology": self.topology.name, "chips": self.topology.chips, "mesh": self.mesh, "fits": self.fits,
                "batch": getattr(stage, "batch", None), "accumulate": getattr(stage, "accumulate", None),
                "remat": _remat(stage), "refused": self.refused, "gib_per_device": self.gib}  # fmt: skip
        if self.fits:
            said |= {"step_seconds": list(self.seconds), "tokens_per_second_per_chip": self.tokens_a_second,
                     "mfu": self.mfu}  # fmt: skip
        return {**said, "programs": self.programs}


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
            raise UserError(f"sweep {text!r}: unknown axis {axis!r}; {hint}")
        if axis in axes:
            raise UserError(f"sweep {text!r}: {axis} is given twice; write its values side by side, with spaces")
        if not equals or not values.split():
            raise UserError(f"sweep {text!r}: write values behind {axis}=, with spaces between them")
        axes[axis] = [one for value in values.split() for one in _values(text, axis, value)]
    if "chips" in axes and "topology" in axes:
        raise UserError("sweep: give chips or topology, not both")
    return axes


def _values(text: str, axis: str, value: str) -> list[str]:
    if axis not in ("chips", "batch"):
        return [value]
    if value.isdecimal() and int(value) > 0:
        return [value]
    found = _RANGE.fullmatch(value)
    if found is None or int(found[1]) == 0 or int(found[3] or 2) < 2:
        raise UserError(
            f"sweep {text!r}: {value!r} is no number and no range such as 8..64 (doubling) or 8..4096x8 (times 8)"
        )
    first, last, factor = int(found[1]), int(found[2]), int(found[3] or 2)
    if last < first:
        raise UserError(f"sweep {text!r}: the range {value} ends before it begins")
    return [str(first * factor**i) for i in range(int(math.log(last / first, factor) + 1e-9) + 1)]


def points(stage: Stage, recipe: Recipe, pod: Topology, axes: dict[str, list[str]], scaling: str) -> list[Point]:
    """All combinations; `pod` is the recipe's own, by which batches and micro-batches are scaled.

    Raises:
        UserError: for what is wrong whatever the combination is.
    """
    if scaling == "weak" and "batch" in axes:
        raise UserError("sweep: weak scaling sets the batch; leave the batch axis out, or keep to --scaling strong")
    if "remat" in axes and not hasattr(stage, "compute"):
        raise UserError(f"sweep: stage {stage.name} has no remat to sweep over")
    names = axes.get("topology") or [_of_chips(pod, int(count)) for count in axes.get("chips", [])] or [pod.name]
    pods = [topology.parse(name) for name in names]
    meshes: list[str | None] = [*axes["mesh"]] if "mesh" in axes else [None]
    found = []
    for place, mesh, remat, batch in itertools.product(
        pods, meshes, axes.get("remat", [None]), axes.get("batch", [None])
    ):  # fmt: skip
        ratio = fractions.Fraction(place.chips, pod.chips) if scaling == "weak" else fractions.Fraction(1)
        try:
            now = _with_remat(_scaled(stage, ratio, batch), remat)
            text = mesh or _mesh_for(now, recipe, place)
            found.append(Point(place, text, _micro_batches(now, stage, recipe.mesh, pod, text, place)))
        except UserError as error:
            found.append(Point(place, mesh or recipe.mesh, stage, refused=str(error)))
    return found


def _of_chips(pod: Topology, chips: int) -> str:
    return f"{pod.chip.name}-{chips * pod.chip.cores}"


def _with_remat(stage: Any, remat: str | None) -> Any:
    from easylm_jax.config import fields

    return stage if remat is None else fields.override(stage, "compute.remat", remat)


def _scaled(stage: Any, ratio: fractions.Fraction, batch: str | None) -> Any:
    """With another batch, and what hangs on it in proportion."""
    if batch is not None:
        ratio = fractions.Fraction(int(batch), stage.batch)
    if ratio == 1:
        return stage
    if not hasattr(stage, "batch"):
        raise UserError(f"stage {stage.name}: a {type(stage).__name__} has no batch to scale")

    def times(what: str, count: int) -> int:
        if (count * ratio).denominator != 1:
            raise UserError(f"{what} {count} times {ratio} is no whole number")
        return int(count * ratio)

    changed: dict[str, Any] = {"batch": times("batch", stage.batch)}
    if getattr(stage, "mini_batch", None) is not None:
        changed["mini_batch"] = times("mini_batch", stage.mini_batch)
    if hasattr(stage, "sampling"):
        changed["sampling"] = dataclasses.replace(stage.sampling, slots=times("slots", stage.sampling.slots))
    return dataclasses.replace(stage, **changed)


def _split(sizes: dict[str, int]) -> int:
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def _mesh_for(stage: Stage, recipe: Recipe, place: Topology) -> str:
    """The recipe's mesh where it fits the devices and divides the rows; else as much of them as divides is `fsdp`."""
    rows = stage.rows_per_update
    try:
        if rows % _split(parse_mesh(recipe.mesh, place.count)) == 0:
            return recipe.mesh
    except UserError:  # its sizes are those of another pod
        pass
    parts = math.gcd(rows, place.count)
    left = place.count // parts
    heads = math.gcd(left, shapes.stage_config(stage, recipe).kv_heads) if stage.trains else left
    return f"fsdp={parts},tp={heads}" + (f",cp={left // heads}" if left > heads else "")


def _micro_batches(stage: Any, own: Stage, mesh: str, pod: Topology, text: str, place: Topology) -> Any:
    """With micro-batches that hold no more rows for a device than on the recipe's own pod."""
    if not stage.trains or not own.trains:
        return stage
    most = fractions.Fraction(own.rows_per_update, own.accumulate * pod.count)
    rows, left = divmod(stage.rows_per_update, _split(parse_mesh(text, place.count)))
    if left:
        return stage  # compiling it says what is wrong
    cuts = [n for n in range(1, rows + 1) if rows % n == 0]
    cut = next((n for n in cuts if fractions.Fraction(stage.rows_per_update, n * place.count) <= most), cuts[-1])
    return dataclasses.replace(stage, accumulate=cut)


def run(found: Sequence[Point], recipe: Recipe, planner: Planner) -> None:
    """Compiles every point; what cannot be compiled says why and the rest goes on."""
    for number, point in enumerate(found):
        if point.refused is not None:
            continue
        planner.say(f"{number + 1} of {len(found)}: {point.topology.name}, {point.mesh}")
        stages = tuple(point.stage if other.name == point.stage.name else other for other in recipe.stages)
        inside = dataclasses.replace(recipe, mesh=point.mesh, stages=stages)
        try:
            rows = planner.plan(point.stage, inside, point.topology, point.topology.devices())
        except (UserError, jax.errors.JaxRuntimeError) as error:
            point.refused = " ".join(str(error).split())[:200]
            continue
        point.programs = [row.as_json() for row in rows]


HEAD = (
    "chips", "topology", "mesh", "batch", "micro-batches", "remat", "fits", "GiB of a device", "a step, s",
    "tokens/s a chip", "MFU", "waits for the network",
)  # fmt: skip


def table(found: Sequence[Point]) -> list[tuple[str, ...]]:
    """Head and rows of text."""
    return [HEAD, *(_cells(point) for point in found)]


def _cells(point: Point) -> tuple[str, ...]:
    stage: Any = point.stage
    head = (f"{point.topology.chips:,}", point.topology.name, point.mesh)
    if point.refused is not None:
        return (*head, "–", "–", "–", f"no: {point.refused}", *["–"] * 5)
    gib = "more" if point.gib is None else f"{point.gib:.1f}"
    memory = f"{gib} of {point.topology.chip.memory / GIB:.1f}"
    said = (f"{getattr(stage, 'batch', '–'):,}", str(getattr(stage, "accumulate", "–")), _remat(stage))
    if not point.fits:
        return (*head, *said, "no", memory, *["–"] * 4)
    low, high = point.seconds
    return (
        *head, *said, "yes", memory, report.span(low, high), f"{point.tokens_a_second:,.0f}",
        f"{100 * point.mfu:.0f} %", f"{100 * point.part('exposed_collectives') / high:.0f} %",
    )  # fmt: skip


def _remat(stage: Any) -> str:
    return stage.compute.remat if hasattr(stage, "compute") else "–"
