"""The plan of a recipe on a pod: for each program of each stage, whether it fits and how long its step takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from easylm_jax.config import Recipe, Stage
from easylm_jax.plan import estimate, shapes
from easylm_jax.plan.compile_cache import Compiled, compile_for
from easylm_jax.plan.cost import ON_DEMAND, Prices
from easylm_jax.plan.programs import Program
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.chips import GIB
from easylm_jax.runtime.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Row:
    """A program with its compile result: one row of the plan.

    `need` is in bytes per device: the program's peak memory plus other resident arrays; None if it is not known.
    """

    stage: str
    program: Program
    compiled: Compiled
    topology: Topology

    @property
    def need(self) -> int | None:
        return None if self.compiled.peak is None else self.compiled.peak + sum(self.program.resident.values())

    @property
    def fits(self) -> bool:
        return self.compiled.fits and self.need is not None and self.need <= self.topology.chip.memory

    @property
    def step(self) -> tuple[float, float]:
        """Seconds that its runs take in one step: with all overlapped collectives hidden, and with none hidden."""
        seconds = self.compiled.seconds
        return seconds.low * self.program.runs, seconds.high * self.program.runs

    @property
    def mfu(self) -> float:
        """MFU by the slower end of the projection."""
        return estimate.utilisation(self.program.flops, self.compiled.seconds.high, self.topology)

    def as_json(self) -> dict[str, Any]:
        per_chip = self.topology.chip.per_chip
        return {
            **_outline(self.stage, self.program, self.topology), "fits": self.fits,
            "bytes_per_chip": None if self.need is None else self.need * per_chip,
            "peak_bytes_per_device": self.compiled.peak,
            "step_seconds": list(self.step), "mfu": self.mfu, "compiled_flops_ratio": self.ratio,
            "seconds": {"compute": self.compiled.compute, "kernels": self.compiled.kernels,
                        "exposed_collectives": self.compiled.exposed, "hidden_collectives": self.compiled.hidden,
                        "copies": self.compiled.copies},
            "hottest": [list(place) for place in self.compiled.hottest],
            "kernels": dict(self.compiled.kernel_runs),
            "host_bytes_per_device": self.compiled.host,
        }  # fmt: skip

    @property
    def ratio(self) -> float | None:
        """Compiled FLOPs over model FLOPs: 1 without recomputation, 1.33 if the whole forward pass is recomputed."""
        return self.compiled.flops / self.program.flops if self.program.flops and self.compiled.flops else None


def _outline(stage: str, program: Program, topology: Topology) -> dict[str, Any]:
    return {
        "stage": stage, "program": program.name, "resident_bytes_per_device": program.resident,
        "flops": program.flops * topology.chip.per_chip, "runs_per_step": program.runs,
        "floor_seconds": program.min_bytes / topology.chip.bandwidth * program.runs or None,
    }  # fmt: skip


Log = Callable[[str], None]
ProgramsOf = Callable[[Stage, Recipe, jax.sharding.Mesh], Iterable[Program]]


def no_log(text: str) -> None:
    """Prints nothing."""


@dataclasses.dataclass(frozen=True)
class Planner:
    """Compiles stages. `programs` returns the programs of a stage (`experiment.programs_of`), `folder` is the cache of
    compile results, and `log` receives progress messages."""

    programs: ProgramsOf
    folder: Path
    log: Log = no_log

    def outlines(
        self, stage: Stage, recipe: Recipe, topology: Topology, devices: Sequence[Any]
    ) -> list[dict[str, Any]]:  # fmt: skip
        """What is known of a stage's programs before they are compiled: the entries of `Row.as_json` that follow from
        shapes."""
        programs = self.programs(stage, recipe, make_mesh(recipe.mesh, devices))
        return [_outline(stage.name, program, topology) for program in programs]

    def plan(
        self, stage: Stage, recipe: Recipe, topology: Topology, devices: Sequence[Any], *, until_over: bool = False,
        only: str | None = None,
    ) -> list[Row]:  # fmt: skip
        """Compiles every program of a stage, or the one that `only` names. Stops at the first one that does not fit by
        itself, or with `until_over` at the first one that does not fit together with other resident arrays."""
        mesh = make_mesh(recipe.mesh, devices)
        rows = []
        for program in self.programs(stage, recipe, mesh):
            if only is not None and program.name != only:
                continue
            self.log(f"{stage.name}: compiling {program.name} for {topology.name} ({recipe.mesh})")
            rows.append(Row(stage.name, program, compile_for(program, topology, mesh, self.folder), topology))
            if only is not None or not rows[-1].compiled.fits or (until_over and not rows[-1].fits):
                break
        return rows

    def resident_fits(self, stage: Stage, recipe: Recipe, topology: Topology, devices: Sequence[Any]) -> bool:
        """Whether the resident arrays alone fit on a device; compiles nothing."""
        programs = self.programs(stage, recipe, make_mesh(recipe.mesh, devices))
        most = max((sum(program.resident.values()) for program in programs), default=0)
        return most <= topology.chip.memory


def steps_of(stage: Stage) -> int | None:
    """The number of steps of a stage: its `steps`, or from `epochs` and `examples`. None if it depends on the data,
    because several examples may be packed into a row."""
    if not shapes.is_training(stage):
        return None
    if stage.epochs is None or stage.examples is None or not stage.whole_rows:
        return stage.steps
    steps = int(stage.epochs * (stage.examples // stage.batch))
    return steps if stage.steps is None else min(steps, stage.steps)


def described(stage: Stage, recipe: Recipe) -> str:
    """A short description of a stage: its kind, its models and the size of its batch."""
    kind = type(stage).__name__
    if not stage.compiles:
        return kind
    names = [shapes.preset_name(shapes.stage_config(stage, recipe))] if shapes.is_training(stage) else []
    for role, name in stage.models.items():
        if name is None:
            continue
        preset = shapes.preset_name(shapes.config_of(name, recipe))
        names.append(preset if role == "model" else f"{role} {preset}")
    return f"{kind}, {', '.join(names)}; {stage.work}"


def text(rows: Sequence[Row], recipe: Recipe, topology: Topology, prices: Prices, kind: str = ON_DEMAND) -> str:
    """The plan as a text table, with what it costs at prices of this kind."""
    head = ("stage", "program", "GiB/device", "runs", "step, s", "MFU", "compute", "kernels", "network", "hidden")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        c = row.compiled
        if not c.fits:
            need = "more" if row.need is None else f"{row.need / GIB:.2f}"
            lines.append((row.stage, row.program.name, f"{need} !", f"{row.program.runs:g}", *["–"] * 6))
            continue
        low, high = row.step
        mark = "" if row.fits else " !"
        lines.append((
            row.stage, row.program.name, f"{(row.need or 0) / GIB:.2f}{mark}", f"{row.program.runs:g}",
            f"{low:.3g}–{high:.3g}", f"{100 * row.mfu:.0f} %", f"{c.compute:.3g}", f"{c.kernels:.3g}",
            f"{c.exposed:.3g}", f"{c.hidden:.3g}",
        ))  # fmt: skip
    chip = topology.chip
    title = f"{recipe.name} on {topology.name}: {topology.chips} chips, {chip.memory / GIB:.2f} GiB per device"
    return "\n".join([title, "", aligned(lines), "", *_totals(rows, recipe, topology, prices, kind)])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of text with aligned columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _totals(rows: Sequence[Row], recipe: Recipe, topology: Topology, prices: Prices, kind: str) -> list[str]:
    lines = []
    for name in dict.fromkeys(row.stage for row in rows):
        own = [row for row in rows if row.stage == name]
        if not all(row.fits for row in own):
            worst = max(own, key=lambda row: row.need or 2**62)
            lines.append(f"{name}: does not fit ({worst.program.name})")
            continue
        low, high = (sum(row.step[i] for row in own) for i in (0, 1))
        steps = steps_of(recipe.stage(name))
        length = ""
        if steps and high:
            hours = [steps * x / 3600 for x in (low, high)]
            chips = [topology.chips * x for x in hours]
            length = (
                f"; {steps:,} steps in {hours[0]:.3g} to {hours[1]:.3g} hours, {chips[0]:,.3g} to {chips[1]:,.3g} "
                "chip-hours"
            )
            money = prices.span(topology, (hours[0], hours[1]), kind)
            if money is not None:
                length += f", {prices.currency} {money[0]:,.3g} to {money[1]:,.3g}"
        lines.append(f"{name}: fits; a step takes {low:.3g} to {high:.3g} s{length}")
        lines += balance_lines(recipe.stage(name), [(row.program.name, row.step[1]) for row in own])
        for row in own:
            runs = ", ".join(f"{kernel} × {count:,}" for kernel, count in row.compiled.kernel_runs)
            lines += [f"{name}: kernels in {row.program.name}: {runs}"] if runs else []
        if host := max(row.compiled.host for row in own):
            lines.append(
                f"{name}: {host / GIB:.2f} GiB per device are in host memory; transferring them every step is not "
                "included in these seconds"
            )
    return [*lines, method(topology), prices.described(topology, kind)]


_GENERATES = ("prefill", "decode", "reward")  # programs that make a rollout; an LM judge's have longer names


def balance(programs: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Seconds of a step that make a rollout, and that train on it, from the names of programs and their seconds."""
    rollout = sum(seconds for name, seconds in programs if name.endswith(_GENERATES))
    return rollout, sum(seconds for _, seconds in programs) - rollout


def balance_lines(stage: Stage, programs: Sequence[tuple[str, float]]) -> list[str]:
    """How an asynchronous stage's devices would be divided so that neither side waits for the other."""
    if stage.family != "rl" or not getattr(stage, "asynchronous", 0):
        return []
    rollout, training = balance(programs)
    share = 100 * rollout / (rollout + training) if rollout + training else 0.0
    return [
        f"{stage.name}: of a step, rollouts take {rollout:.3g} s and training {training:.3g} s on all devices; with "
        f"{share:.0f} % of the devices for rollouts and the others for training, neither waits for the other"
    ]


def method_name(topology: Topology) -> str:
    """How seconds are projected: "cycles" of the compiler, or a "roofline"."""
    return "roofline" if topology.chip.platform == "gpu" else "cycles"


def method(topology: Topology) -> str:
    """A sentence that says how seconds are projected."""
    if method_name(topology) == "roofline":
        return (
            "Seconds are a roofline of peak FLOP/s and bandwidth, since the GPU compiler estimates no cycles: less "
            "accurate than for a TPU, and with blocked attention instead of cuDNN's; nothing was measured."
        )
    return (
        "Seconds are projected from the compiler's cycles, assumed kernel efficiency and link bandwidth; nothing was "
        "measured."
    )


def as_json(rows: Sequence[Row], topology: Topology) -> dict[str, Any]:
    """The plan as JSON; `flops` are per chip and run, `step_seconds` are [low, high] of all runs of a step."""
    return {
        "fits": bool(rows) and all(row.fits for row in rows), "topology": topology.name, "chips": topology.chips,
        "method": method_name(topology),
        "hbm_bytes_per_chip": topology.chip.memory * topology.chip.per_chip,
        "programs": [row.as_json() for row in rows],
    }  # fmt: skip


def span(low: float, high: float) -> str:
    """An interval with three significant digits; a single number if both ends are equal."""
    texts = [f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (low, high)]
    return texts[0] if texts[0] == texts[1] else "–".join(texts)


def versions() -> str:
    """The versions of JAX and the TPU compiler, as text."""
    from importlib.metadata import version

    return f"jax {version('jax')} and libtpu {version('libtpu')}"
