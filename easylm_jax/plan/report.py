"""A recipe on a pod: every program of every stage, whether all that must be resident fits, how long a step takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from easylm_jax.config import Recipe, Stage
from easylm_jax.plan import estimate, shapes
from easylm_jax.plan.compile_cache import Compiled, compile_for
from easylm_jax.plan.programs import PlannedProgram
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.chips import GIB
from easylm_jax.runtime.mesh import make_mesh

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """A program with what was compiled. `need` bytes of one device: its peak and what is resident beside it."""

    stage: str
    planned: PlannedProgram
    compiled: Compiled
    topology: Topology

    @property
    def need(self) -> int | None:
        return None if self.compiled.peak is None else self.compiled.peak + sum(self.planned.resident.values())

    @property
    def fits(self) -> bool:
        return self.compiled.fits and self.need is not None and self.need <= self.topology.chip.memory

    @property
    def step(self) -> tuple[float, float]:
        """Seconds of a step that its runs take: everything hidden that can be, and nothing."""
        seconds = self.compiled.seconds
        return seconds.low * self.planned.runs, seconds.high * self.planned.runs

    @property
    def mfu(self) -> float:
        """Model FLOPs over peak, by the slower end of the projection."""
        return estimate.utilisation(self.planned.flops, self.compiled.seconds.high, self.topology)

    def as_json(self) -> dict[str, Any]:
        per_chip = self.topology.chip.per_chip
        return {
            "stage": self.stage, "program": self.planned.name, "fits": self.fits,
            "bytes_per_chip": None if self.need is None else self.need * per_chip,
            "peak_bytes_per_device": self.compiled.peak, "resident_bytes_per_device": self.planned.resident,
            "flops": self.planned.flops * per_chip, "runs_per_step": self.planned.runs,
            "step_seconds": list(self.step), "mfu": self.mfu, "compiled_flops_ratio": self.ratio,
            "floor_seconds": self.planned.read / self.topology.chip.bandwidth * self.planned.runs or None,
            "seconds": {"compute": self.compiled.compute, "kernels": self.compiled.kernels,
                        "exposed_collectives": self.compiled.exposed, "hidden_collectives": self.compiled.hidden,
                        "copies": self.compiled.copies},
            "hottest": [list(one) for one in self.compiled.hottest],
            "host_bytes_per_device": self.compiled.host,
        }  # fmt: skip

    @property
    def ratio(self) -> float | None:
        """FLOPs of the compiled program over the model's: 1 for a forward pass, 1.33 where all is computed again."""
        return self.compiled.flops / self.planned.flops if self.planned.flops and self.compiled.flops else None


ProgramsOf = Callable[[Stage, Recipe, jax.sharding.Mesh], list[PlannedProgram]]


def silent(text: str) -> None:
    """Tells nobody."""


@dataclasses.dataclass(frozen=True)
class Planner:
    """Compiles stages. `programs` gives those of a stage (`experiment.programs_of`), `folder` keeps what was compiled,
    and `say` tells a person what is under way."""

    programs: ProgramsOf
    folder: Path
    say: Say = silent

    def plan(
        self, stage: Stage, recipe: Recipe, topology: Topology, devices: Sequence[Any], *, until_over: bool = False
    ) -> list[Row]:
        """Every program of a stage, compiled; stops at the first that does not fit alone, or with `until_over` at the
        first that does not fit beside what is resident."""
        mesh = make_mesh(recipe.mesh, devices)
        rows = []
        for planned in self.programs(stage, recipe, mesh):
            self.say(f"{stage.name}: compiling {planned.name} for {topology.name} ({recipe.mesh})")
            rows.append(Row(stage.name, planned, compile_for(planned, topology, mesh, self.folder), topology))
            if not rows[-1].compiled.fits or (until_over and not rows[-1].fits):
                break
        return rows

    def least_over(self, stage: Stage, recipe: Recipe, topology: Topology, devices: Sequence[Any]) -> str | None:
        """What is over before anything is compiled: "resident" where what stays on the devices beside some program is
        too much already, else None."""
        found = self.programs(stage, recipe, make_mesh(recipe.mesh, devices))
        most = max((sum(one.resident.values()) for one in found), default=0)
        return "resident" if most > topology.chip.memory else None


def steps_of(stage: Stage) -> int | None:
    """The steps of a stage, where it gives them or says how many examples an epoch has; rows that hold several each
    are known once the data are."""
    if not stage.trains:
        return None
    if stage.epochs is None or stage.examples is None or not stage.whole_rows:
        return stage.steps
    epochs = int(stage.epochs * (stage.examples // stage.batch))
    return epochs if stage.steps is None else min(epochs, stage.steps)


def described(stage: Stage, recipe: Recipe) -> str:
    """What a stage trains or runs, in a few words: its kind, its models, the size of its batch."""
    kind = type(stage).__name__
    if not stage.compiles:
        return kind
    names = [shapes.named(shapes.stage_config(stage, recipe))] if stage.trains else []
    for role, name in stage.models.items():
        if name is None:
            continue
        known = shapes.named(shapes.config_of(name, recipe))
        names.append(known if role == "model" else f"{role} {known}")
    return f"{kind}, {', '.join(names)}; {stage.work}"


def text(rows: Sequence[Row], recipe: Recipe, topology: Topology) -> str:
    """The table that a person reads."""
    head = ("stage", "program", "GiB/device", "runs", "step, s", "MFU", "compute", "kernels", "network", "hidden")
    lines = [head]
    for row in rows:
        c = row.compiled
        if not c.fits:
            need = "more" if row.need is None else f"{row.need / GIB:.2f}"
            lines.append((row.stage, row.planned.name, f"{need} !", f"{row.planned.runs:g}", *["–"] * 6))
            continue
        low, high = row.step
        mark = "" if row.fits else " !"
        lines.append((
            row.stage, row.planned.name, f"{row.need / GIB:.2f}{mark}", f"{row.planned.runs:g}",
            f"{low:.3g}–{high:.3g}", f"{100 * row.mfu:.0f} %", f"{c.compute:.3g}", f"{c.kernels:.3g}",
            f"{c.exposed:.3g}", f"{c.hidden:.3g}",
        ))  # fmt: skip
    chip = topology.chip
    title = f"{recipe.name} on {topology.name}: {topology.chips} chips, {chip.memory / GIB:.2f} GiB a device"
    return "\n".join([title, "", aligned(lines), "", *_totals(rows, recipe, topology)])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text, each as wide as its widest cell."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _totals(rows: Sequence[Row], recipe: Recipe, topology: Topology) -> list[str]:
    told = []
    for name in dict.fromkeys(row.stage for row in rows):
        own = [row for row in rows if row.stage == name]
        if not all(row.fits for row in own):
            worst = max(own, key=lambda row: row.need or 2**62)
            told.append(f"{name}: does not fit ({worst.planned.name})")
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
        told.append(f"{name}: fits; a step takes {low:.3g} to {high:.3g} s{length}")
        if host := max(row.compiled.host for row in own):
            told.append(
                f"{name}: {host / GIB:.2f} GiB a device lie in the host's memory; that they come and go every step is "
                "not in these seconds"
            )
    if topology.chip.platform == "gpu":
        told.append(
            "Seconds are a roofline of peak rates and bandwidths (a GPU's compiler tells no cycles): weaker than those "
            "for a TPU, and attention is computed in blocks where a GPU would run cuDNN's; nothing was measured."
        )
    else:
        told.append(
            "Seconds are projected from the compiler's cycles, assumed rates of kernels and the links' bandwidth; "
            "nothing was measured."
        )
    return told


def as_json(rows: Sequence[Row], topology: Topology) -> dict[str, Any]:
    """The same for a program; `flops` are per chip and run, `step_seconds` [low, high] of all runs of a step."""
    return {
        "fits": bool(rows) and all(row.fits for row in rows), "topology": topology.name, "chips": topology.chips,
        "method": "roofline" if topology.chip.platform == "gpu" else "cycles",
        "hbm_bytes_per_chip": topology.chip.memory * topology.chip.per_chip,
        "programs": [row.as_json() for row in rows],
    }  # fmt: skip


def span(low: float, high: float) -> str:
    """An interval in three digits; one number where they are the same."""
    texts = [f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (low, high)]
    return texts[0] if texts[0] == texts[1] else "–".join(texts)


def versions() -> str:
    """Of what compiles, in words."""
    from importlib.metadata import version

    return f"jax {version('jax')} and libtpu {version('libtpu')}"
