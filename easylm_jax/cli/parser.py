"""The argument parser of all subcommands: one-line errors that suggest the closest name. Standard library only."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from easylm_jax.cli import arguments as kinds

RECIPE = "a Python file that holds `recipe = Recipe(...)`, or a name that `easylm recipes` lists"


class UsageError(Exception):
    """An invalid command line; reported like a `models.errors.UserError`, without importing `models`."""


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` instead of printing the usage and exiting, and suggests the closest name."""

    def __init__(self, *args: Any, **options: Any):
        # Set here, so that the parsers of nested commands get the defaults too. Raw: examples must not be wrapped.
        defaults = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **{**defaults, **options})

    def _add_action(self, action: Any) -> Any:  # of groups too
        """Every argument with a value is of a kind that checks it."""
        if isinstance(action, (argparse._StoreAction, argparse._AppendAction)) and action.choices is None:
            action.type = _KINDS.get(action.type, action.type)  # type: ignore[arg-type]
        return super()._add_action(action)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            what = action.metavar or action.dest
            raise UsageError(f"no {what} {str(value)!r}{nearest(str(value), names)} (see {self.prog} --help)")

    def parse(self, arguments: Sequence[str], *, intermixed: bool = False) -> argparse.Namespace:
        """Parses `arguments`; raises `UsageError` for an unknown argument, with the closest option."""
        parse = self.parse_known_intermixed_args if intermixed else self.parse_known_args
        parsed, extra = parse(arguments)
        if extra:
            options = sorted(set(self._options(arguments)))
            unknown = next((text for text in extra if text.startswith("-")), extra[0])
            raise UsageError(
                f"unknown argument {unknown!r}{nearest(unknown.split('=')[0], options)} (see {self.prog} --help)"
            )
        return parsed

    def _options(self, arguments: Sequence[str]) -> Iterable[str]:
        """The options of this command and of the subcommands in `arguments`."""
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, parser in action.choices.items():
                    if name in arguments:
                        yield from parser._options(arguments)


_KINDS = {None: kinds.TEXT, int: kinds.WHOLE, float: kinds.FINITE}


def add_stop_and_seed(parser: argparse.ArgumentParser) -> None:
    """The options of every command that samples: `--stop` and `--seed`."""
    parser.add_argument(
        "--stop", type=kinds.TEXT, metavar="TEXT", action="append", default=[],
        help="also end a response at this text; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=kinds.SEED, metavar="N", default=0, help="sampling seed (default: 0)")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, otherwise the known names; nothing for an option that is similar to none."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return "" if name.startswith("-") or not known else f"; known: {', '.join(known)}"
