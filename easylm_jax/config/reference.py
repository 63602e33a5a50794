"""The reference of a recipe's fields, read from the dataclasses: type, default, and the text below each field.

A field is documented by the string that stands below it in its class; a subclass that gives it another meaning repeats
it. `easylm fields` prints the reference and docs/fields.md holds all of it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from typing import Any

from easylm_jax import config
from easylm_jax.config import fields
from easylm_jax.config.bounds import Bounds
from models.errors import UserError

# Base classes whose fields are those of other stages.
_ABSTRACT = ("Stage", "Train", "RL", "Generate", "Writes", "Speaks")


@dataclasses.dataclass(frozen=True)
class FieldDoc:
    """One field: its name, its type in words, its default as written in Python ("" where it must be given), and its
    meaning."""

    name: str
    type: str
    default: str
    meaning: str


def classes() -> dict[str, type]:
    """The dataclasses that recipes are made of, by name: first the recipe and the stages, then what they contain."""
    public: list[type] = [getattr(config, name) for name in config.__all__]
    stages = [cls for cls in public if issubclass(cls, config.Stage) and cls.__name__ not in _ABSTRACT]
    ordered: list[type] = [config.Recipe, *sorted(stages, key=lambda cls: cls.__name__.lower())]
    for cls in ordered:  # grows while it is walked
        inner = [one for hint in fields.field_types(cls).values() for _, one in fields.nested_classes(hint)]
        ordered += [one for one in inner if one not in ordered and one.__name__ not in _ABSTRACT]
    return {cls.__name__: cls for cls in ordered}


def find(path: str) -> type:
    """The dataclass at a path: a class, such as `GRPO`, or a field of one that holds another, such as `GRPO.optimizer`.

    Raises:
        UserError: there is no such class, or the field has no fields of its own.
    """
    import difflib

    name, *parts = path.split(".")
    known = classes()
    by_lower = {one.lower(): one for one in known}
    if name.lower() not in by_lower:
        near = difflib.get_close_matches(name.lower(), by_lower, n=1)
        hint = f"did you mean {by_lower[near[0]]!r}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no part of a recipe is called {name!r}; {hint}")
    cls = known[by_lower[name.lower()]]
    for part in parts:
        if part.isdigit():  # the index of a tuple, as in data.sources.0
            continue
        if part not in fields.field_types(cls):
            raise UserError(fields.unknown_field(cls, part))
        inner = fields.nested_classes(fields.field_types(cls)[part])
        if not inner:
            owner = cls.__name__
            raise UserError(f"{owner}.{part} has no fields of its own; `easylm fields {owner}` says what it is")
        cls = inner[0][1]
    return cls


def describe(cls: type) -> list[FieldDoc]:
    """The fields of a dataclass, in the order of its definition."""
    meanings: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if owner is not object:
            meanings |= _meanings(owner)
    types, bounds = fields.field_types(cls), fields.field_bounds(cls)
    docs = []
    for field in dataclasses.fields(cls):
        kind = type_text(types[field.name], _range_text(bounds.get(field.name)))
        docs.append(FieldDoc(field.name, kind, _default_text(field), meanings.get(field.name, "")))
    return docs


def _range_text(bounds: Bounds | None) -> str:
    """The range of a number, such as " of at least 1"; limits of its representation (2³¹ and more) are left out."""
    if bounds is None:
        return ""
    parts = [("of at least", bounds.low), ("above", bounds.above), ("at most", bounds.high), ("below", bounds.below)]
    words = [f"{word} {limit:g}" for word, limit in parts if limit is not None and limit < 2**31]
    return f" {' and '.join(words)}" if words else ""


def summary(cls: type) -> str:
    """What a class is: its docstring as paragraphs."""
    return inspect.cleandoc(cls.__doc__ or "")


@functools.cache
def _meanings(cls: type) -> dict[str, str]:
    """The strings below the fields that a class itself defines."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[statement.target.id] = " ".join(text.split())
    return found


def type_text(hint: Any, limits: str = "") -> str:
    """A type as a recipe's author reads it: `whole number`, `text or none`, `"a", "b"`, `tuple of Source`.

    `limits` is the range of a number, written behind it.
    """
    words = {
        int: f"whole number{limits}",
        float: f"number{limits}",
        bool: "true or false",
        str: "text",
        type(None): "none",
    }
    parts = []
    for option in fields.type_options(hint):
        origin, inner = typing.get_origin(option), typing.get_args(option)
        if origin is typing.Literal:
            parts.append(", ".join(f'"{choice}"' for choice in inner))
        elif origin is tuple and inner[-1] is Ellipsis:
            parts.append(f"tuple of {type_text(inner[0], limits)}")
        elif origin is tuple:
            parts.append(f"({', '.join(map(type_text, inner))})")
        elif origin is not None:
            parts.append(f"mapping of {type_text(inner[0])} to {type_text(inner[1])}")
        else:
            parts.append(words.get(option, getattr(option, "__name__", str(option))))
    return " or ".join(dict.fromkeys(parts))


def _default_text(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return ""
    if dataclasses.is_dataclass(field.default):
        own = [
            f"{one.name}={getattr(field.default, one.name)!r}"
            for one in dataclasses.fields(field.default)
            if getattr(field.default, one.name) != one.default
        ]
        return f"{type(field.default).__name__}({', '.join(own)})"
    return repr(field.default)


def text(cls: type, width: int = 100) -> str:
    """The reference of one class for a terminal."""
    lines = [cls.__name__, "", *textwrap.indent(summary(cls), "  ").splitlines(), ""]
    for doc in describe(cls):
        default = f" = {doc.default}" if doc.default else " (must be given)"
        lines.append(f"  {doc.name}{default}    [{doc.type}]")
        lines += textwrap.wrap(doc.meaning, width, initial_indent="      ", subsequent_indent="      ")
    nested = [f"{cls.__name__}.{name}" for name, hint in fields.field_types(cls).items() if fields.nested_classes(hint)]
    if nested:
        lines += ["", f"`easylm fields NAME` shows what is inside: {', '.join(nested)}"]
    return "\n".join(lines)


def page() -> str:
    """docs/fields.md: the reference of all classes."""
    lines = [
        "# Fields",
        "",
        "Every field of a recipe with its type, its default and its meaning. This page is what `easylm fields --page`",
        "prints; `easylm fields GRPO` prints one part of it, `easylm fields GRPO.optimizer` what a field holds. On the",
        "command line a field is `<stage>.<field>=<value>`, with dots for nested ones: `sft.optimizer.lr=1e-5`.",
    ]
    for name, cls in classes().items():
        lines += ["", f"## {name}", "", summary(cls), "", "| field | type | default | meaning |", "|---|---|---|---|"]
        for doc in describe(cls):
            default = f"`{doc.default}`" if doc.default else "(must be given)"
            cells = (f"`{doc.name}`", doc.type, default, doc.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
