"""Every argument of every command with values that are wrong for most of them, made from the parsers themselves.

Run as a script it writes docs/bad_arguments.md: `python tests/bad_arguments.py`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.main import COMMANDS
from easylm_jax.cli.parser import Parser

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bad_arguments.md"
LIST = "one of a list"


def _link(folder: Path) -> str:
    path = folder / "link"
    if not path.is_symlink():
        path.symlink_to(folder / "nowhere")
    return str(path)


def _file(folder: Path) -> str:
    (folder / "file").write_text("x\n")
    return str(folder / "file")


def _folder(folder: Path) -> str:
    (folder / "folder").mkdir(exist_ok=True)
    return str(folder / "folder")


# What is tried, by its column in the table; each makes its text in a folder of the test's own.
VALUES: dict[str, Callable[[Path], str]] = {
    "empty": lambda folder: "",
    "negative": lambda folder: "-1",
    "zero": lambda folder: "0",
    "huge": lambda folder: "1" + "0" * 30,
    "no number": lambda folder: "many",
    "NaN": lambda folder: "nan",
    "not UTF-8": lambda folder: "\udcff",
    "a folder": _folder,
    "a file": _file,
    "a link to nothing": _link,
    "below a file": lambda folder: f"{_file(folder)}/x",
    "no parent": lambda folder: str(folder / "none" / "none" / "x"),
    "too long": lambda folder: str(folder / ("a" * 5000)),
}


class Argument(NamedTuple):
    """An argument with a value: the command, such as "data build", its parser, and the action that argparse knows."""

    command: str
    parser: argparse.ArgumentParser
    action: argparse.Action

    @property
    def name(self) -> str:
        """As a user knows it."""
        return self.action.option_strings[-1] if self.action.option_strings else str(self.action.metavar or self.dest)

    @property
    def dest(self) -> str:
        return self.action.dest

    @property
    def kind(self) -> str:
        """The kind of its value, in words."""
        if self.action.choices is not None:
            return LIST
        assert isinstance(self.action.type, kinds.Kind), f"{self.command} {self.name} is of no kind"
        return self.action.type.name

    def refuses(self, text: str) -> bool:
        """Whether the parser refuses a value, or the command line does because it is not UTF-8."""
        if not text.isascii():
            return True
        if self.action.choices is not None:
            return text not in self.action.choices
        try:
            self.action.type(text)
        except argparse.ArgumentTypeError:
            return True
        return False


def arguments() -> Iterator[Argument]:
    """All arguments with a value, of all commands and their subcommands."""
    for name in COMMANDS:
        parser = Parser(prog=f"easylm {name}")
        importlib.import_module(f"easylm_jax.cli.{name}").add_arguments(parser)
        yield from _of_parser(name, parser)


def _of_parser(command: str, parser: argparse.ArgumentParser) -> Iterator[Argument]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _of_parser(f"{command} {name}", inner)
        elif action.nargs != 0:
            yield Argument(command, parser, action)


def page(folder: Path) -> str:
    """The page: which values each kind of argument refuses, and the kind of every argument."""
    by_kind: dict[str, Argument] = {}
    by_command: dict[str, list[str]] = {}
    for argument in arguments():
        by_kind.setdefault(argument.kind, argument)
        by_command.setdefault(argument.command, []).append(f"`{argument.name}` {argument.kind}")
    lines = [
        "# Bad arguments",
        "",
        "Every command checks its arguments before any work. What it refuses is one line on standard error that names",
        "the argument, and exit status 2; nothing has been written or started by then. What is accepted here may still",
        "be refused later, in one line too, such as a text that is no name of a model.",
        "",
        "This page is made from the parsers of the commands by `python tests/bad_arguments.py`; a test compares them.",
        "The kinds are in `easylm_jax/cli/arguments.py`. Paths without permission are refused as well, which cannot be",
        "shown to root, who may read and write everything.",
        "",
        "| a value that should be | " + " | ".join(VALUES) + " |",
        "|---" * (len(VALUES) + 1) + "|",
    ]
    for kind in sorted(by_kind):
        cells = ["refused" if by_kind[kind].refuses(make(folder)) else "accepted" for make in VALUES.values()]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines += ["", "| command | its arguments, and what their values should be |", "|---|---|"]
    lines += [f"| `easylm {command}` | {'; '.join(named)} |" for command, named in sorted(by_command.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        PAGE.write_text(page(Path(temporary)))
