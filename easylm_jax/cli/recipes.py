"""`easylm recipes`: lists the installed recipes, which `easylm run NAME` and `easylm plan NAME` find by name."""

from __future__ import annotations

import argparse
from pathlib import Path

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.parser import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm recipes`."""
    parser.add_argument(
        "text", type=kinds.ANY, metavar="TEXT", nargs="?", default="", help="only recipes with this text in the line"
    )
    parser.add_argument(
        "--json",
        type=kinds.OUTPUT_FILE,
        metavar="FILE",
        help="also write names, files and descriptions as JSON to FILE",
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm recipes`: prints a line for each recipe, its name and the first line of its docstring."""
    from easylm_jax.config.catalog import installed_recipes, summary
    from easylm_jax.runtime.files import write_json
    from models.errors import UserError

    rows = [{"name": name, "file": str(file), "summary": summary(file)} for name, file in installed_recipes().items()]
    text = arguments.text.lower()
    rows = [row for row in rows if text in f"{row['name']} {row['summary']}".lower()]
    if not rows:
        raise UsageError(f"no recipe with {arguments.text!r}; `easylm recipes` lists all")
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['summary']}")
    if arguments.json:
        try:
            write_json(Path(arguments.json), {"recipes": rows})
        except OSError as error:
            raise UserError(f"cannot write {arguments.json}: {error.strerror}; give another with --json") from None
    return 0
