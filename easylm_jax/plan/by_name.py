"""Plans a model by its name, without a recipe: SFT, DPO, PPO and GRPO of `hf:OWNER/MODEL` or `hf:FOLDER` on a pod.

The stages are those of the recipe `tulu3/every_stage` with this model. Meshes and micro-batches are adapted to the pod
as in a sweep with strong scaling, so that on the recipe's own pod the programs are those of the recipes of that size.
Of a folder only `config.json` is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from easylm_jax.config import Recipe
from easylm_jax.config.load import load_recipe
from easylm_jax.plan import cost, report, shapes, sweep, topology, within
from easylm_jax.plan.report import Planner
from easylm_jax.plan.sweep import Point
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.chips import GIB
from models.config import DecoderConfig

RECIPE = "tulu3/every_stage"
KINDS = ("hf:", "run:")
STAGES = ("sft", "dpo", "ppo", "grpo")
_DECODE_TP = 4  # as in the recipe, where the model's heads and the pod allow it


def names_model(text: str) -> bool:
    """Whether the first argument of `easylm plan` is a model and not a recipe."""
    return text.startswith(KINDS)


def recipe_of(model: str, overrides: Sequence[str], pod: Topology) -> Recipe:
    """The recipe of the four stages with `model`, within its context; then `overrides` (`sft.batch=64`).

    Raises:
        UserError: the model is not known and cannot be downloaded, or an override is wrong.
    """
    config = shapes.config_of(model, Recipe("none", ()))
    changed = [f"{stage}.{field}={model}" for stage in STAGES for field in ("init", "data.tokenizer")]
    tp = math.gcd(_DECODE_TP, config.kv_heads, pod.count)
    changed += [f"ppo.value={model}", f"decode_mesh=fsdp=-1,tp={tp}"]
    changed += _within(config, load_recipe(RECIPE))
    return load_recipe(RECIPE, [*changed, *overrides])


def _within(config: DecoderConfig, recipe: Recipe) -> list[str]:
    """Overrides that shorten what is longer than the model's context."""
    changed = []
    for name in STAGES:
        stage: Any = recipe.stage(name)
        row = stage.data.sequence_length
        longest = row + stage.sampling.max_new_tokens if stage.generates else row
        if stage.data.kind == "preference":
            longest = row // 2  # a row is a pair of two sequences
        if longest > config.context:
            shrunk = row * config.context // longest
            changed.append(f"{name}.data.sequence_length={shrunk}")
            if stage.generates:
                changed.append(f"{name}.sampling.max_new_tokens={config.context - shrunk}")
    return changed


def points(recipe: Recipe, stages: Sequence[str], pod: Topology, mesh: str | None) -> list[Point]:
    """Each stage on the pod, with a mesh and micro-batches that its rows divide over."""
    own = topology.parse(recipe.pod) if recipe.pod else pod
    axes = {"topology": [pod.name], **({"mesh": [mesh]} if mesh else {})}
    return [point for name in stages for point in sweep.points(recipe.stage(name), recipe, own, axes, "strong")]


def recipe_at(recipe: Recipe, point: Point) -> Recipe:
    """The recipe with the stage and the mesh of a point."""
    stages = tuple(point.stage if stage.name == point.stage.name else stage for stage in recipe.stages)
    return dataclasses.replace(recipe, mesh=point.mesh, stages=stages)


def run(found: Sequence[Point], recipe: Recipe, planner: Planner, jobs: int, seconds: float | None = None) -> None:
    """Compiles the programs of all points in `jobs` processes, within these seconds if given; see `within.run`."""
    within.run(found, [recipe_at(recipe, point) for point in found], planner, jobs, seconds)


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a stage takes: its steps, and hours, chip-hours and money from the lowest to the highest projection;
    `money` is None where the prices do not hold this chip."""

    steps: int
    hours: tuple[float, float]
    chip_hours: tuple[float, float]
    money: tuple[float, float] | None


def length(point: Point, prices: cost.Prices, kind: str) -> Length | None:
    """The length of a stage that fits and whose number of steps is known."""
    steps = report.steps_of(point.stage)
    if not point.fits or steps is None:
        return None
    low, high = (steps * seconds / 3600 for seconds in point.seconds)
    return Length(
        steps, (low, high), (low * point.topology.chips, high * point.topology.chips),
        prices.span(point.topology, (low, high), kind),
    )  # fmt: skip


def text(model: str, found: Sequence[Point], recipe: Recipe, prices: cost.Prices, kind: str) -> str:
    """The plan as a table, one line for each stage."""
    pod = found[0].topology
    head = ("stage", "fits", "GiB/device", "mesh", "batch", "micro-batches", "step, s", "MFU", "steps", "hours",
            "chip-hours", prices.currency)  # fmt: skip
    lines = [head, *(_cells(point, prices, kind) for point in found)]
    preset = shapes.preset_name(shapes.config_of(model, recipe))
    return "\n".join([
        f"{model} ({preset}) on {pod.name}: {pod.chips} chips, {pod.chip.memory / GIB:.2f} GiB per device",
        f"stages of the recipe {RECIPE}; change them with STAGE.FIELD=VALUE",
        "", report.aligned(lines), "",
        *(f"{point.stage.name}: {point.refused}" for point in found if point.refused is not None),
        *(line for point in found for line in _estimates(point)),
        *(line for point in found if point.fits for line in report.balance_lines(point.stage, [
            (program["program"], program["step_seconds"][1]) for program in point.programs
        ])),
        report.method(pod), prices.described(pod, kind),
    ])  # fmt: skip


def _estimates(point: Point) -> list[str]:
    """Which programs of a stage are estimated, and from what."""
    names = [f"{one['program']} from {one['estimated_from']}" for one in point.programs if one.get("estimated_from")]
    if not names:
        return []
    return [f"{point.stage.name}: ~ was estimated ({', '.join(names)}); the same command goes on compiling"]


def _cells(point: Point, prices: cost.Prices, kind: str) -> tuple[str, ...]:
    stage: Any = point.stage
    about = "~" if any(one.get("estimated_from") for one in point.programs) else ""
    gib = "–" if point.refused is not None else "more" if point.gib is None else f"{about}{point.gib:.1f}"
    settings = (point.mesh, f"{stage.rows_per_update:,}", str(stage.accumulate))
    if not point.fits:
        return (stage.name, "?" if point.undecided else f"{about}no", gib, *settings, *["–"] * 6)
    found = length(point, prices, kind)
    rest = ["–"] * 4 if found is None else [
        f"{found.steps:,}", report.span(*found.hours), report.span(*found.chip_hours),
        "–" if found.money is None else report.span(*found.money),
    ]  # fmt: skip
    step = f"{about}{report.span(*point.seconds)}"
    return (stage.name, f"{about}yes", gib, *settings, step, f"{100 * point.mfu:.0f} %", *rest)


def as_json(model: str, found: Sequence[Point], prices: cost.Prices, kind: str) -> dict[str, Any]:
    """The plan as JSON: that of a recipe, and for each stage its settings, length and cost."""
    pod = found[0].topology
    stages = []
    for point in found:
        taken = length(point, prices, kind)
        stages.append({
            "stage": point.stage.name, **{k: v for k, v in point.as_json().items() if k != "programs"},
            **({} if taken is None else dataclasses.asdict(taken)),
        })  # fmt: skip
    return {
        "fits": all(point.fits for point in found), "model": model, "topology": pod.name, "chips": pod.chips,
        "method": report.method_name(pod), "hbm_bytes_per_chip": pod.chip.memory * pod.chip.per_chip,
        "programs": [program for point in found for program in point.programs], "stages": stages,
        "prices": {"date": prices.date, "currency": prices.currency, "kind": kind, "file": str(prices.file)},
    }  # fmt: skip
