"""Plain data as JSON and back: the messages between the tested program and its tests. Nothing is ever unpickled.

Numbers, texts, bytes and built-in containers are sent by value, everything else as the number of an object that the
sender keeps. The receiver makes exact built-in types, so that no value carries a method of the sender.
"""

from __future__ import annotations

import enum
from collections import deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_SAFE = 1 << 53
_NAMES: dict[str, type] = {"l": list, "t": tuple, "s": set, "z": frozenset, "q": deque}
_TAGS: dict[type, str] = {kind: tag for tag, kind in _NAMES.items()}
_BUILT_IN: tuple[Callable[..., Any], ...] = (
    bool, int, float, str, bytes, bytearray, dict, list, tuple, frozenset, set, deque,
)  # fmt: skip


def encode(value: Any, refer: Callable[[Any], int], own: str = "") -> Any:
    """`value` as JSON types. `refer` gives an object its number; instances of classes of module `own` are objects."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_SAFE < value < _SAFE else ["i", format(value, "x")]
    if kind is float:
        return ["f", value.hex()]
    if kind in _TAGS:
        return [_TAGS[kind], [encode(one, refer, own) for one in value]]
    if kind is dict:
        return ["d", [[encode(key, refer, own), encode(one, refer, own)] for key, one in value.items()]]
    if kind is complex:
        return ["c", value.real.hex(), value.imag.hex()]
    if kind is bytes or kind is bytearray:
        return ["b" if kind is bytes else "y", value.hex()]
    if kind is range:
        return ["r", *(format(part, "x") for part in (value.start, value.stop, value.step))]
    if kind is Decimal:
        return ["D", str(value)]
    if kind is Fraction:
        return ["F", format(value.numerator, "x"), format(value.denominator, "x")]
    return _derived(value, refer, own)


def _derived(value: Any, refer: Callable[[Any], int], own: str) -> Any:
    """A value of a subclass of a built-in class, as the built-in class; or the number of the object."""
    cls: Any = type(value)
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        fields = [str(name) for name in cls._fields]
        return ["n", fields, [encode(one, refer, own) for one in tuple(value)]]
    if own and type(value).__module__ == own and not isinstance(value, enum.Enum):
        return ["o", refer(value)]
    for kind in _BUILT_IN:
        if isinstance(value, kind):  # type: ignore[arg-type]
            return encode(kind(value), refer, own)
    if isinstance(value, (type({}.keys()), type({}.items()))):
        return encode(set(value), refer, own)
    if isinstance(value, type({}.values())):
        return encode(list(value), refer, own)
    return ["o", refer(value)]


def decode(data: Any, find: Callable[[int], Any]) -> Any:
    """The value that `encode` made `data` of; `find` gives what stands for an object's number.

    Raises:
        ValueError, TypeError or LookupError: `data` is nothing that `encode` makes.
    """
    if data is None or type(data) in (bool, int, str):
        return data
    if type(data) is not list or not data or type(data[0]) is not str:
        raise ValueError("no encoded value")
    tag, *rest = data
    if tag in _NAMES:
        return _NAMES[tag]([decode(one, find) for one in rest[0]])
    if tag == "d":
        return {decode(key, find): decode(one, find) for key, one in rest[0]}
    if tag == "n":
        return namedtuple("Row", rest[0])(*(decode(one, find) for one in rest[1]))  # noqa: PYI024
    if tag == "o":
        return find(int(rest[0]))
    if tag == "f":
        return float.fromhex(rest[0])
    if tag == "c":
        return complex(*map(float.fromhex, rest))
    if tag == "D":
        return Decimal(rest[0])
    if tag in ("b", "y"):
        return (bytes if tag == "b" else bytearray).fromhex(rest[0])
    numbers = [int(part, 16) for part in rest]
    return {"i": lambda: numbers[0], "r": lambda: range(*numbers), "F": lambda: Fraction(*numbers)}[tag]()
