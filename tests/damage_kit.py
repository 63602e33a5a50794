"""A generator of damage: what a disk, a cut transfer, another program or an attacker may make of a file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUTSIDE = ("../../../../etc/passwd", "/etc/passwd", "..", "a/../../b", "\0", "x" * 5000)
HUGE = (10**400, 10**18, -1, 0, 1e308, float("nan"))
DEEP = "[" * 50_000


def mutations(path: Path, seed: int, flips: int = 12) -> list[tuple[str, bytes]]:
    """Named mutations of a file's content, all different from it; more of them for JSON, by its values."""
    whole, rng = path.read_bytes(), random.Random(f"{seed} {path.name}")
    made = [
        ("empty", b""),
        ("cut in half", whole[: len(whole) // 2]),
        ("without its last byte", whole[:-1]),
        ("zeros", bytes(len(whole))),
        ("twice", whole + whole),
        ("random bytes", rng.randbytes(len(whole))),
        ("not UTF-8", b"\xff\xfe" + whole),
        ("nested deep", DEEP.encode()),
        ("a list", b"[]"),
        ("a number", b"3"),
        ("null", b"null"),
    ]
    for _ in range(flips):
        bit = rng.randrange(8 * max(len(whole), 1))
        if bit < 8 * len(whole):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            made.append((f"bit {bit} flipped", bytes(changed)))
    if path.suffix in (".json", ".jsonl"):
        made += list(_of_json(whole, path.suffix == ".jsonl"))
    return [(name, data) for name, data in made if data != whole]


def _of_json(whole: bytes, lines: bool) -> Iterator[tuple[str, bytes]]:
    """Mutations of single values; of a file with one object on each line, those of its first line."""
    first, newline, rest = whole.partition(b"\n") if lines else (whole, b"", b"")
    value = json.loads(first)
    for way in _ways(value):
        for name, replaced in _replacements(_at(value, way)):
            yield f"{'.'.join(map(str, way))} {name}", _dump(_with(value, way, replaced)) + newline + rest
        if way and isinstance(way[-1], str):
            yield f"{'.'.join(map(str, way))} missing", _dump(_without(value, way)) + newline + rest


def _dump(value: Any) -> bytes:
    text = json.dumps(value)
    return text.replace('"<deep>"', DEEP[:2000] + "]" * 2000).replace('"<half>"', '"\\ud800"').encode()


def _ways(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """The way to every value; of a list only to its first two items, of a large object to its first twelve."""
    yield above
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())[: 12 if len(value) > 40 else None]
    elif isinstance(value, list):
        items = list(enumerate(value[:2]))
    for key, item in items:
        yield from _ways(item, (*above, key))


def _replacements(value: Any) -> Iterator[tuple[str, Any]]:
    """Values of other types and bounds than this one's."""
    for name, other in (("null", None), ("a list", [[]]), ("an object", {"a": {}}), ("text", "text"), ("true", True)):
        if type(other) is not type(value):
            yield f"is {name}", other
    yield "nests deep", "<deep>"
    if isinstance(value, str):
        yield from ((f"is {text[:20]!r}", text) for text in OUTSIDE)
        yield "is half a character", "<half>"
        yield "is empty", ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from ((f"is {str(number)[:8]}", number) for number in HUGE)


def _at(value: Any, way: tuple) -> Any:
    for key in way:
        value = value[key]
    return value


def _with(value: Any, way: tuple, replaced: Any) -> Any:
    if not way:
        return replaced
    changed = copy.deepcopy(value)
    _at(changed, way[:-1])[way[-1]] = replaced
    return changed


def _without(value: Any, way: tuple) -> Any:
    changed = copy.deepcopy(value)
    del _at(changed, way[:-1])[way[-1]]
    return changed


def contents(folder: Path, *without: Path) -> dict[Path, bytes]:
    """The content of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path not in without}
