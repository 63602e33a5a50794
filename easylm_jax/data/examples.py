"""Records to token ids: one document or conversation at a time becomes ids and, where needed, trained marks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config import chat_templates
from easylm_jax.config.data import ROLES, DataSpec, Source
from easylm_jax.data import filters, packing, templates
from easylm_jax.data.records import BadRecord, Record
from easylm_jax.data.tokenizer import Tokenizer

# (prompt, completion) columns in the order they are looked for; the second pair is what seqio tasks carry.
_PAIRS = (("prompt", "completion"), ("inputs_pretokenized", "targets_pretokenized"), ("inputs", "targets"))


@dataclasses.dataclass
class Example:
    """Ids (int32 [n]) of one document, trained marks (uint8 [n], None = all), the number of its record, and a note
    that its kind of data keeps (a margin, a record)."""

    ids: np.ndarray
    trained: np.ndarray | None
    document: int
    note: Any = None


def checked_text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{where}: {what} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(f"{where}: {what} holds half of a surrogate pair, which is no character") from None
    return value


def column_of(record: Record, column: str, where: str) -> Any:
    if column not in record:
        raise BadRecord(f"{where}: no column {column!r}; there are {', '.join(map(repr, record))}")
    return record[column]


def text_of(record: Record, source: Source, where: str) -> str:
    """The text of a document. BadRecord when the column is missing or not text."""
    column = source.text_field
    if source.path.startswith("seqio:") and column not in record:
        column = next((name for _, name in _PAIRS[1:] if isinstance(record.get(name), str)), column)
    return checked_text(column_of(record, column, where), column, where)


def messages_of(record: Record, source: Source, where: str) -> list[dict[str, str]]:
    """The conversation of a record as `[{"role", "content"}]`. BadRecord when it is empty or malformed."""
    if source.fields is not None:
        turns = [{"role": role, "content": column_of(record, column, where)} for role, column in source.fields]
    elif source.messages_field in record:
        turns = record[source.messages_field]
        if isinstance(turns, str):
            turns = json_value(turns, source.messages_field, where)
    else:
        pair = next((pair for pair in _PAIRS if pair[0] in record and pair[1] in record), None)
        if pair is None:
            wanted = f"{source.messages_field!r} (nor prompt and completion)"
            raise BadRecord(f"{where}: no column {wanted}; there are {', '.join(map(repr, record))}")
        turns = [{"role": "user", "content": record[pair[0]]}, {"role": "assistant", "content": record[pair[1]]}]
    return messages_in(turns, source.messages_field, where)


def messages_in(turns: Any, column: str, where: str) -> list[dict[str, str]]:
    """A column's value as messages. BadRecord when it is no list of them, or an empty one."""
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRecord(f"{where}: {column} is {type(turns).__name__}, not a list of messages")
    if not turns:
        raise BadRecord(f"{where}: the conversation is empty")
    return [_message(turn, index, where) for index, turn in enumerate(turns)]


def json_value(text: str, column: str, where: str) -> Any:
    """What a column of JSON text holds. BadRecord when it is not JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRecord(f"{where}: {column} is text but not JSON: {error}") from None


def _message(turn: Any, index: int, where: str) -> dict[str, str]:
    if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
        raise BadRecord(f"{where}: message {index} needs role and content")
    if turn["role"] not in ROLES:
        raise BadRecord(f"{where}: message {index} has the unknown role {turn['role']!r}; use {', '.join(ROLES)}")
    return {"role": turn["role"], "content": checked_text(turn["content"], f"content of message {index}", where)}


def _conversation(record: Record, source: Source, spec: DataSpec, where: str) -> list[templates.Piece]:
    messages = messages_of(record, source, where)
    check_roles(messages, spec, where)
    if spec.train_on == "last_assistant" and messages[-1]["role"] != "assistant":
        raise BadRecord(
            f"{where}: the last turn is {messages[-1]['role']}, but train_on='last_assistant' wants an answer"
        )
    if spec.train_on != "all" and not any(message["role"] == "assistant" for message in messages):
        raise BadRecord(f"{where}: no assistant turn, so nothing would be trained")
    return templates.render(spec.template, messages, train_on=spec.train_on, compat=spec.compat)


def check_roles(messages: Sequence[dict[str, str]], spec: DataSpec, where: str) -> None:
    """BadRecord when the template has no turn for one of the roles."""
    known = chat_templates.get_template(spec.template).turns
    for message in messages:
        if message["role"] not in known:
            raise BadRecord(f"{where}: template {spec.template} has no {message['role']} turn")


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
    identical_dropped: int = 0
    first_bad: str | None = None


class Encoder:
    """What a kind of data does with its records: this one serves "text" and "chat".

    Records become examples (`unit` of them for each record: 2 for a pair), examples become rows (`plan`), and what
    rows carry besides tokens becomes columns (`columns`). Counts what it leaves out.
    """

    unit = 1
    layout = "next_token"

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer, folder: Path | None = None):
        self.spec, self.tokenizer, self.folder = spec, tokenizer, folder
        self.whole = spec.packing != "concat"

    def encode(self, batch: Sequence[tuple[Record | BadRecord, str]], source: Source, counts: Counts) -> list[Example]:
        """Encode one batch. With `on_bad="error"` the first bad record raises BadRecord, else it is counted."""
        prepared: list[tuple[int, str, Any]] = []
        for record, where in batch:
            document, counts.read = counts.read, counts.read + 1
            try:
                if isinstance(record, BadRecord):
                    raise record
                item = self._item(record, source, where, counts)
            except BadRecord as error:
                if self.spec.on_bad == "error":
                    raise
                counts.bad += 1
                counts.first_bad = counts.first_bad or str(error)
                continue
            if item is not None:
                prepared.append((document, where, item))
        encoded = self._tokens([item for _, _, item in prepared])
        examples = []
        for (document, where, _), tokens in zip(prepared, encoded, strict=True):
            admitted = self._admit(tokens, document, where, counts)
            counts.kept += bool(admitted)
            examples += admitted
        return examples

    def stored(self, example: Example, source: int) -> None:
        """Called for each example of source number `source`, in the order of the store."""

    def plan(self, lengths: np.ndarray, units: np.ndarray) -> packing.Plan:
        """Rows for the chosen `units` (numbers in the store, int64); `document` of the plan is the store's number."""
        plan = packing.PACKERS[self.spec.packing](lengths[units], self.spec.sequence_length)
        return dataclasses.replace(plan, document=units[plan.document])

    def columns(self, plans: Sequence[packing.Plan]) -> dict[str, tuple[np.ndarray, str]]:
        """More columns, {name: (array [rows, ...], what it is)}, and files of its own in the folder of the build."""
        return {}

    def facts(self) -> dict[str, Any]:
        """More entries of the manifest."""
        return {}

    def close(self) -> None:
        """Close what is still open; called however the build ends."""

    def _item(self, record: Record, source: Source, where: str, counts: Counts) -> Any:
        """What is encoded of a record; None when it is empty, which is counted here."""
        if self.spec.kind == "text":
            item: Any = text_of(record, source, where)
        else:
            item = _conversation(record, source, self.spec, where)
        counts.empty += not item
        return item or None

    def _tokens(self, items: list[Any]) -> list[Any]:
        if self.spec.kind == "chat":
            return templates.tokenize(items, self.tokenizer)
        # Ids of plain documents: [BOS] text EOS; every token is trained.
        start = np.array([self.tokenizer.bos_id] if self.spec.add_bos else [], np.int32)
        end = np.array([self.tokenizer.eos_id], np.int32)
        return [(np.concatenate([start, ids, end]), None) for ids in self.tokenizer.encode_batch(items)]

    def _admit(self, tokens: Any, document: int, where: str, counts: Counts) -> list[Example]:
        """Apply the length rule, the repetition filter and the rule that something must be trained."""
        ids, trained = tokens
        limit = self.spec.sequence_length
        if self.whole and len(ids) > limit:
            if not self._may_cut(f"{where}: {len(ids)} tokens, over sequence_length {limit}", counts):
                return []
            ids, trained = ids[:limit], None if trained is None else trained[:limit]
        if nothing_trained(ids, trained):
            counts.untrained_dropped += 1
            return []
        if self.spec.repetition_filter and self.whole and filters.is_repetitive(ids):
            counts.repetitive_dropped += 1
            return []
        return [Example(ids, trained, document)]

    def _may_cut(self, what: str, counts: Counts) -> bool:
        """Whether a record that is too long is cut (else it is dropped); counted. BadRecord where that is an error."""
        if self.spec.overlong == "error":
            raise BadRecord(f"{what}; raise it or choose another overlong than 'error'")
        if self.spec.overlong == "drop":
            counts.overlong_dropped += 1
            return False
        counts.truncated += 1
        return True


def nothing_trained(ids: np.ndarray, trained: np.ndarray | None) -> bool:
    """The first token of a document is never a target, so a mark on it alone trains nothing."""
    return len(ids) < 2 or (trained is not None and not trained[1:].any())
