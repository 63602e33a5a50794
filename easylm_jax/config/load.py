"""Loads a recipe from its Python file and applies `field=value` overrides of the command line."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from easylm_jax import config
from easylm_jax.config import Recipe, fields
from easylm_jax.config.catalog import find_recipe
from models.errors import UserError


def load_recipe(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The `recipe` of a Python file with the `field=value` overrides applied: `mesh=…` or `<stage>.<field>=…`.

    `path` is a file or the name of an installed recipe (`catalog.find_recipe`). The file's folder is put on `sys.path`,
    behind everything else, for this process and for the processes that it starts: a recipe may import modules beside it
    and name functions in them as `"module:function"`. All overrides are applied before the recipe is validated.

    Raises:
        UserError: the file cannot be imported, holds no recipe, or a field or override is wrong; names file and line.
    """
    file = find_recipe(path).resolve()
    root = next((folder for folder in file.parents if (folder / "recipes").is_dir()), None)
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))  # recipes import shared modules, as in `from recipes.tulu25 import data`
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # last, so that a file such as models.py hides no installed package
    importlib.invalidate_caches()  # a module beside it may have been written a moment ago
    recipe = getattr(_import(file, path), "recipe", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} holds no recipe; it must set `recipe = Recipe(...)` (easylm_jax.config)")
    try:
        fields.check_types(recipe)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    changed = _override(recipe, overrides)
    fields.check_types(changed)
    return changed


def _import(file: Path, path: str) -> ModuleType:
    """Runs a recipe's file; whatever it raises becomes a `UserError` with its line, also `SystemExit`."""
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; a recipe is one that holds `recipe = Recipe(...)`")
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{_place(error, file, path)}: {error}") from error
    except BaseException as error:  # a recipe is the user's program; sys.exit(0) in it must not end as success
        raise UserError(f"{_place(error, file, path)}: {_describe_error(error)}") from error
    return module


def _place(error: BaseException, file: Path, path: str) -> str:
    """The path of the recipe, with the line that an error comes from."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(file)]
    if isinstance(error, SyntaxError) and error.lineno is not None and error.filename == str(file):
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else path


def _describe_error(error: BaseException) -> str:
    """An error of a recipe in one line; for a misspelt field, with the most similar one."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return f"the recipe ended with {error!r} before it set `recipe`; remove that from the file"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    cls = getattr(config, found[1], None) if found else None
    if found and isinstance(cls, type) and dataclasses.is_dataclass(cls):
        return fields.unknown_field(cls, found[2])
    return f"{type(error).__name__}: {error}"


def _override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with all overrides applied, each stage validated once."""
    own: list[tuple[str, str]] = []
    of_stages: dict[str, list[tuple[str, str]]] = {}
    names = [stage.name for stage in recipe.stages]
    for text in overrides:
        path, _, value = text.partition("=")
        # The name of a stage may contain a dot ("qwen2.5-7b").
        stage = max((name for name in names if path == name or path.startswith(f"{name}.")), key=len, default=None)
        if path == "stages" or path == stage:
            raise UserError(f"{text!r}: name a field of the stage, such as {path}.seed=1")
        if stage is not None:
            of_stages.setdefault(stage, []).append((path[len(stage) + 1 :], value))
        elif path in fields.field_types(Recipe):
            own.append((path, value))
        else:
            raise _unknown(recipe, path)
    changed = {name: fields.override_all(recipe.stage(name), pairs, f"{name}.") for name, pairs in of_stages.items()}
    stages = tuple(changed.get(stage.name, stage) for stage in recipe.stages)
    return dataclasses.replace(fields.override_all(recipe, own), stages=stages)


def _unknown(recipe: Recipe, path: str) -> UserError:
    """The error for an override of neither the recipe nor a stage: suggests a field of the recipe or of a stage."""
    name, dot, rest = path.partition(".")
    if dot:
        near = difflib.get_close_matches(name, [stage.name for stage in recipe.stages], n=1)
        hint = f" (did you mean '{near[0]}.{rest}'?)" if near else ""
        stages = ", ".join(stage.name for stage in recipe.stages)
        return UserError(f"recipe {recipe.name} has no stage {name!r}{hint}; it has {stages}")
    if not difflib.get_close_matches(name, fields.field_types(Recipe), n=1):
        for stage in recipe.stages:
            meant = fields.similar_field(type(stage), name)
            if meant is not None:
                return UserError(f"Recipe has no field {name!r}; did you mean '{stage.name}.{meant}'?")
    return UserError(fields.unknown_field(Recipe, name))
