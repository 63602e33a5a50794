"""The registry of instructions: id, arguments, text and check of each.

A check is a pure function `check(text, version, **arguments) -> bool` of a text that is not blank. Versions:

- "r26": IFBench's package 0.2.0, used for the published scores; the default.
- "r25": the code of July 2025, used for the paper's numbers.
- "fixed": without the errors of both, so that a reward does not reinforce a misreading of the instruction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from easylm_jax.rewards.instructions.nouns import NOUNS
from models.errors import UserError

VERSIONS = ("r26", "r25", "fixed")
SUITES = ("ifbench", "iftrain", "ifeval")
RELATIONS = ("less than", "at least")

Draw = Callable[[random.Random, str, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Argument:
    """One argument of an instruction: its validation, and how it is sampled for a prompt.

    `draw(rng, prompt, drawn)` receives the arguments sampled before. An argument that is not `required` is read from
    data that has it and is never sampled.
    """

    name: str
    convert: Callable[[Any], Any]
    draw: Draw | None = None
    required: bool = True


@dataclass(frozen=True)
class Instruction:
    """A verifiable instruction. `template` is a format string over the arguments, or a function of them."""

    id: str
    suite: str
    check: Callable[..., bool]
    template: str | Callable[..., str]
    arguments: tuple[Argument, ...] = ()

    def clean(self, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        """A new dict of validated arguments, without nulls.

        Raises:
            UserError: an argument is missing, unknown or malformed.
        """
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise UserError(f"instruction {self.id}: arguments must be a dict, not {kwargs!r}")
        given = {name: value for name, value in (kwargs or {}).items() if value is not None}
        known = {argument.name for argument in self.arguments}
        for name in given:
            if name not in known:
                takes = ", ".join(sorted(known)) or "none"
                raise UserError(f"instruction {self.id}: no argument {name!r}; it takes {takes}")
        cleaned = {}
        for argument in self.arguments:
            if argument.name in given:
                try:
                    cleaned[argument.name] = argument.convert(given[argument.name])
                except ValueError as error:
                    raise UserError(
                        f"instruction {self.id}: argument {argument.name} = {given[argument.name]!r} is not {error}"
                    ) from None
            elif argument.required:
                raise UserError(f"instruction {self.id}: argument {argument.name!r} is missing")
        return cleaned

    def sample_arguments(self, rng: random.Random, prompt: str = "") -> dict[str, Any]:
        """Arguments sampled for `prompt` in the same way as the published data (spec §2, §4)."""
        drawn: dict[str, Any] = {}
        for argument in self.arguments:
            if argument.draw is not None:
                drawn[argument.name] = argument.draw(rng, prompt, drawn)
        return drawn

    def describe(self, **kwargs: Any) -> str:
        """The text of the instruction in a prompt, for these arguments."""
        cleaned = self.clean(kwargs)
        return self.template(**cleaned) if callable(self.template) else self.template.format(**cleaned)

    def holds(self, response: Any, kwargs: Mapping[str, Any] | None = None, version: str = "r26") -> bool:
        """Whether `response` follows the instruction. A blank response, or one that is not a text, does not."""
        if version not in VERSIONS:
            raise UserError(f"no version {version!r} of the instructions; there are {', '.join(VERSIONS)}")
        cleaned = self.clean(kwargs)
        if not isinstance(response, str) or not response.strip():
            return False
        return bool(self.check(response, version, **cleaned))


REGISTRY: dict[str, Instruction] = {}


def instruction(
    id: str, template: str | Callable[..., str], *arguments: Argument, suite: str
) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    """Registers the decorated check under `id`."""

    def register(check: Callable[..., bool]) -> Callable[..., bool]:
        if id in REGISTRY or suite not in SUITES:
            raise ValueError(f"instruction {id!r} of {suite!r} is registered twice or of an unknown suite")
        REGISTRY[id] = Instruction(id, suite, check, template, arguments)
        return check

    return register


def integer(name: str, low: int, high: int, *, minimum: int = 0, draw: Draw | None = None) -> Argument:
    """A whole number (also 5.0) of at least `minimum`, sampled from low to high inclusive."""

    def convert(value: Any) -> int:
        what = f"a whole number of at least {minimum}"
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value in _INFINITE:
            raise ValueError(what)
        if int(value) != value or value < minimum:
            raise ValueError(what)
        return int(value)

    return Argument(name, convert, draw or (lambda rng, prompt, drawn: rng.randint(low, high)))


_INFINITE = (float("inf"), float("-inf"))


def text(name: str, draw: Draw | None = None, *, required: bool = True, strip: bool = False) -> Argument:
    """A non-empty text; with `strip`, without surrounding whitespace."""
    return Argument(name, _convert_stripped if strip else _convert_text, draw, required)


def _convert_text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


def _convert_stripped(value: Any) -> str:
    return _convert_text(value.strip() if isinstance(value, str) else value)


def noun(name: str, *, strip: bool = True) -> Argument:
    """A keyword, sampled from the nouns that neither contain nor are contained in keywords sampled before."""

    def draw(rng: random.Random, prompt: str, drawn: Mapping[str, Any]) -> str:
        others = [other for other in drawn.values() if isinstance(other, str)]
        return rng.choice([word for word in NOUNS if not any(word in other or other in word for other in others)])

    return text(name, draw, strip=strip)


def first_of(name: str) -> Argument:
    """A word; of a list, its first item (the form of some published rows)."""

    def convert(value: Any) -> str:
        return _convert_stripped(value[0] if isinstance(value, list | tuple) and value else value)

    return Argument(name, convert, lambda rng, prompt, drawn: rng.choice(NOUNS))


def nouns(name: str, count: int) -> Argument:
    """A list of keywords, of which `count` are sampled."""

    def convert(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) and v for v in value):
            raise ValueError("a list of texts")
        return tuple(value)

    return Argument(name, convert, lambda rng, prompt, drawn: rng.sample(NOUNS, count))


def choice(name: str, options: tuple[str, ...]) -> Argument:
    """One of `options`."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError(f"one of {', '.join(options)}")
        return value

    return Argument(name, convert, lambda rng, prompt, drawn: rng.choice(options))


def relation(name: str = "relation") -> Argument:
    """ "less than" (strictly) or "at least"."""
    return choice(name, RELATIONS)


def compare(count: int, relation: str, bound: int) -> bool:
    """Whether `count` is less than, or at least, `bound`."""
    return count < bound if relation == "less than" else count >= bound


def prompt_text(name: str = "prompt_to_repeat") -> Argument:
    """The prompt itself."""
    return text(name, lambda rng, prompt, drawn: prompt)
