"""`easylm plan RECIPE --topology NAME`: does it fit a TPU pod, and how long should it take? No TPU is needed."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from models.errors import UserError

NOT_FITTING = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm plan`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a Python file that holds `recipe = Recipe(...)`")
    parser.add_argument("overrides", metavar="FIELD=VALUE", nargs="*", help="change a field, such as sft.accumulate=2")
    parser.add_argument("--stage", metavar="STAGE", help="this stage alone (default: all that run on devices)")
    parser.add_argument(
        "--topology", metavar="NAME", help="such as v5p:4x4x4, v5p-128, v5e:16x16*2 (default: the recipe's pod)"
    )
    parser.add_argument("--mesh", metavar="TEXT", help="in place of the recipe's, such as fsdp=32,tp=2")
    parser.add_argument("--json", metavar="FILE", help="also write the plan to FILE")
    parser.add_argument("--out", metavar="DIR", default="runs", help="where compiled plans are kept (default: runs)")
    parser.add_argument(
        "--no-suggestion", action="store_true", help="where it does not fit, do not look for what would"
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm plan`; exit status 1 where something does not fit."""
    from easylm_jax.plan import topology as topologies

    topologies.quiet()
    if arguments.topology is not None:
        topologies.parse(arguments.topology)  # what is misspelt is told before anything is loaded

    import jax

    jax.config.update("jax_platforms", "cpu")
    from easylm_jax.experiment import load_recipe
    from easylm_jax.plan import report

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.mesh is not None:
        recipe = dataclasses.replace(recipe, mesh=arguments.mesh)
    name = arguments.topology or recipe.pod
    if name is None:
        raise UserError(f"recipe {recipe.name} names no pod; give one with --topology, such as v5p-64")
    topology = topologies.parse(name)
    stages = recipe.stages if arguments.stage is None else (recipe.stage(arguments.stage),)
    devices = topology.devices()
    folder = Path(arguments.out) / "plans"
    rows: list[Any] = []
    for stage in stages:
        own = report.plan(stage, recipe, topology, devices, folder, _say)
        rows += own
        if arguments.stage is not None and not own:
            raise UserError(f"stage {stage.name}: a {type(stage).__name__} runs no program on devices")
        if own and not all(row.fits for row in own) and not arguments.no_suggestion:
            _suggest(stage, recipe, topology, folder)
    print(report.text(rows, recipe, topology))
    found = report.as_json(rows, topology)
    if arguments.json:
        _write(Path(arguments.json), found)
    return 0 if found["fits"] else NOT_FITTING


def _suggest(stage: Any, recipe: Any, topology: Any, folder: Path) -> None:
    from easylm_jax.plan.nearest import nearest

    _say(f"{stage.name}: does not fit; looking for the nearest settings that do")
    settings = nearest(stage, recipe, topology, folder, _say)
    if settings is None:
        _say(f"{stage.name}: does not fit {topology.chip.name}, however it is cut and however many chips there are")
    else:
        _say(f"{stage.name}: it does fit with {' '.join(settings)}")


def _say(text: str) -> None:
    print(f"[plan] {text}", file=sys.stderr, flush=True)


def _write(path: Path, found: dict[str, Any]) -> None:
    from easylm_jax.files import write_json

    try:
        write_json(path, found)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file with --json") from error
