"""`easylm run`: runs or resumes the stages of a recipe."""

from __future__ import annotations

import argparse

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.parser import RECIPE, Parser, UsageError


def add_arguments(parser: Parser) -> None:
    """The arguments of `easylm run`."""
    parser.add_argument("recipe", type=kinds.NAME, metavar="RECIPE", help=RECIPE)
    parser.add_argument(
        "overrides", metavar="FIELD=VALUE", nargs="*", help="change a field, such as sft.optimizer.lr=1e-5"
    )
    parser.add_argument("--only", metavar="STAGE", help="run only this stage; the stages it needs must be done")
    parser.add_argument(
        "--out", type=kinds.OUTPUT_FOLDER, metavar="DIR", default="runs", help="folder for runs (default: runs)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start again if the run exists; its checkpoints are set aside"
    )
    parser.add_argument("--list", action="store_true", help="print the stages and their progress, and exit")
    parser.add_argument("--show-config", action="store_true", help="print the resolved configuration, and exit")


def main(arguments: argparse.Namespace) -> int:
    """`easylm run RECIPE`: runs or resumes its stages."""
    from easylm_jax.config.catalog import find_recipe

    find_recipe(arguments.recipe)  # a misspelt one is told before anything heavy is imported
    for text in arguments.overrides:
        if "=" not in text:
            raise UsageError(f"{text!r} is not FIELD=VALUE; write for example sft.optimizer.lr=1e-5")
    from easylm_jax import experiment

    return experiment.run(
        arguments.recipe,
        overrides=arguments.overrides,
        only=arguments.only,
        out=arguments.out,
        overwrite=arguments.overwrite,
        list_stages=arguments.list,
        show_config=arguments.show_config,
    )
