"""Records to token ids: one document or conversation at a time becomes ids and, where needed, trained marks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from easylm_jax.data import filters, templates
from easylm_jax.data.sources import BadRecord, Record, read_records
from easylm_jax.data.spec import ROLES, DataSpec, Source
from easylm_jax.data.tokenizer import Tokenizer
from models.errors import UserError

# (prompt, completion) columns in the order they are looked for; the second pair is what seqio tasks carry.
_PAIRS = (("prompt", "completion"), ("inputs_pretokenized", "targets_pretokenized"), ("inputs", "targets"))


@dataclasses.dataclass
class Example:
    """Ids (int32 [n]) of one document, trained marks (uint8 [n], None = all) and its place among the records."""

    ids: np.ndarray
    trained: np.ndarray | None
    document: int
    where: str


def _text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{where}: {what} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(f"{where}: {what} holds half of a surrogate pair, which is no character") from None
    return value


def _column(record: Record, column: str, where: str) -> Any:
    if column not in record:
        raise BadRecord(f"{where}: no column {column!r}; there are {', '.join(map(repr, record))}")
    return record[column]


def text_of(record: Record, source: Source, where: str) -> str:
    """The text of a document. BadRecord when the column is missing or not text."""
    column = source.text_field
    if source.path.startswith("seqio:") and column not in record:
        column = next((name for _, name in _PAIRS[1:] if isinstance(record.get(name), str)), column)
    return _text(_column(record, column, where), column, where)


def messages_of(record: Record, source: Source, where: str) -> list[dict[str, str]]:
    """The conversation of a record as `[{"role", "content"}]`. BadRecord when it is empty or malformed."""
    if source.fields is not None:
        turns = [{"role": role, "content": _column(record, column, where)} for role, column in source.fields]
    elif source.messages_field in record:
        turns = record[source.messages_field]
        if isinstance(turns, str):
            turns = _parsed(turns, source.messages_field, where)
    else:
        pair = next((pair for pair in _PAIRS if pair[0] in record and pair[1] in record), None)
        if pair is None:
            wanted = f"{source.messages_field!r} (nor prompt and completion)"
            raise BadRecord(f"{where}: no column {wanted}; there are {', '.join(map(repr, record))}")
        turns = [{"role": "user", "content": record[pair[0]]}, {"role": "assistant", "content": record[pair[1]]}]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRecord(f"{where}: {source.messages_field} is {type(turns).__name__}, not a list of messages")
    if not turns:
        raise BadRecord(f"{where}: the conversation is empty")
    return [_message(turn, index, where) for index, turn in enumerate(turns)]


def _parsed(text: str, column: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRecord(f"{where}: {column} is text but not JSON: {error}") from None


def _message(turn: Any, index: int, where: str) -> dict[str, str]:
    if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
        raise BadRecord(f"{where}: message {index} needs role and content")
    if turn["role"] not in ROLES:
        raise BadRecord(f"{where}: message {index} has the unknown role {turn['role']!r}; use {', '.join(ROLES)}")
    return {"role": turn["role"], "content": _text(turn["content"], f"content of message {index}", where)}


def source_texts(sources: Iterable[Source]) -> Iterator[str]:
    """All text of the sources, for training a vocabulary: documents, or the contents of conversations.

    A source is read as conversations when it has `fields`, or when its records have no text column.
    """
    for source in sources:
        for record, where in read_records(source):
            try:
                if isinstance(record, BadRecord):
                    raise record
                if source.fields is None and source.text_field in record:
                    yield text_of(record, source, where)
                else:
                    yield from (message["content"] for message in messages_of(record, source, where))
            except BadRecord as error:
                raise UserError(f"data: {error}") from None


def _conversation(record: Record, source: Source, spec: DataSpec, where: str) -> list[templates.Piece]:
    messages = messages_of(record, source, where)
    known = templates.get_template(spec.template).turns
    for message in messages:
        if message["role"] not in known:
            raise BadRecord(f"{where}: template {spec.template} has no {message['role']} turn")
    if spec.train_on == "last_assistant" and messages[-1]["role"] != "assistant":
        raise BadRecord(
            f"{where}: the last turn is {messages[-1]['role']}, but train_on='last_assistant' wants an answer"
        )
    if spec.train_on != "all" and not any(message["role"] == "assistant" for message in messages):
        raise BadRecord(f"{where}: no assistant turn, so nothing would be trained")
    return templates.render(spec.template, messages, train_on=spec.train_on, compat=spec.compat)


@dataclasses.dataclass
class Counts:
    """What happened to the records of one source."""

    read: int = 0
    bad: int = 0
    kept: int = 0
    empty: int = 0
    truncated: int = 0
    overlong_dropped: int = 0
    untrained_dropped: int = 0
    repetitive_dropped: int = 0
    first_bad: str | None = None


class Encoder:
    """Turns batches of records of one source into examples and counts what it leaves out."""

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer):
        self.spec, self.tokenizer = spec, tokenizer
        self.whole = spec.packing != "concat"

    def encode(self, batch: Sequence[tuple[Record | BadRecord, str]], source: Source, counts: Counts) -> list[Example]:
        """Encode one batch. With `on_bad="error"` the first bad record raises BadRecord, else it is counted."""
        prepared: list[tuple[int, str, Any]] = []
        for record, where in batch:
            document, counts.read = counts.read, counts.read + 1
            try:
                if isinstance(record, BadRecord):
                    raise record
                item = (
                    text_of(record, source, where)
                    if self.spec.kind == "text"
                    else _conversation(record, source, self.spec, where)
                )
            except BadRecord as error:
                if self.spec.on_bad == "error":
                    raise
                counts.bad += 1
                counts.first_bad = counts.first_bad or str(error)
                continue
            if item:
                prepared.append((document, where, item))
            else:
                counts.empty += 1
        items = [item for _, _, item in prepared]
        encoded = self._documents(items) if self.spec.kind == "text" else templates.tokenize(items, self.tokenizer)
        examples = []
        for (document, where, _), (ids, trained) in zip(prepared, encoded, strict=True):
            example = self._admit(Example(ids, trained, document, where), counts)
            if example is not None:
                counts.kept += 1
                examples.append(example)
        return examples

    def _documents(self, texts: list[str]) -> list[tuple[np.ndarray, None]]:
        """Ids of plain documents: [BOS] text EOS; every token is trained."""
        start = np.array([self.tokenizer.bos_id] if self.spec.add_bos else [], np.int32)
        end = np.array([self.tokenizer.eos_id], np.int32)
        return [(np.concatenate([start, ids, end]), None) for ids in self.tokenizer.encode_batch(texts)]

    def _admit(self, example: Example, counts: Counts) -> Example | None:
        """Apply the length rule, the repetition filter and the rule that something must be trained."""
        length, limit = len(example.ids), self.spec.sequence_length
        if self.whole and length > limit:
            if self.spec.overlong == "error":
                raise BadRecord(
                    f"{example.where}: {length} tokens, over sequence_length {limit}; "
                    "raise it or choose overlong 'truncate' or 'drop'"
                )
            if self.spec.overlong == "drop":
                counts.overlong_dropped += 1
                return None
            counts.truncated += 1
            example.ids = example.ids[:limit]
            example.trained = None if example.trained is None else example.trained[:limit]
        # The first token of a document is never a target, so a mark on it alone trains nothing.
        if len(example.ids) < 2 or (example.trained is not None and not example.trained[1:].any()):
            counts.untrained_dropped += 1
            return None
        if self.spec.repetition_filter and self.whole and filters.is_repetitive(example.ids):
            counts.repetitive_dropped += 1
            return None
        return example
