"""A table of finished cells, printed as text or as Markdown; `html.py` prints it as HTML."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Column:
    """A heading, the unit below it, whether it holds words (left-aligned), and what stands above several of them."""

    name: str
    unit: str = ""
    words: bool = False
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of finished cells with notes below it, and one sentence on what it shows."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    finding: str = ""


def as_text(table: Table) -> str:
    """Columns padded to one width, groups above and units below the names; words to the left, numbers to the right."""
    facts = ([getattr(column, what) for column in table.columns] for what in ("group", "name", "unit"))
    head = [line for line in facts if any(line)]
    lines = [*head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    body = [
        "  ".join(
            cell.ljust(width) if column.words else cell.rjust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("─" * width for width in widths)
    notes = ["", *table.notes] if table.notes else []
    found = ["", table.finding] if table.finding else []
    return "\n".join([table.title, "", *body[: len(head)], rule, *body[len(head) :], *notes, *found])


def as_markdown(table: Table) -> str:
    """A pipe table, with the title as a heading and the notes below."""
    names = [
        (f"{column.group}: " if column.group else "") + column.name + (f" ({column.unit})" if column.unit else "")
        for column in table.columns
    ]
    lines = ["| " + " | ".join(map(escaped, names)) + " |"]
    lines.append("|" + "|".join("---" if column.words else "--:" for column in table.columns) + "|")
    lines += ["| " + " | ".join(map(escaped, row)) + " |" for row in table.rows]
    found = ["", escaped(table.finding)] if table.finding else []
    notes = ["", *map(escaped, table.notes)] if table.notes else []
    return "\n".join([f"## {escaped(table.title)}", "", *lines, *found, *notes])


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
