"""`easylm plan RECIPE --topology NAME`: computes whether a recipe fits a TPU pod, and its step time, without a TPU.

`easylm plan hf:OWNER/MODEL --chips N` does so for SFT, DPO, PPO and GRPO of a model, without a recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.parser import RECIPE
from models.errors import UserError

EXIT_DOES_NOT_FIT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm plan`."""
    parser.add_argument(
        "recipe", type=kinds.NAME, metavar="RECIPE",
        help=f"{RECIPE}; or a model, hf:OWNER/MODEL or hf:FOLDER, for SFT, DPO, PPO and GRPO of it",
    )  # fmt: skip
    parser.add_argument("overrides", metavar="FIELD=VALUE", nargs="*", help="change a field, such as sft.accumulate=2")
    parser.add_argument("--stage", metavar="STAGE", help="plan only this stage (default: all that run on devices)")
    parser.add_argument(
        "--topology", metavar="NAME", help="such as v5p:4x4x4, v5p-128, v5e:16x16*2 (default: the recipe's pod)"
    )
    parser.add_argument("--chips", type=kinds.COUNT, metavar="N", help="in place of --topology: N chips of v5p")
    parser.add_argument(
        "--within", type=kinds.NON_NEGATIVE, metavar="SECONDS", default=115,
        help="of a plan of a model: what is not compiled by then is estimated; 0 compiles everything (default: 115)",
    )  # fmt: skip
    parser.add_argument(
        "--prices", type=kinds.INPUT_FILE, metavar="FILE",
        help="prices in the form of easylm_jax/plan/prices.json, the default",
    )  # fmt: skip
    parser.add_argument("--spot", action="store_true", help="count the price of spot pods instead of on-demand ones")
    parser.add_argument("--mesh", metavar="TEXT", help="the mesh, such as fsdp=32,tp=2 (default: the recipe's)")
    parser.add_argument(
        "--sweep", metavar="AXIS=VALUES", action="append",
        help="plan several pods, meshes, remat policies or batches, such as chips=8..4096x8 or 'remat=attention full'; "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--scaling", choices=("strong", "weak"), default="strong",
        help="in a sweep over pods of several sizes, keep the batch (strong) or the rows per chip (weak)",
    )  # fmt: skip
    parser.add_argument(
        "--write",
        type=kinds.OUTPUT_FILE,
        metavar="FILE",
        help="write the table and the figure of a sweep into the Markdown page FILE",
    )
    parser.add_argument("--json", type=kinds.OUTPUT_FILE, metavar="FILE", help="also write the plan as JSON to FILE")
    parser.add_argument(
        "--out",
        type=kinds.OUTPUT_FOLDER,
        metavar="DIR",
        default="runs",
        help="folder that caches compiled plans (default: runs)",
    )
    parser.add_argument(
        "--no-suggestion", action="store_true", help="if a stage does not fit, do not search for settings that do"
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm plan`: prints the plan; exit status 1 if something does not fit."""
    began = time.monotonic()
    from easylm_jax.plan import topology as topologies

    named = _topology(arguments)  # reports a wrong name before JAX is imported
    topologies.configure_compiler_env()
    from easylm_jax.config.load import load_recipe
    from easylm_jax.plan import by_name, report
    from easylm_jax.plan.cost import read_prices
    from easylm_jax.runtime.mesh import parse_mesh

    if arguments.write and not arguments.sweep:
        raise UserError("--write needs --sweep; use --json to write a plan")
    prices = read_prices(arguments.prices)
    if by_name.names_model(arguments.recipe):
        named = named or topologies.parse(str(load_recipe(by_name.RECIPE).pod))
        recipe = by_name.recipe_of(arguments.recipe, arguments.overrides, named)
    else:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
    if named is None and recipe.pod is None:
        raise UserError(f"recipe {recipe.name} names no pod; give one with --topology, such as v5p-64")
    topology = named or topologies.parse(str(recipe.pod))
    if arguments.mesh is not None:
        with _option("mesh"):
            parse_mesh(arguments.mesh, topology.count)  # before anything is compiled
    if by_name.names_model(arguments.recipe) and not arguments.sweep:
        return _by_name(recipe, topology, arguments, prices, began)
    if arguments.mesh is not None:
        recipe = dataclasses.replace(recipe, mesh=arguments.mesh)
    if arguments.sweep:
        return _sweep(recipe, topology, arguments)
    stages = recipe.stages if arguments.stage is None else (recipe.stage(arguments.stage),)
    devices = topology.devices()
    planner = _planner(arguments)
    rows: list[Any] = []
    for stage in stages:
        with _planning(stage):
            stage_rows = planner.plan(stage, recipe, topology, devices)
        rows += stage_rows
        if arguments.stage is not None and not stage_rows:
            raise UserError(f"stage {stage.name}: a {type(stage).__name__} runs no program on devices")
        if not all(row.fits for row in stage_rows) and not arguments.no_suggestion:
            _suggest(stage, recipe, topology, planner)
    print(report.text(rows, recipe, topology, prices, _price_kind(arguments)))
    plan = report.as_json(rows, topology)
    if arguments.json:
        _write(Path(arguments.json), plan)
    return 0 if plan["fits"] else EXIT_DOES_NOT_FIT


def _topology(arguments: argparse.Namespace) -> Any:
    """The pod of `--topology` or `--chips`; None without either."""
    from easylm_jax.plan import topology as topologies

    if arguments.topology is not None and arguments.chips is not None:
        raise UserError("give --topology or --chips, not both")
    if arguments.topology is not None:
        with _option("topology"):
            return topologies.parse(arguments.topology)
    if arguments.chips is not None:
        counts = [math.prod(shape) for shape in topologies.sizes(topologies.CHIPS["v5p"])]
        if arguments.chips not in counts:
            near = min(counts, key=lambda count: abs(count - arguments.chips))
            raise UserError(
                f"--chips {arguments.chips}: no slice of v5p has so many; the nearest has {near} "
                f"({counts[0]}, {counts[1]}, {counts[2]}, …, {counts[-1]}); other shapes with --topology"
            )
        return topologies.parse(f"v5p-{2 * arguments.chips}")
    return None


def _price_kind(arguments: argparse.Namespace) -> str:
    from easylm_jax.plan.cost import ON_DEMAND, SPOT

    return SPOT if arguments.spot else ON_DEMAND


def _by_name(recipe: Any, topology: Any, arguments: argparse.Namespace, prices: Any, began: float) -> int:
    """The plan of a model without a recipe, `--within` seconds after the command `began` (`time.monotonic`); settings
    that fit are searched for after it is printed."""
    from easylm_jax.plan import by_name, pods

    chosen = by_name.STAGES if arguments.stage is None else (recipe.stage(arguments.stage).name,)
    topology.devices()  # reports a missing compiler once
    found, planner = by_name.points(recipe, chosen, topology, arguments.mesh), _planner(arguments)
    left = max(0.0, arguments.within - (time.monotonic() - began)) if arguments.within else None
    by_name.run(found, recipe, planner, pods.default_jobs(), left)
    kind = _price_kind(arguments)
    print(by_name.text(arguments.recipe, found, recipe, prices, kind), flush=True)
    if arguments.json:
        _write(Path(arguments.json), by_name.as_json(arguments.recipe, found, prices, kind))
    if not arguments.no_suggestion:
        for point in found:
            estimated = any(program.get("estimated_from") for program in point.programs)
            if not point.fits and point.refused is None and not estimated:
                _suggest(point.stage, by_name.recipe_at(recipe, point), topology, planner)
    return 0 if all(point.fits for point in found) else EXIT_DOES_NOT_FIT


@contextlib.contextmanager
def _option(name: str) -> Iterator[None]:
    """Errors in the value of an option begin with the option's name: `--mesh 'fsdp=3' needs …`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--{name} {str(error).removeprefix(f'{name} ')}") from error


@contextlib.contextmanager
def _planning(stage: Any) -> Iterator[None]:
    """Errors of a stage's shapes name the stage, and what on the command line changes them."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if text.startswith(("a batch of", "mesh")):
            text = f"{text} (with {stage.name}.batch=N, or another mesh with --mesh)"
        raise UserError(text if text.startswith("stage ") else f"stage {stage.name}: {text}") from error


def _planner(arguments: argparse.Namespace) -> Any:
    from easylm_jax.experiment import programs_of
    from easylm_jax.plan.report import Planner

    return Planner(programs_of, Path(arguments.out) / "plans", _log)


def _sweep(recipe: Any, topology: Any, arguments: argparse.Namespace) -> int:
    from easylm_jax.plan import report, scale, sweep

    axes = sweep.parse(arguments.sweep)
    if arguments.stage is None:
        raise UserError(f"a sweep is over one stage; give --stage, one of {', '.join(s.name for s in recipe.stages)}")
    stage = recipe.stage(arguments.stage)
    if not stage.compiles:
        raise UserError(f"stage {stage.name}: a {type(stage).__name__} runs no program on devices")
    topology.devices()  # reports a missing compiler once instead of for every point
    points = sweep.points(stage, recipe, topology, axes, arguments.scaling)
    sweep.run(points, recipe, _planner(arguments))
    print(f"{scale.title(recipe, points[0], arguments.scaling)}\n\n{report.aligned(sweep.table(points))}")
    if arguments.json:
        _write(Path(arguments.json), {"scaling": arguments.scaling, "points": [point.as_json() for point in points]})
    if arguments.write:
        try:
            scale.write(Path(arguments.write), points, recipe, arguments.scaling, _command(arguments))
        except OSError as error:
            raise UserError(f"cannot write {arguments.write}: {error.strerror}; give another with --write") from error
    return 0 if any(point.fits for point in points) else EXIT_DOES_NOT_FIT


def _command(arguments: argparse.Namespace) -> str:
    """The command line, without the folder for cached plans."""
    words = ["easylm", "plan", arguments.recipe, *arguments.overrides, "--stage", arguments.stage]
    for option in ("topology", "mesh"):
        if getattr(arguments, option):
            words += [f"--{option}", getattr(arguments, option)]
    for axis in arguments.sweep:
        words += ["--sweep", axis]
    return shlex.join([*words, "--scaling", arguments.scaling, "--write", arguments.write])


def _suggest(stage: Any, recipe: Any, topology: Any, planner: Any) -> None:
    from easylm_jax.plan.suggest import suggest_settings

    _log(f"{stage.name}: does not fit; searching for the closest settings that do")
    settings = suggest_settings(stage, recipe, topology, planner)
    if settings is None:
        _log(f"{stage.name}: fits no {topology.chip.name} pod with any of the settings tried")
    else:
        _log(f"{stage.name}: fits with {' '.join(settings)}")


def _log(text: str) -> None:
    print(f"[plan] {text}", file=sys.stderr, flush=True)


def _write(path: Path, plan: dict[str, Any]) -> None:
    from easylm_jax.runtime.files import write_json

    try:
        write_json(path, plan)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file with --json") from error
