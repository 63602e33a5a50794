"""What an instruction is: its id, its arguments, its text and its check, made once and found by id.

A check is a pure function `check(text, version, **arguments) -> bool` of a text that is not blank. Versions:

- "r26": IFBench's package 0.2.0, the scores that are published; the default.
- "r25": the code of July 2025, that of the paper's numbers.
- "fixed": the quirks of both repaired, so that a reward is not paid for a misreading of the instruction.
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
    """One argument of an instruction: what it may be and how one is drawn for a prompt.

    `draw(rng, prompt, drawn)` sees what was drawn for the arguments before it. An argument that is not `required`
    is read from data that has it, and never drawn.
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
        """`kwargs` without its nulls, each of its type; a new dict.

        Raises:
            UserError: an argument is missing, unknown or malformed.
        """
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise UserError(f"instruction {self.id}: arguments are a dict, not {kwargs!r}")
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
        """Arguments drawn for `prompt` as the published data's were (spec §2, §4)."""
        drawn: dict[str, Any] = {}
        for argument in self.arguments:
            if argument.draw is not None:
                drawn[argument.name] = argument.draw(rng, prompt, drawn)
        return drawn

    def describe(self, **kwargs: Any) -> str:
        """The instruction as a prompt says it, for these arguments."""
        cleaned = self.clean(kwargs)
        return self.template(**cleaned) if callable(self.template) else self.template.format(**cleaned)

    def holds(self, response: Any, kwargs: Mapping[str, Any] | None = None, version: str = "r26") -> bool:
        """Whether `response` follows the instruction. A blank one, or one that is no text, does not."""
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
            raise ValueError(f"instruction {id!r} of {suite!r} is there twice or of no suite")
        REGISTRY[id] = Instruction(id, suite, check, template, arguments)
        return check

    return register


def integer(name: str, low: int, high: int, *, minimum: int = 0, draw: Draw | None = None) -> Argument:
    """A whole number (5.0 is one) of at least `minimum`, drawn from low..high, both included."""

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
    """A text that is not empty; with `strip`, without the blanks around it."""
    return Argument(name, _convert_stripped if strip else _convert_text, draw, required)


def _convert_text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


def _convert_stripped(value: Any) -> str:
    return _convert_text(value.strip() if isinstance(value, str) else value)


def noun(name: str, *, strip: bool = True) -> Argument:
    """A keyword, drawn from the nouns; one that neither holds nor is held by another keyword drawn before."""

    def draw(rng: random.Random, prompt: str, drawn: Mapping[str, Any]) -> str:
        others = [other for other in drawn.values() if isinstance(other, str)]
        return rng.choice([word for word in NOUNS if not any(word in other or other in word for other in others)])

    return text(name, draw, strip=strip)


def first_of(name: str) -> Argument:
    """A word; of a list, its first item (as some published rows have it)."""

    def convert(value: Any) -> str:
        return _convert_stripped(value[0] if isinstance(value, list | tuple) and value else value)

    return Argument(name, convert, lambda rng, prompt, drawn: rng.choice(NOUNS))


def nouns(name: str, count: int) -> Argument:
    """A list of keywords, `count` of them drawn."""

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
    """Whether `count` stands in `relation` to `bound`."""
    return count < bound if relation == "less than" else count >= bound


def prompt_text(name: str = "prompt_to_repeat") -> Argument:
    """The prompt itself."""
    return text(name, lambda rng, prompt, drawn: prompt)
