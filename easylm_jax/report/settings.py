"""Compares the settings of stages. Seeds of one method are stages whose settings are equal but for names and seeds.

The settings of a stage (`settings` of its `config.json`) hold its fields and, under `needs`, the settings of every
stage that it uses. They are compared with all of that: two PPO stages whose reward models differ only in their seed
are seeds of one method; two whose reward models were trained on different data are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NUMBER = re.compile(r"[-_. ]?(?:seed)?[-_. ]?\d+$")


def signature(settings: Mapping[str, Any]) -> str:
    """A text that is equal for stages whose settings differ only in names and seeds, at any depth."""
    return json.dumps(without_seeds(settings), sort_keys=True)


def without_seeds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage without its name and without any `seed`.

    `needs` becomes a list of the settings of the needed stages, in the order of the fields that name them, and their
    names become `<stage 0>`, `<stage 1>`, … wherever a field refers to one.
    """
    needs = settings.get("needs") or {}
    return {**_own(settings), "needs": [without_seeds(needed) for needed in needs.values()]}


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: f"<stage {index}>" for index, name in enumerate(settings.get("needs") or {})}
    return _anonymous({name: value for name, value in settings.items() if name not in ("name", "needs")}, numbers)


def _anonymous(value: Any, numbers: Mapping[str, str]) -> Any:
    """`value` without seeds, and with the stages in `numbers` called by their numbers."""
    if isinstance(value, dict):
        return {name: _anonymous(item, numbers) for name, item in value.items() if name != "seed"}
    if isinstance(value, list):
        return [_anonymous(item, numbers) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("stage:"):  # stage:<name> is its tokenizer, stage:<name>/<file> a file of it
        name, slash, file = value.removeprefix("stage:").partition("/")
        return f"stage:{numbers.get(name, name)}{slash}{file}"
    return numbers.get(value, value)


def differences(
    settings: Sequence[Mapping[str, Any]], stage: str = "", needs: bool = True
) -> dict[str, list[Any]]:  # fmt: skip
    """The fields in which stages differ other than in names and seeds: dotted name → the value in each, None where it
    is not set. A field of a stage that they need follows that stage's name in the first of them:
    `reward.optimizer.lr`. `stage` is such a name. Without `needs`, only their own fields are compared."""
    prefix = f"{stage}." if stage else ""
    kinds = [one.get("class") for one in settings]
    if len(set(kinds)) > 1:
        return {f"{prefix}class": kinds}
    compared = [dict(flat(_own(one))) for one in settings]
    written = [dict(flat({name: value for name, value in one.items() if name != "needs"})) for one in settings]
    names = dict.fromkeys(name for one in compared for name in one)
    differ = [name for name in names if len({str(one.get(name)) for one in compared}) > 1]
    found = {f"{prefix}{name}": [one.get(name) for one in written] for name in differ}
    needed = [one.get("needs") or {} for one in settings] if needs else []
    if len({len(one) for one in needed}) > 1:
        return found | {f"{prefix}needs": [", ".join(one) for one in needed]}
    for above in zip(*(one.items() for one in needed), strict=True):
        found |= differences([stage for _, stage in above], above[0][0])
    return found


def flat(value: Any, at: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted name, value) of every field that is set; lists of plain values in one line, pairs as fields."""
    if isinstance(value, list) and value and all(map(_is_pair, value)):
        value = {name: item for name, item in value}
    if isinstance(value, dict):
        for name, item in value.items():
            if name != "class" or not at:
                yield from flat(item, f"{at}.{name}" if at else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from flat(item, f"{at}[{i}]")
    elif isinstance(value, list):
        if value:
            yield at, ", ".join(map(str, value))
    elif value is not None:
        yield at, value


def _is_pair(value: Any) -> bool:
    """Whether a value is (name, value), as in `MakeData.arguments`."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def common_name(names: Sequence[str]) -> str:
    """What stages are called without their seeds if that is one name, otherwise all their names."""
    bases = {_NUMBER.sub("", name) for name in names}
    base = bases.pop()
    return ", ".join(names) if len(names) == 1 or bases or not base else base
