"""Prints the recipes of this folder as the table that `docs/recipes.md` holds: `python -m recipes`."""

from __future__ import annotations

import sys
from pathlib import Path

from easylm_jax.config import Recipe
from easylm_jax.config.load import load_recipe

FOLDER = Path(__file__).parent


def recipe_files() -> list[Path]:
    """Every file that defines `recipe`, sorted by path; modules that recipes share do not."""
    return sorted(path for path in FOLDER.rglob("*.py") if "\nrecipe = " in path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """The name of a recipe in documentation: its path in this folder without the suffix."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def summary(path: Path) -> str:
    """The first line of a recipe's docstring: what it trains, and its paper."""
    return path.read_text(encoding="utf-8").split('"""')[1].partition("\n")[0].strip().rstrip(".")


def stages(recipe: Recipe) -> str:
    """Names of the stages, in the order of the file."""
    return ", ".join(stage.name for stage in recipe.stages)


def table() -> str:
    """A Markdown table of all recipes."""
    lines = ["| file | what it trains | stages |", "|---|---|---|"]
    for path in recipe_files():
        name = path.relative_to(FOLDER.parent).as_posix()
        lines.append(f"| `{name}` | {summary(path)} | {stages(load_recipe(str(path)))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
