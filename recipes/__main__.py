"""Prints the recipes of this folder as the table that `docs/recipes.md` holds: `python -m recipes`."""

from __future__ import annotations

import sys
from pathlib import Path

from easylm_jax.config import Recipe, catalog
from easylm_jax.config.catalog import summary
from easylm_jax.config.load import load_recipe

FOLDER = Path(__file__).parent


def recipe_files() -> list[Path]:
    """Every file that defines `recipe`, sorted by path; modules that recipes share do not."""
    return sorted(catalog.installed_recipes().values())


def name_of(path: Path) -> str:
    """The name of a recipe, by which `easylm run` finds it: its path in this folder without the suffix."""
    return catalog.name_of(path, FOLDER)


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
