"""Finds recipes: files of the user's, and the installed ones by name, such as `tulu3/sft_8b`."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from pathlib import Path

from models.errors import UserError

PACKAGE = "recipes"


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of an installed recipe.

    `tulu3/sft_8b`, `tulu3/sft_8b.py` and `recipes/tulu3/sft_8b.py` all name the installed file
    `recipes/tulu3/sft_8b.py`, from any folder. A file at the path comes first.

    Raises:
        UserError: there is no such file; the message suggests the nearest recipe.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        is_folder = bool(name) and path.is_dir()
    except (OSError, ValueError) as error:  # longer than a path may be, or not readable
        raise UserError(f"cannot read recipe {_shortened(name)}: {_reason(error)}") from None
    known = installed_recipes()
    plain = name.removeprefix(f"{PACKAGE}/").removesuffix(".py")
    if plain in known:
        return known[plain]
    near = _nearest(name, plain, known)
    if near is not None and not is_folder:
        raise UserError(f"no recipe at {_shortened(name)}; did you mean {near!r}?")
    if is_folder:
        raise UserError(f"{name} is a folder, not a recipe; give a Python file in it that holds `recipe = Recipe(...)`")
    raise UserError(
        f"no recipe at {_shortened(name)}, and no installed recipe of that name; give the path of a recipe file, or "
        "one of the names that `easylm recipes` lists"
    )


def installed_recipes() -> dict[str, Path]:
    """The files of the installed recipes by name, sorted: every file of the package that sets `recipe`."""
    found = {}
    for folder in _folders():
        for file in folder.rglob("*.py"):
            if "\nrecipe = " in file.read_text(encoding="utf-8"):
                found[name_of(file, folder)] = file
    return dict(sorted(found.items()))


def name_of(file: Path, folder: Path) -> str:
    """The name of a recipe: its path in `folder` without the suffix."""
    return file.relative_to(folder).with_suffix("").as_posix()


def summary(file: Path) -> str:
    """The first line of a recipe's docstring without its full stop: what it trains, and its paper."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].strip().rstrip(".")


def _folders() -> list[Path]:
    package = importlib.util.find_spec(PACKAGE)
    return [Path(folder) for folder in (package and package.submodule_search_locations) or ()]


def _nearest(name: str, plain: str, known: dict[str, Path]) -> str | None:
    """The recipe that `name` most probably means, in the form in which it was written; None without a similar one."""
    own = {path.as_posix() for path in Path(PACKAGE).rglob("*.py") if path.name != "__init__.py"}
    near = difflib.get_close_matches(plain, known, n=1) or difflib.get_close_matches(
        plain.rpartition("/")[2], {one.rpartition("/")[2] for one in known}, n=1, cutoff=0.8
    )
    if near:
        found = next(one for one in known if one == near[0] or one.rpartition("/")[2] == near[0])
        return f"{PACKAGE}/{found}.py" if name.startswith(f"{PACKAGE}/") else found
    return next(iter(difflib.get_close_matches(name, sorted(own), n=1)), None)


def _shortened(name: str) -> str:
    return (name or "''") if len(name) <= 200 else f"{name[:80]}… ({len(name)} characters)"


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
