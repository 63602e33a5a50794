"""IFBench's `custom:` instructions: whole prompts with their own checks."""

from __future__ import annotations

import csv
import io
import re
import string
from functools import partial

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import instruction
from easylm_jax.rewards.instructions.tokens import EDGE, ascii_letters

_ifbench = partial(instruction, suite="ifbench")

_CAPITALS = (
    "Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, "
    "Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, Chisinau, "
    "Bern, Ljubljana, Zagreb"
)
CAPITALS = _CAPITALS.split(", ")
_QUESTION = re.compile(r"Question \d+[.|):;]?\s*")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_SPECIAL = re.compile(r"[^\w\s]")
_DAYS = (99, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # month 0 passes with any day, as published
_AFRICA_FROM_ZIMBABWE = 52


@_ifbench("custom:multiples", "Count from 10 to 50, but write only the multiples of 7.")
def multiples(text: str, version: str) -> bool:
    """The numbers of the text are 14, 21, ..., 49 in this order."""
    return re.findall(r"\d+", text.replace(",", ", ")) == ["14", "21", "28", "35", "42", "49"]


@_ifbench(
    "custom:mcq_count_length",
    'Write 4 multiple-choice questions on the art of the 20th century with 5 options each. Start each with "Question" '
    "and its number, make each longer than the last, and explain nothing.",
)
def mcq_count_length(text: str, version: str) -> bool:
    """Four questions of five lettered options; what stands before the options grows from question to question."""
    if not text.startswith("Question"):
        return False
    blocks = [block for block in _QUESTION.split(text) if block.strip()]
    lengths = []
    for block in blocks:
        lines = [line.strip() for line in block.strip().split("\n")]
        marked = [place for place, line in enumerate(lines) if _OPTION.match(line)]
        if len(marked) != 5:
            return False
        lengths.append(len(" ".join(lines[: marked[0]]).strip()))
    return len(lengths) == 4 and all(a < b for a, b in zip(lengths, lengths[1:], strict=False))


@_ifbench("custom:reverse_newline", "List the countries of Africa from Z to A, each on a line of its own.")
def reverse_newline(text: str, version: str) -> bool:
    """From the first line that has Zimbabwe on, 52 lines or more in descending order."""
    lines = [line for line in (line.strip(EDGE) for line in text.split("\n")) if line]
    start = next((place for place, line in enumerate(lines) if "Zimbabwe" in line), None)
    if start is None or len(lines) - start < _AFRICA_FROM_ZIMBABWE:
        return False
    names = [ascii_letters(line) for line in lines[start:]]
    return all(a >= b for a, b in zip(names, names[1:], strict=False))


@_ifbench(
    "custom:word_reverse",
    "Which animal is the national symbol of the US? Answer in a sentence with its words reversed.",
)
def word_reverse(text: str, version: str) -> bool:
    """Read from its last word to its first, the text has "bald eagle"."""
    return "bald eagle" in " ".join(reversed(tokens.no_punctuation(text.lower().strip()).split()))


@_ifbench(
    "custom:character_reverse",
    "Which animal is the national symbol of the US? Answer in a sentence with its letters reversed.",
)
def character_reverse(text: str, version: str) -> bool:
    """The text has "bald eagle" backwards."""
    return "elgae dlab" in text.lower()


@_ifbench(
    "custom:sentence_alphabet",
    "Tell a story of 26 sentences, the first word of each starting with the next letter of the alphabet.",
)
def sentence_alphabet(text: str, version: str) -> bool:
    """26 sentences that start with a to z."""
    sentences = tokens.sentences(text, version)
    return [sentence.lstrip().lower()[:1] for sentence in sentences] == list(string.ascii_lowercase)


@_ifbench(
    "custom:european_capitals_sort",
    "Name the European capitals north of 45 degrees, without their countries, from north to south, with commas.",
)
def european_capitals_sort(text: str, version: str) -> bool:
    """The 27 names in their order; accents apart, to the character."""
    names = [name.strip() for name in ascii_letters(text).split(",")]
    return [name for name in names if name] == CAPITALS


def _rows(text: str, delimiter: str = ",") -> list[list[str]] | None:
    """The rows that Python's reader finds; None where it finds a mistake."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return None


def _header(names: str, separator: str) -> re.Pattern[str]:
    """The names, each bare or quoted, with what matches `separator` between them."""
    fields = [f'(?:{name}|"{name}")' for name in names.split()]
    return re.compile(separator.join(fields) + r"\Z")


_SPECIAL_HEADER = _header("ProductID Category Brand Price Stock", r",[ \t]*")
_QUOTED_HEADER = _header("StudentID Subject Grade Semester Score", r"\t *")


@_ifbench(
    "custom:csv_city",
    'Write comma-separated data of 7 rows with the columns "ID", "Country", "City", "Year" and "Count".',
)
def csv_city(text: str, version: str) -> bool:
    """The header to the character, and seven rows of five fields."""
    rows = _rows(text)
    if rows is None or len(rows) != 8 or rows[0] != ["ID", "Country", "City", "Year", "Count"]:
        return False
    return all(len(row) == 5 for row in rows[1:])


@_ifbench(
    "custom:csv_special_character",
    'Write comma-separated data of 14 rows with the columns "ProductID", "Category", "Brand", "Price" and "Stock". Let '
    "one field have a special character, and put it in double quotes.",
)
def csv_special_character(text: str, version: str) -> bool:
    """The header, 14 rows, and a quoted field with a special character, before which each row has five fields."""
    if not _SPECIAL_HEADER.match(text.split("\n")[0].strip()):
        return False
    rows = _rows(text.replace('"', '"""'))
    if rows is None or len(rows) != 15:
        return False
    for row in rows:
        if len(row) != 5:
            return False
        if any(_is_quoted_special(field) for field in row):
            return True
    return False


def _is_quoted_special(field: str) -> bool:
    line = field.split("\n")[0]
    return line.startswith('"') and _SPECIAL.search(line[1 : line.rfind('"')] if len(line) > 1 else "") is not None


@_ifbench(
    "custom:csv_quotes",
    'Write tab-separated data of 3 rows with the columns "StudentID", "Subject", "Grade", "Semester" and "Score", '
    "every field in double quotes.",
)
def csv_quotes(text: str, version: str) -> bool:
    """The header and three rows of five fields, each in double quotes."""
    if not _QUOTED_HEADER.match(text.split("\n")[0].strip()):
        return False
    rows = _rows(text.replace('"', '"""'), "\t")
    if rows is None or len(rows) != 4 or any(len(row) != 5 for row in rows):
        return False
    fields = [field.strip() for row in rows for field in row]
    return all(field.startswith('"') and field.endswith('"') for field in fields)


@_ifbench(
    "custom:date_format_list",
    "List the days on which Napoleon's battles began, written YYYY-MM-DD, separated by commas, without an explanation.",
)
def date_format_list(text: str, version: str) -> bool:
    """Dates of 1769 to 1821. Month 00 and day 00 pass, as published."""
    for piece in text.strip().split(","):
        date = _DATE.fullmatch(piece.strip())
        if date is None:
            return False
        year, month, day = map(int, date.groups())
        if not 1769 <= year <= 1821 or month > 12 or day > _DAYS[month]:
            return False
    return True
