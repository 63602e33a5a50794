"""Converts frozen dataclasses to JSON and back, and overrides single fields from text of the command line.

A recipe is made of dataclasses, its settings are saved as JSON, and the command line overrides fields, such as
`sft.optimizer.lr=1e-5`. Type annotations are the schema: an unknown field or a value of the wrong type is a `UserError`
that names what would be accepted.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast

from easylm_jax.config.bounds import FINITE, Bounds
from models.config import added_later as added_later  # `fields.added_later`, as configurations use it
from models.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_FIELD_TYPES: dict[type, dict[str, Any]] = {}  # reading annotations is slow, so it is done once for each class
_FIELD_BOUNDS: dict[type, dict[str, Bounds]] = {}


def field_types(cls: type[Any]) -> dict[str, Any]:
    """The annotated type of each field of a dataclass."""
    if cls not in _FIELD_TYPES:
        hints = typing.get_type_hints(cls)
        _FIELD_TYPES[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return _FIELD_TYPES[cls]


def field_bounds(cls: type[Any]) -> dict[str, Bounds]:
    """The bounds of the numbers in each field of a dataclass (`config.bounds`); fields without any are left out."""
    if cls not in _FIELD_BOUNDS:
        hints = typing.get_type_hints(cls, include_extras=True)
        found = {field.name: _bounds_in(hints[field.name]) for field in dataclasses.fields(cls)}
        _FIELD_BOUNDS[cls] = {name: bounds for name, bounds in found.items() if bounds is not None}
    return _FIELD_BOUNDS[cls]


def _bounds_in(hint: Any) -> Bounds | None:
    own = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Bounds)), None)
    return own or next(filter(None, map(_bounds_in, typing.get_args(hint))), None)


def encoded_fields(value: Any) -> list[str]:
    """Names of the fields in the JSON of a dataclass: all but fields of `added_later` at their default."""
    return [
        field.name
        for field in dataclasses.fields(value)
        if not (field.metadata.get("added_later") and getattr(value, field.name) == field.default)
    ]


def removed_fields(value: Any) -> dict[str, Any]:
    """Removed fields of a class with the only value that they ever had; digests still include them."""
    return dict(getattr(type(value), "FORMER_FIELDS", {}))


def encode(value: Any) -> Any:
    """Plain JSON of dataclasses, tuples, dicts and scalars; a dataclass carries its name under `class`.

    Fields made by `added_later` are left out at their defaults.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "class": type(value).__name__, **removed_fields(value),
            **{name: encode(getattr(value, name)) for name in encoded_fields(value)},
        }  # fmt: skip
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be part of a recipe")


def decode(cls: type[T], data: dict[str, Any]) -> T:
    """The dataclass that `encode` wrote; `UserError` for an unknown field or a class that does not belong there."""
    hints = field_types(cls)
    values = {}
    for name, item in data.items():
        if name == "class" or name in getattr(cls, "FORMER_FIELDS", {}):
            continue
        _check_field(cls, name)
        values[name] = _decode_value(hints[name], item, f"{cls.__name__}.{name}")
    return cls(**values)


def type_options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a single type stands alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _decode_value(hint: Any, item: Any, where: str) -> Any:
    if isinstance(item, dict) and "class" in item:
        for option in type_options(hint):
            if dataclasses.is_dataclass(option) and (cls := _subclass_named(option, item["class"])):
                return decode(cls, item)
        raise UserError(f"{where}: a {item['class']} does not belong here")
    if isinstance(item, list):
        for option in type_options(hint):
            if typing.get_origin(option) is tuple:
                inner = typing.get_args(option)[0]
                return tuple(_decode_value(inner, element, where) for element in item)
    return item


def _subclass_named(cls: Any, name: str) -> Any:
    """The class, or its subclass, with this name; None if there is none. A tuple of stages holds many classes."""
    if cls.__name__ == name:
        return cls
    return next(filter(None, (_subclass_named(derived, name) for derived in cls.__subclasses__())), None)


def digest(value: Any) -> str:
    """A hash of `value` in twelve hexadecimal digits."""
    text = json.dumps(encode(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def override(value: T, path: str, text: str) -> T:
    """`override_all` for one field."""
    return override_all(value, [(path, text)])


def override_all(value: T, changes: Iterable[tuple[str, str]], where: str = "") -> T:
    """A copy of a dataclass with fields set from pairs (dotted path, text); a text is parsed by the field's type.

    All fields are set before the copy is validated, so that changes which are only valid together are accepted. Of two
    changes of one field the last counts. Numbers in a path index tuples: `data.sources.0.path`. `where` is the prefix
    of the paths in messages, such as `sft.`.

    Raises:
        UserError: an unknown field, a text that does not fit its type, or a copy that is not valid.
    """
    new = {}
    for name, inner in _by_first_part(changes).items():
        _check_field(type(value), name, where)
        path = f"{where}{name}"
        parts = {rest for rest, _ in inner}
        if parts == {""}:
            new[name] = parse(field_types(type(value))[name], inner[-1][1], path)
        elif "" in parts:
            raise UserError(f"{path} and {path}.{max(parts)} are both set; set the whole field or fields inside it")
        else:
            new[name] = _override_inside(getattr(value, name), inner, path)
    return dataclasses.replace(value, **new)


def _by_first_part(changes: Iterable[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Changes by the first part of their path, with the rest of the path."""
    grouped: dict[str, list[tuple[str, str]]] = {}
    for path, text in changes:
        name, _, rest = path.partition(".")
        grouped.setdefault(name, []).append((rest, text))
    return grouped


def _override_inside(value: Any, changes: list[tuple[str, str]], path: str) -> Any:
    """A copy of a field's value, a dataclass or a tuple of them, with fields of its own set."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return override_all(value, changes, f"{path}.")
    if not isinstance(value, tuple):
        raise UserError(f"{path} is {value!r} and has no fields of its own, such as {changes[0][0]!r}")
    items = list(value)
    for index, inner in _by_first_part(changes).items():
        known = index.isdigit() and int(index) < len(items) and dataclasses.is_dataclass(items[int(index)])
        if not known or any(not rest for rest, _ in inner):
            raise UserError(f"{path}.{index}: write an index below {len(items)} and a field, such as {path}.0.path")
        items[int(index)] = override_all(items[int(index)], inner, f"{path}.{index}.")
    return tuple(items)


def check_types(value: Any, where: str = "") -> None:
    """Raises `UserError` for the first field of a dataclass, at any depth, whose value does not fit its type or lies
    outside of its bounds."""
    hints, all_bounds = field_types(type(value)), field_bounds(type(value))
    for name, hint in hints.items():
        item, path = getattr(value, name), f"{where}.{name}".lstrip(".")
        if not _fits_any(hint, item):
            raise UserError(f"{path}: {item!r} is not {_describe_type(hint)}")
        _check_bounds(item, hint, all_bounds.get(name, FINITE), path)
        inner = item if isinstance(item, tuple) else (item,)
        for at, element in enumerate(inner):
            if dataclasses.is_dataclass(element):
                own = getattr(element, "name", None) if where == "" else None  # a stage is identified by its name
                check_types(element, own or (path if inner is not item else f"{path}.{at}"))


def _check_bounds(item: Any, hint: Any, bounds: Bounds, path: str) -> None:
    """Raises `UserError` if a number, or one in a tuple, lies outside of its bounds."""
    for number in item if isinstance(item, tuple) else (item,):
        if isinstance(number, (int, float)) and not isinstance(number, bool) and (wanted := bounds.broken(number)):
            shown = (
                repr(number)
                if abs(number) < 2**63 or isinstance(number, float)
                else f"a number of {number.bit_length()} bits"
            )
            kind = next((option for option in (int, float) if option in type_options(hint)), type(number))
            raise UserError(f"{path}: {shown} is not {_describe_type(kind)} {wanted}")


def _fits(option: Any, item: Any) -> bool:
    """Whether a value fits one alternative of an annotation; an int is accepted as a float."""
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
    return any(_fits(option, item) for option in type_options(hint))


# What other libraries call a field of ours.
_OTHER_NAMES = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "max_length": "sequence_length",
    "max_seq_length": "sequence_length",
    "max_completion_length": "max_new_tokens",
    "num_generations": "samples",
    "max_grad_norm": "clip",
    "bf16": "dtype",
}


def unknown_field(cls: type, name: str, where: str = "") -> str:
    """The error message for an unknown field: names the field that was probably meant, or all of them.

    `where` is the dotted path of the dataclass, such as `sft.`, which begins the path of that field.
    """
    meant = similar_field(cls, name)
    hint = f"did you mean {where + meant!r}?" if meant else f"it has {', '.join(field_types(cls))}"
    return f"{cls.__name__} has no field {name!r}; {hint}"


def similar_field(cls: type, name: str) -> str | None:
    """The dotted path of the field that an unknown name most probably means; None where no field is similar.

    Looks for the name in nested dataclasses first (`lr` is `optimizer.lr`), then for a similar one in the class, then
    for a similar one in nested dataclasses.
    """
    wanted = _OTHER_NAMES.get(name, name)
    paths = list(_field_paths(cls))
    by_name = {path.rpartition(".")[2]: path for path in reversed(paths)}  # of two paths the shorter one
    if wanted in by_name:
        return by_name[wanted]
    for known in (field_types(cls), by_name):
        near = difflib.get_close_matches(wanted, known, n=1)
        if near:
            return by_name[near[0]]
    return None


def _field_paths(cls: type) -> Iterator[str]:
    """The dotted paths of all fields, those of the class before those of nested dataclasses (`data.sources.0.path`)."""
    level: list[tuple[str, type]] = [("", cls)]
    while level:
        below = []
        for where, owner in level:
            for name, hint in field_types(owner).items():
                yield f"{where}{name}"
                below += [(f"{where}{name}.{index}", inner) for index, inner in nested_classes(hint)]
        level = below


def nested_classes(hint: Any) -> list[tuple[str, type]]:
    """The dataclasses in a field's type, with the index that a path needs to enter a tuple of them: "" or "0."."""
    found: list[tuple[str, type]] = []
    for option in type_options(hint):
        if dataclasses.is_dataclass(option):
            found.append(("", cast(type, option)))
        elif typing.get_origin(option) is tuple:
            found += [(f"0.{index}", inner) for index, inner in nested_classes(typing.get_args(option)[0])]
    return found


def _check_field(cls: type, name: str, where: str = "") -> None:
    if name not in field_types(cls):
        raise UserError(unknown_field(cls, name, where))


def parse(hint: Any, text: str, path: str) -> Any:
    """Text parsed as the first alternative of `hint` that it fits."""
    for option in sorted(type_options(hint), key=lambda option: option is str):  # any text fits str, so str comes last
        try:
            return _parse_one(option, text)
        except (ValueError, SyntaxError, OverflowError):
            continue
    raise UserError(f"{path}: {text!r} is not {_describe_type(hint)}")


def _parse_one(option: Any, text: str) -> Any:
    origin = typing.get_origin(option)
    if option is type(None):
        if text.lower() in ("none", "null", ""):
            return None
    elif option is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif option is int:
        with contextlib.suppress(ValueError):
            return int(text)  # exact, unlike the number that it is as a float
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


def _describe_type(hint: Any) -> str:
    """A type in words, for error messages."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}

    def one(option: Any) -> str:
        if typing.get_origin(option) is Literal:
            return "one of " + ", ".join(map(repr, typing.get_args(option)))
        if typing.get_origin(option) is tuple:
            return "a list such as a,b"
        return words.get(option, f"a {getattr(option, '__name__', option)}")

    return " or ".join(one(option) for option in type_options(hint))
