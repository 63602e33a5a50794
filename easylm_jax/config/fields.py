"""Frozen dataclasses to JSON and back, and single fields changed by text from the command line.

A recipe is made of dataclasses; what was run is saved as JSON; a command line says `sft.optimizer.lr=1e-5`. The type
annotations are the schema: an unknown field or a value of the wrong type is one line that names what would fit.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from typing import Any, Literal, TypeVar, Union

from models.errors import UserError

T = TypeVar("T")


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Annotated type of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def later(default: Any) -> Any:
    """A field that a class got after runs of it were saved: at its default it is left out of JSON and of digests.

    So settings that do not use it keep the digest that they had, and run folders from before go on.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def said(value: Any) -> list[str]:
    """The fields of a dataclass that stand in its JSON: all but those of `later` at their default."""
    return [
        field.name
        for field in dataclasses.fields(value)
        if not (field.metadata.get("later") and getattr(value, field.name) == field.default)
    ]


def former(value: Any) -> dict[str, Any]:
    """Fields that a class no longer has, at the one value that they had; digests count them as before."""
    return dict(getattr(type(value), "FORMER_FIELDS", {}))


def encode(value: Any) -> Any:
    """Plain JSON of dataclasses, tuples, dicts and scalars; a dataclass carries its name under `class`.

    Fields made by `later` are left out at their defaults.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "class": type(value).__name__, **former(value),
            **{name: encode(getattr(value, name)) for name in said(value)},
        }  # fmt: skip
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot stand in a recipe")


def decode(cls: type[T], data: dict[str, Any]) -> T:
    """The dataclass that `encode` wrote. Fields that it no longer has, or that are of another type, are errors."""
    hints = field_types(cls)
    values = {}
    for name, item in data.items():
        if name == "class" or name in getattr(cls, "FORMER_FIELDS", {}):
            continue
        _check_field(cls, name)
        values[name] = _decode_value(hints[name], item, f"{cls.__name__}.{name}")
    return cls(**values)


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a single type stands alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _decode_value(hint: Any, item: Any, where: str) -> Any:
    if isinstance(item, dict) and "class" in item:
        for option in _options(hint):
            if dataclasses.is_dataclass(option) and (cls := _called(option, item["class"])):
                return decode(cls, item)
        raise UserError(f"{where}: a {item['class']} does not belong here")
    if isinstance(item, list):
        for option in _options(hint):
            if typing.get_origin(option) is tuple:
                inner = typing.get_args(option)[0]
                return tuple(_decode_value(inner, element, where) for element in item)
    return item


def _called(cls: type, name: str) -> type | None:
    """The class itself or the one derived from it that has this name: a list of stages holds many kinds."""
    if cls.__name__ == name:
        return cls
    return next(filter(None, (_called(derived, name) for derived in cls.__subclasses__())), None)


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that change when anything in `value` does."""
    text = json.dumps(encode(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def override(value: T, path: str, text: str) -> T:
    """A copy of a dataclass with the field at a dotted path set from text, read as the field's type says.

    Numbers in the path choose an item of a tuple: `data.sources.0.path`.
    """
    name, _, rest = path.partition(".")
    _check_field(type(value), name)
    if rest:
        inner = getattr(value, name)
        changed = _override_item(inner, rest, text, path) if isinstance(inner, tuple) else None
        if changed is None and not dataclasses.is_dataclass(inner):
            raise UserError(f"{path}: {name} is {inner!r} and has no fields of its own")
        return dataclasses.replace(value, **{name: override(inner, rest, text) if changed is None else changed})
    return dataclasses.replace(value, **{name: parse(field_types(type(value))[name], text, path)})


def _override_item(items: tuple, path: str, text: str, where: str) -> tuple:
    """A copy of a tuple of dataclasses with a field of one item set: `sources.0.path=…`."""
    index, _, rest = path.partition(".")
    if not (index.isdigit() and int(index) < len(items) and rest and dataclasses.is_dataclass(items[int(index)])):
        raise UserError(f"{where}: write an index below {len(items)} and a field, such as 0.path")
    at = int(index)
    return (*items[:at], override(items[at], rest, text), *items[at + 1 :])


def check_types(value: Any, where: str = "") -> None:
    """Raises `UserError` for the first field of a dataclass, at any depth, whose value is not what its type says."""
    hints = field_types(type(value))
    for name, hint in hints.items():
        item, path = getattr(value, name), f"{where}.{name}".lstrip(".")
        if not _fits_any(hint, item):
            raise UserError(f"{path}: {item!r} is not {_spell(hint)}")
        inner = item if isinstance(item, tuple) else (item,)
        for at, element in enumerate(inner):
            if dataclasses.is_dataclass(element):
                own = getattr(element, "name", None) if where == "" else None  # a stage is called by its name
                check_types(element, own or (path if inner is not item else f"{path}.{at}"))


def _fits(option: Any, item: Any) -> bool:
    """Whether a value is of one alternative of an annotation; a whole number passes for a number."""
    origin = typing.get_origin(option)
    if origin is Literal:
        return item in typing.get_args(option)
    if origin is tuple:
        inner = typing.get_args(option)
        inner = (inner[0],) * len(item) if isinstance(item, tuple) and inner[-1] is Ellipsis else inner
        return isinstance(item, tuple) and len(item) == len(inner) and all(map(_fits_any, inner, item))
    if option in (int, float):
        return isinstance(item, (int, option)) and not isinstance(item, bool)
    return option is Any or isinstance(item, origin or option)


def _fits_any(hint: Any, item: Any) -> bool:
    return any(_fits(option, item) for option in _options(hint))


def unknown_field(cls: type, name: str) -> str:
    """What to say of a field that a class does not have: the nearest that it has, or all of them."""
    known = field_types(cls)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
    return f"{cls.__name__} has no field {name!r}; {hint}"


def _check_field(cls: type, name: str) -> None:
    if name not in field_types(cls):
        raise UserError(unknown_field(cls, name))


def parse(hint: Any, text: str, path: str) -> Any:
    """Text as the first alternative of `hint` that it fits."""
    for option in sorted(_options(hint), key=lambda option: option is str):  # text fits str always, so str comes last
        try:
            return _parse_one(option, text)
        except (ValueError, SyntaxError, OverflowError):
            continue
    raise UserError(f"{path}: {text!r} is not {_spell(hint)}")


def _parse_one(option: Any, text: str) -> Any:
    origin = typing.get_origin(option)
    if option is type(None):
        if text.lower() in ("none", "null", ""):
            return None
    elif option is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif option is int:
        number = float(text.replace("_", ""))
        if number == int(number):
            return int(number)
    elif option is float:
        return float(text.replace("_", ""))
    elif option is str:
        return text
    elif origin is Literal:
        if text in typing.get_args(option):
            return text
    elif origin is tuple:
        inner = typing.get_args(option)[0]
        parsed = (
            ast.literal_eval(text) if text[:1] in "([" else [part.strip() for part in text.split(",") if part.strip()]
        )
        return tuple(_parse_one(inner, str(part)) for part in parsed)
    raise ValueError


def _spell(hint: Any) -> str:
    """A type in words for an error message."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}

    def one(option: Any) -> str:
        if typing.get_origin(option) is Literal:
            return "one of " + ", ".join(map(repr, typing.get_args(option)))
        if typing.get_origin(option) is tuple:
            return "a list such as a,b"
        return words.get(option, f"a {getattr(option, '__name__', option)}")

    return " or ".join(one(option) for option in _options(hint))
