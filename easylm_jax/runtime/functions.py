"""Looks up functions that recipes and tables name as `module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from models.errors import UserError


def load_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        UserError: the module cannot be imported, for whatever reason, or has no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the module is the user's program
        why = repr(error) if isinstance(error, SystemExit) else str(error) or type(error).__name__
        raise UserError(f"no function {name!r} (module:function): {why}") from error
    try:
        found = getattr(imported, attribute)
    except Exception as error:
        place = getattr(imported, "__file__", None)
        raise UserError(
            f"no function {name!r} (module:function): {error or type(error).__name__}{f' ({place})' if place else ''}"
        ) from error
    if not callable(found):
        raise UserError(f"{name!r} is not a function; name one as module:function")
    return found


def resolve(entry: Callable[..., Any] | str) -> Callable[..., Any]:
    """The function of a table's line: the line holds it, or its `module:function`, imported when it is first used."""
    return load_function(entry) if isinstance(entry, str) else entry
