"""The kinds of arguments of all subcommands: each checks its text before any work. Standard library only.

A kind is the `type` of an argument: `parser.add_argument("--seed", type=SEED)`. `Parser` gives `TEXT` to arguments that
name none, so every value of every option is checked by one of these. docs/bad_arguments.md is made of this module and
of the parsers (`tests/bad_arguments.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from pathlib import Path

from easylm_jax.runtime import mounts


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of argument: `name` is what a value must be, in words, as error messages and the docs show it."""

    name: str

    def __call__(self, text: str) -> object:
        """The value of a text.

        Raises:
            argparse.ArgumentTypeError: the text is no such value; `Parser` adds the name of the option.
        """
        return self.checked(text)

    def checked(self, text: str) -> str:
        """`text`, if it can be a value at all."""
        if not text or "\0" in text:
            raise self.refused("an empty value" if not text else "a text with a zero byte")
        return text

    def refused(self, what: str) -> argparse.ArgumentTypeError:
        """The error for a value, which `what` describes."""
        return argparse.ArgumentTypeError(f"{what} is not {self.name}")


@dataclasses.dataclass(frozen=True)
class Any(Kind):
    """Any text, also an empty one."""

    def checked(self, text: str) -> str:
        if "\0" in text:
            raise self.refused("a text with a zero byte")
        return text


@dataclasses.dataclass(frozen=True)
class Number(Kind):
    """A number from `low` (or above `above`) to `high`."""

    whole: bool = True
    low: float = -math.inf
    above: float = -math.inf
    high: float = math.inf

    def __call__(self, text: str) -> object:
        try:
            value = int(self.checked(text)) if self.whole else float(self.checked(text))
        except ValueError:
            raise self.refused(repr(_short(text))) from None
        if not (math.isfinite(value) if isinstance(value, float) else True):
            raise self.refused(repr(_short(text)))
        if not (self.low <= value <= self.high and value > self.above):
            raise self.refused(repr(_short(text)))
        return value


@dataclasses.dataclass(frozen=True)
class Name(Kind):
    """A name or a path, with or without a prefix (`hf:`, `sp:`) or a name before it (`gsm8k=FILE`)."""

    def checked(self, text: str) -> str:
        name = super().checked(text)
        for path in (name, name.partition(":")[2], name.partition("=")[2]):
            found = _stat_error(path)
            if found not in (None, "does not exist", "lies below a file"):
                raise argparse.ArgumentTypeError(f"{_short(name)!r} {found}; give another")
        return name


@dataclasses.dataclass(frozen=True)
class InputFile(Kind):
    """An existing file."""

    def checked(self, text: str) -> str:
        path = super().checked(text)
        found = _stat_error(path)
        if found is not None or os.path.isdir(path):
            raise argparse.ArgumentTypeError(f"{_short(path)!r} {found or 'is a folder'}; give the path of a file")
        if not os.access(path, os.R_OK):
            raise argparse.ArgumentTypeError(f"{_short(path)!r} cannot be read; give a file that you may read")
        return path


@dataclasses.dataclass(frozen=True)
class InputFolder(Kind):
    """An existing folder, also `gs://BUCKET/PATH` of a mounted bucket."""

    def checked(self, text: str) -> str:
        path = _local(super().checked(text))
        found = _stat_error(path)
        if found is not None or not os.path.isdir(path):
            raise argparse.ArgumentTypeError(f"{_short(path)!r} {found or 'is a file'}; give the path of a folder")
        return path


@dataclasses.dataclass(frozen=True)
class OutputFile(Kind):
    """A file that can be written; missing folders are created."""

    def checked(self, text: str) -> str:
        path = super().checked(text)
        if os.path.isdir(path) or path.endswith("/"):
            raise argparse.ArgumentTypeError(f"{_short(path)!r} is a folder; give the path of a file")
        _check_writable(path)
        return path


@dataclasses.dataclass(frozen=True)
class OutputFolder(Kind):
    """A folder that can be written to; it is created where there is none. Also `gs://BUCKET/PATH` of a mounted
    bucket."""

    def checked(self, text: str) -> str:
        path = _local(super().checked(text))
        if os.path.exists(path) and not os.path.isdir(path):
            raise argparse.ArgumentTypeError(f"{_short(path)!r} is a file; give the path of a folder")
        _check_writable(path)
        return path


def _local(text: str) -> str:
    try:
        return mounts.local_path(text)
    except mounts.NotMountedError as error:
        raise argparse.ArgumentTypeError(_short(str(error), 300)) from None


def _check_writable(path: str) -> None:
    """Raises unless `path` can be created or replaced, as far as that can be told without doing it."""
    found = _stat_error(path)
    if found is not None and not (found == "does not exist" and not os.path.islink(path)):
        what = "is a link to nothing" if found == "does not exist" else found
        raise argparse.ArgumentTypeError(f"{_short(path)!r} {what}; give another path")
    parent = Path(path).absolute()
    while found is not None and not parent.exists():
        parent = parent.parent
    if found is not None and not parent.is_dir():
        raise argparse.ArgumentTypeError(f"{_short(path)!r} lies below {str(parent)!r}, which is a file")
    if not os.access(parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{_short(path)!r} cannot be written: no permission; give another path")


def _stat_error(path: str) -> str | None:
    """Why nothing can be read at a path; None if something can."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return "does not exist"
    except NotADirectoryError:
        return "lies below a file"
    except (OSError, ValueError) as error:
        return f"is no path ({getattr(error, 'strerror', None) or error})"
    return None


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[: most * 3 // 5]}…{text[-(most * 3 // 10) :]}"


@dataclasses.dataclass(frozen=True)
class Part(Kind):
    """One of several, as in 2/8: from 0/8 to 7/8, or from 1/8 to 8/8. The value is (number from 0, of how many)."""

    def __call__(self, text: str) -> object:
        number, _, of = self.checked(text).partition("/")
        if not (number.isdecimal() and of.isdecimal() and 0 <= int(number) <= int(of) and 0 < int(of) <= 100_000):
            raise self.refused(repr(_short(text)))
        return int(number) % int(of), int(of)


TEXT = Kind("a text that is not empty")
ANY = Any("any text, also an empty one")
NAME = Name("a name or a path")
INPUT_FILE = InputFile("a file that exists")
INPUT_FOLDER = InputFolder("a folder that exists")
OUTPUT_FILE = OutputFile("a file that can be written")
OUTPUT_FOLDER = OutputFolder("a folder that can be written to")
_LARGEST = 2**31 - 1  # lengths and counts are int32 on the devices
PART = Part("a number and how many there are, such as 0/8")
COUNT = Number("a whole number of at least 1", low=1, high=_LARGEST)
LENGTH = Number("a whole number of at least 2", low=2, high=_LARGEST)  # an input and a target
NATURAL = Number("a whole number of at least 0", low=0, high=_LARGEST)
PORT = Number("a whole number from 0 to 65535", low=0, high=65535)
SEED = Number("a whole number from 0 to 4294967295", low=0, high=2**32 - 1)
WHOLE = Number("a whole number", low=-_LARGEST, high=_LARGEST)
FINITE = Number("a number", whole=False)
NON_NEGATIVE = Number("a number of at least 0", whole=False, low=0)
POSITIVE = Number("a number above 0", whole=False, above=0)
SHARE = Number("a number above 0 and at most 1", whole=False, above=0, high=1)
