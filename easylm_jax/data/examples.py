"""Encodes records: a document or conversation becomes token ids and, where needed, a loss mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config import chat_templates
from easylm_jax.config.data import ROLES, DataSpec, Source
from easylm_jax.data import filters, packing, templates, tokenizer_template
from easylm_jax.data.records import BadRecord, Record, parse_json
from easylm_jax.data.tokenizer import Tokenizer

# (prompt, completion) columns, in the order in which they are tried; the last two pairs are those of seqio tasks.
_PAIRS = (("prompt", "completion"), ("inputs_pretokenized", "targets_pretokenized"), ("inputs", "targets"))


@dataclasses.dataclass
class Example:
    """One encoded document.

    `ids` int32 [n]; `trained` uint8 [n], the loss mask (None: all tokens); `document`, the index of the record in its
    source; `note`, what else its kind of data stores (a margin, a record).
    """

    ids: np.ndarray
    trained: np.ndarray | None
    document: int
    note: Any = None


def checked_text(value: Any, what: str, where: str) -> str:
    """`value` if it is valid text; `BadRecord` otherwise."""
    if not isinstance(value, str):
        raise BadRecord(f"{where}: {what} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(f"{where}: {what} holds half of a surrogate pair, which is not a character") from None
    return value


def column_of(record: Record, column: str, where: str) -> Any:
    """The value of a column; `BadRecord` when the record has no such column."""
    if column not in record:
        raise BadRecord(f"{where}: no column {column!r}; there are {', '.join(map(repr, record))}")
    return record[column]


def text_of(record: Record, source: Source, where: str) -> str:
    """The text of a document; `BadRecord` when the column is missing or not text."""
    column = source.text_field
    if source.path.startswith("seqio:") and column not in record:
        column = next((name for _, name in _PAIRS[1:] if isinstance(record.get(name), str)), column)
    return checked_text(column_of(record, column, where), column, where)


def messages_of(record: Record, source: Source, where: str) -> list[dict[str, str]]:
    """The conversation of a record as `[{"role", "content"}]`; `BadRecord` when it is empty or malformed."""
    if source.fields is not None:
        turns = [{"role": role, "content": column_of(record, column, where)} for role, column in source.columns]
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
    """The value of a column as messages; `BadRecord` when it is not a list of messages, or empty."""
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRecord(f"{where}: {column} is {type(turns).__name__}, not a list of messages")
    if not turns:
        raise BadRecord(f"{where}: the conversation is empty")
    return [_message(turn, index, where) for index, turn in enumerate(turns)]


def json_value(text: str, column: str, where: str) -> Any:
    """The value of a column of JSON text; `BadRecord` when it is not JSON."""
    try:
        return parse_json(text)
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
            f"{where}: the last turn is {messages[-1]['role']}, but train_on='last_assistant' needs an assistant turn"
        )
    if spec.train_on != "all" and not any(message["role"] == "assistant" for message in messages):
        raise BadRecord(f"{where}: no assistant turn, so no token would be trained")
    return templates.render(template_of(spec), messages, train_on=spec.train_on, compat=spec.compat)


def template_of(spec: DataSpec) -> chat_templates.Template:
    """The chat template of a spec, which all kinds of data but "text" have."""
    assert spec.template is not None, "checked by DataSpec"
    if spec.template == tokenizer_template.NAME:
        return tokenizer_template.of_spec(spec.tokenizer)
    return chat_templates.get_template(spec.template)


def check_roles(messages: Sequence[dict[str, str]], spec: DataSpec, where: str) -> None:
    """Raises `BadRecord` when the template has no turn for one of the roles."""
    known = template_of(spec).turns
    for message in messages:
        if message["role"] not in known:
            raise BadRecord(f"{where}: template {spec.template} has no {message['role']} turn")


@dataclasses.dataclass
class Counts:
    """Counts of the records of one source: read, not sampled, kept, and left out or changed by reason."""

    read: int = 0
    not_sampled: int = 0
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
    """Encodes the records of one kind of data. This class is for "text" and "chat"; subclasses are for other kinds.

    A record becomes `unit` examples (2 for a pair), examples are packed into rows (`plan`), and what rows have besides
    tokens becomes columns (`columns`). Records that are left out are counted.
    """

    unit = 1
    layout = "next_token"
    has_notes = False  # whether `stored` takes what examples carry besides tokens

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer, folder: Path | None = None):
        self.spec, self.tokenizer, self.folder = spec, tokenizer, folder
        self.whole = spec.packing != "concat"

    def encode(
        self, batch: Sequence[tuple[Record | BadRecord, str]], source: Source, counts: Counts, numbers: Sequence[int]
    ) -> list[Example]:
        """Encodes one batch of records, whose numbers become those of the examples.

        With `on_bad="error"` the first bad record raises `BadRecord`; otherwise it is counted.
        """
        prepared: list[tuple[int, str, Any]] = []
        for (record, where), document in zip(batch, numbers, strict=True):
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
        """Called for each stored example, in order; `source` is the index of its source."""

    def plan(self, lengths: np.ndarray, units: np.ndarray) -> packing.Plan:
        """Packs `units` (indices into the store, int64 [n]); `document` of the plan is an index into the store.

        Documents that are joined ("concat") are planned by `packing.concat_chunks`, which needs no array of them all.
        """
        assert self.spec.packing is not None, "DataSpec sets a default"
        plan = packing.PACKERS[self.spec.packing](lengths[units], self.spec.sequence_length)
        return dataclasses.replace(plan, document=units[plan.document])

    def columns(self, plans: Sequence[packing.Plan]) -> dict[str, tuple[np.ndarray, str]]:
        """Further columns as {name: (array [rows, ...], description)}; may also write files of its own."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Further entries of the manifest."""
        return {}

    def close(self) -> None:
        """Closes open files; called at the end of a build, also after an error."""

    def _item(self, record: Record, source: Source, where: str, counts: Counts) -> Any:
        """The part of a record that is encoded; None for an empty record, which is counted."""
        if self.spec.kind == "text":
            item: Any = text_of(record, source, where)
        else:
            item = _conversation(record, source, self.spec, where)
        counts.empty += not item
        return item or None

    def _tokens(self, items: list[Any]) -> list[Any]:
        if self.spec.kind == "chat":
            return templates.tokenize(items, self.tokenizer)
        # Plain documents are [BOS] text EOS; every token is trained.
        start = np.array([self.tokenizer.bos_id] if self.spec.add_bos else [], np.int32)
        end = np.array([self.tokenizer.eos_id], np.int32)
        return [(np.concatenate([start, ids, end]), None) for ids in self.tokenizer.encode_batch(items)]

    def _admit(self, tokens: Any, document: int, where: str, counts: Counts) -> list[Example]:
        """Applies the length limit and the repetition filter, and drops examples without a trained token."""
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
        """Whether an overlong record is truncated, not dropped; counts it. `BadRecord` with `overlong="error"`."""
        if self.spec.overlong == "error":
            raise BadRecord(f"{what}; raise it or choose another overlong than 'error'")
        if self.spec.overlong == "drop":
            counts.overlong_dropped += 1
            return False
        counts.truncated += 1
        return True


def nothing_trained(ids: np.ndarray, trained: np.ndarray | None) -> bool:
    """Whether no token is trained. The first token of a document is never a target, so it does not count."""
    return len(ids) < 2 or (trained is not None and not trained[1:].any())
