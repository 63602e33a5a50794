"""Prompts for rollouts: conversations that end with a user turn, rendered up to the start of the response.

A row is one prompt: `tokens` [rows, L] padded on the right, `lengths` [rows], `prompt_index` [rows]. The columns of the
records (ground truth, name of the verifier) are kept as JSON lines:

    records.jsonl          {"source": number, "record": number, "messages": [...], "columns": {...}}, in prompt order
    record_offsets.npy     byte offset of each line, and the end: int64 [prompts + 1]
"""

from __future__ import annotations

import array
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data import filters, packing, preference, templates
from easylm_jax.data.examples import (
    Counts,
    Encoder,
    Example,
    check_roles,
    checked_text,
    column_of,
    json_value,
    messages_in,
    messages_of,
    template_of,
)
from easylm_jax.data.pictures import behind_start, id_limit, images_of
from easylm_jax.data.records import BadRecord, Record
from easylm_jax.data.tokenizer import Tokenizer
from models.molmo.image import Layout

Messages = list[dict[str, str]]


def prompt_of(record: Record, source: Source, where: str) -> Messages:
    """The conversation to respond to; it ends with a user turn.

    It is read from `fields`, else from the first of these columns in the record: instruction (a text),
    history_messages, `messages_field`, conversation, chosen (with rejected), prompt (a text or messages), question,
    problem. A final assistant turn is dropped; of a pair, the turns before the responses are used.

    Raises:
        BadRecord: the record has no prompt, or it does not end with a user turn.
    """
    messages = _found(record, source, where)
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise BadRecord(f"{where}: there is no prompt before the response")
    if messages[-1]["role"] != "user":
        raise BadRecord(f"{where}: the prompt ends with a {messages[-1]['role']} turn, not with the user's")
    return messages


def _found(record: Record, source: Source, where: str) -> Messages:
    named = dict(source.columns)
    if preference.holds_pairs(record, source) and not _earlier_than_pairs(record, source):
        return _shared_turns(record, source, where)
    if "prompt" in named:
        return _value(column_of(record, named["prompt"], where), named["prompt"], where)
    if named:
        return messages_of(record, source, where)
    lists = ("history_messages", source.messages_field, "conversation")
    candidates = ("instruction", *lists, "prompt", "question", "problem")
    column = next((name for name in candidates if name in record), None)
    if column is None:
        there = ", ".join(map(repr, record))
        raise BadRecord(f"{where}: no prompt column ({', '.join(candidates)}) among {there}; name it in fields")
    value = record[column]
    if column in lists and isinstance(value, str):  # messages as JSON text, as in CSV files
        value = json_value(value, column, where)
    return _value(value, column, where)


def _earlier_than_pairs(record: Record, source: Source) -> bool:
    if source.fields is not None or source.format is not None:
        return False
    return any(name in record for name in ("instruction", "history_messages", source.messages_field, "conversation"))


def _shared_turns(record: Record, source: Source, where: str) -> Messages:
    """The turns that both sides of a pair share, up to the last user turn."""
    chosen, rejected = preference.sides_of(record, source, where)
    return chosen[: min(preference.first_difference(chosen, rejected), len(chosen) - 1)]


def _value(value: Any, column: str, where: str) -> Messages:
    if isinstance(value, str):
        return [{"role": "user", "content": checked_text(value, column, where)}]
    return messages_in(value, column, where)


class PromptEncoder(Encoder):
    """Encodes prompts, one per row, and writes the columns that `keep` names (None = all) to `records.jsonl`."""

    layout = "prompts"
    has_notes = True

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer, folder: Path):
        super().__init__(spec, tokenizer, folder)
        self._build_folder = folder
        self._offsets = array.array("q", [0])
        self._file = open(folder / "records.jsonl", "wb")  # noqa: SIM115 - closed in `close`

    def stored(self, example: Example, source: int) -> None:
        line = json.dumps({"source": source, "record": example.document, **example.note}, default=str)
        self._file.write(line.encode() + b"\n")
        self._offsets.append(self._file.tell())

    def columns(self, plans: Sequence[packing.Plan]) -> dict[str, tuple[np.ndarray, str]]:
        self._file.close()
        np.save(self._build_folder / "record_offsets.npy", np.array(self._offsets, np.int64))
        return {
            "lengths": (np.concatenate([p.length for p in plans]).astype(np.int32), "tokens of the prompt"),
            "prompt_index": (np.concatenate([p.document for p in plans]).astype(np.int32), "number of the prompt"),
        }

    def facts(self) -> dict[str, Any]:
        seeing = {} if self.spec.vision is None else {"id_limit": id_limit(self.spec.vision, self.tokenizer)}
        return {"prompts": len(self._offsets) - 1, **seeing}

    def close(self) -> None:
        self._file.close()

    def _item(self, record: Record, source: Source, where: str, counts: Counts) -> Any:
        messages = prompt_of(record, source, where)
        if not messages[-1]["content"].strip():
            counts.empty += 1
            return None
        check_roles(messages, self.spec, where)
        keep = self.spec.keep
        kept = record if keep is None else {column: column_of(record, column, where) for column in keep}
        for column, value in kept.items():
            if not _plain(value):
                raise BadRecord(
                    f"{where}: column {column!r} has values that JSON cannot hold; name the columns to keep in "
                    "DataSpec.keep"
                )
        note: dict[str, Any] = {"messages": messages, "columns": kept}
        layouts: list[Layout] = []
        if self.spec.vision is not None:
            note["images"], layouts = images_of(record, source, self.spec, where)
            crops = sum(layout.crops for layout in layouts)
            if crops > self.spec.prompt_crops:
                what = f"{where}: pictures of {crops} crops, over row_crops {self.spec.prompt_crops}"
                self._may_cut(what, counts)
                return None
        return templates.generation_prompt(template_of(self.spec), messages), note, layouts

    def _tokens(self, items: list[Any]) -> list[Any]:
        encoded = templates.tokenize([pieces for pieces, *_ in items], self.tokenizer)
        found = []
        for (ids, marks), (_, note, layouts) in zip(encoded, items, strict=True):
            found.append((behind_start(ids, marks, layouts)[0], note))
        return found

    def _admit(self, tokens: Any, document: int, where: str, counts: Counts) -> list[Example]:
        ids, note = tokens
        limit = self.spec.sequence_length
        if len(ids) > limit:
            self._may_cut(f"{where}: a prompt of {len(ids)} tokens, over sequence_length {limit}", counts)
            return []
        if self.spec.repetition_filter and filters.is_repetitive(ids):
            counts.repetitive_dropped += 1
            return []
        return [Example(ids, np.zeros(len(ids), np.uint8), document, note)]


def _plain(value: Any) -> bool:
    """Whether JSON can hold the value (dates as text)."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, bool, int, float, datetime.date, datetime.time))
