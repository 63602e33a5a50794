"""Loads a recipe from its Python file and applies `field=value` overrides of the command line."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
import sys
import traceback
from pathlib import Path

from easylm_jax import config
from easylm_jax.config import Recipe, fields
from models.errors import UserError


def load_recipe(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The `recipe` of a Python file, with `field=value` overrides applied: `mesh=…` or `<stage>.<field>=…`.

    Raises:
        UserError: the file cannot be imported, holds no recipe, or a field or override is wrong; names file and line.
    """
    file = find_recipe(path).resolve()
    root = next((folder for folder in file.parents if (folder / "recipes").is_dir()), None)
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))  # recipes import shared modules, as in `from recipes.tulu25 import data`
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; a recipe is one that holds `recipe = Recipe(...)`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{_place(error, file, path)}: {error}") from error
    except Exception as error:  # a recipe is the user's program; report any error with its line
        raise UserError(f"{_place(error, file, path)}: {_describe_error(error)}") from error
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} holds no recipe; it must set `recipe = Recipe(...)` (easylm_jax.config)")
    try:
        fields.check_types(recipe)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for text in overrides:
        recipe = _override(recipe, text)
    return recipe


def find_recipe(path: str) -> Path:
    """The file at `path`, or, for a `recipes/...` that is not here, the file of that name among the installed recipes.

    Raises:
        UserError: there is neither.
    """
    if Path(path).is_file():
        return Path(path)
    package = importlib.util.find_spec("recipes")
    folders = [Path(folder) for folder in (package and package.submodule_search_locations) or ()]
    found = next((folder.parent / path for folder in folders if (folder.parent / path).is_file()), None)
    if found is not None and Path(path).parts[0] == "recipes":
        return found
    known = {
        file.relative_to(folder.parent).as_posix()
        for folder in (Path("recipes"), *folders) for file in folder.rglob("*.py") if file.name != "__init__.py"
    }  # fmt: skip
    near = difflib.get_close_matches(path, sorted(known), n=1)
    if near:
        raise UserError(f"no recipe at {path}; did you mean {near[0]!r}?")
    raise UserError(
        f"no recipe at {path}, and no installed recipe of that name; give the path of a recipe file, such as "
        "recipes/quickstart.py"
    )


def _place(error: BaseException, file: Path, path: str) -> str:
    """The path of the recipe, with the line that an error comes from."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(file)]
    if isinstance(error, SyntaxError) and error.lineno is not None and error.filename == str(file):
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else path


def _describe_error(error: Exception) -> str:
    """An error of a recipe in one line; for a misspelt field, with the most similar one."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    cls = getattr(config, found[1], None) if found else None
    if found and isinstance(cls, type) and dataclasses.is_dataclass(cls):
        return fields.unknown_field(cls, found[2])
    return f"{type(error).__name__}: {error}"


def _override(recipe: Recipe, text: str) -> Recipe:
    path, _, value = text.partition("=")
    # The name of a stage may contain a dot ("qwen2.5-7b").
    named = [stage.name for stage in recipe.stages if path == stage.name or path.startswith(f"{stage.name}.")]
    name = max(named, key=len, default=path.partition(".")[0])
    rest = path[len(name) + 1 :]
    if not rest:
        if name == "stages" or name in (stage.name for stage in recipe.stages):
            raise UserError(f"{text!r}: name a field of the stage, such as {name}.seed=1")
        return fields.override(recipe, name, value)
    changed = fields.override(recipe.stage(name), rest, value)
    return dataclasses.replace(recipe, stages=tuple(changed if s.name == name else s for s in recipe.stages))
