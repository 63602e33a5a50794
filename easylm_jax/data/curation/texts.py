"""The texts of a row that a curation step reads, and their words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.errors import UserError

Record = Mapping[str, Any]
# Columns that hold what a model is asked, in the order in which one is looked for in a test row.
ASKED = ("question", "prompt", "problem", "instruction", "text", "input", "query")
CONVERSATIONS = ("messages", "conversations", "conversation", "turns", "prompt", "chosen")
_ANSWERED = ("context", "answer", "response", "output", "completion", "solution", "chosen", "rejected")
_USER = frozenset({"user", "human", "prompter"})
_DROPPED = re.compile(r"[^\w\s]|_")
_JOINTS = re.compile("[–—…]+")  # stand between words without spaces
# Scripts that are written without spaces: each character is a word.
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f\U00020000-\U0003ffff])")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and symbols: "It's $1,000!" is ["its", "1000"]."""
    if not text.isascii():
        text = _UNSPACED.sub(r" \1 ", _JOINTS.sub(" ", unicodedata.normalize("NFKC", text)))
    return _DROPPED.sub("", text.lower()).split()


def turns_of(value: Any) -> list[tuple[str, str]] | None:
    """(role, text) of each turn of a conversation: a list of messages, or of texts where the user begins; else None."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    if all(isinstance(turn, str) for turn in value):
        return [("user", turn) for turn in value]
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return None
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str):
            return None
        turns.append((role.lower(), content if isinstance(content, str) else " ".join(strings_of(content))))
    return turns


def conversation_of(record: Record) -> list[tuple[str, str]] | None:
    """The turns of a row that holds a conversation, or None."""
    return next((turns for name in CONVERSATIONS if (turns := turns_of(record.get(name)))), None)


def strings_of(value: Any) -> Iterator[str]:
    """All texts in a JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings_of(item)


def asked_in_test(record: Record, place: str, column: str | None = None) -> list[str]:
    """What a row of a benchmark asks a model: the texts of `column`, the user's turns, or the first of `ASKED`.

    Raises:
        UserError: the row has none of these.
    """
    if column is not None:
        if column not in record:
            raise UserError(f"data: {place} has no column {column!r}; it has {', '.join(record)}")
        turns = turns_of(record[column])
        return user_turns(turns) if turns else list(strings_of(record[column]))
    turns = conversation_of(record)
    plain = next((record[name] for name in ASKED if isinstance(record.get(name), str)), None)
    if turns is not None and (plain is None or not isinstance(record.get("prompt"), str)):
        return user_turns(turns)
    if plain is None:
        raise UserError(
            f"data: {place} has none of {', '.join(ASKED)} and no messages; name the column that a model is asked with "
            f"--column (it has {', '.join(record)})"
        )
    return [plain]


def asked_in_training(record: Record, place: str, column: str | None = None) -> list[str]:
    """The texts of a training row in which tests are looked for: the user's turns, all of `ASKED`, or every text.

    Spec tulu3 §7.2 looks in user turns only. A row that has neither turns nor a column of `ASKED` is searched whole.
    """
    if column is not None:
        return asked_in_test(record, place, column)
    turns = conversation_of(record)
    found = user_turns(turns) if turns else []
    found += [record[name] for name in ASKED if isinstance(record.get(name), str)]
    return found or list(strings_of(record))


def user_turns(turns: Sequence[tuple[str, str]]) -> list[str]:
    """The texts of the user's turns; of all turns where no role is known as the user's."""
    return [text for role, text in turns if role in _USER] or [text for _, text in turns]


def whole_text(record: Record, place: str, column: str | None = None) -> str:
    """All text of a row, a line for each part: `column`, else turns, prompt and response, else every text."""
    if column is not None:
        if column not in record:
            raise UserError(f"data: {place} has no column {column!r}; it has {', '.join(record)}")
        return "\n".join(strings_of(record[column]))
    turns = conversation_of(record)
    if turns is not None:
        found = [text for _, text in turns]
        rejected = turns_of(record.get("rejected"))
        found += [rejected[-1][1]] if rejected else []
    else:
        found = []
    names = (*ASKED, *_ANSWERED)
    found += [record[name] for name in names if isinstance(record.get(name), str)]
    return "\n".join(found or strings_of(record))
