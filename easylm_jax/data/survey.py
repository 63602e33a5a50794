"""Looks through a data set before a recipe is written for it: how many rows, which columns, how long in tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from easylm_jax.config.data import Source
from easylm_jax.data import examples, preference, prompts, templates
from easylm_jax.data.records import BadRecord, Record
from easylm_jax.data.sources import read_records
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.data.tokenizer_template import resolve, roles_of
from models.errors import UserError

MOST_MEASURED = 2000  # rows whose tokens are counted
_CHARACTERS_PER_TOKEN = 3  # of a vocabulary that is not here; English has about 4
_TOKENS_PER_TURN = 8

# Columns of a question and of its response, in the order in which they are tried, for rows without messages.
QUESTIONS = ("prompt", "question", "instruction", "problem", "input", "query", "user")
RESPONSES = ("completion", "response", "answer", "output", "solution", "target", "assistant", "text")
LABELS = ("ground_truth", "answer", "label", "target", "solution", "completion", "response", "output")


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a data set holds.

    Attributes:
        rows: number of records.
        longest: tokens of the longest conversation (of a pair: of the longer side; of prompts: of the longest prompt),
            of the first `MOST_MEASURED` rows.
        columns: the columns of the first record.
        measured: whether tokens were counted; otherwise they are estimated from characters.
    """

    rows: int
    longest: int
    columns: tuple[str, ...]
    measured: bool


def survey(source: Source, kind: str, template: str, tokenizer: Tokenizer | None) -> Survey:
    """Reads all records of a source as data of a kind ("chat", "preference" or "prompts").

    Raises:
        UserError: there is no record, or one cannot be read as this kind; names the place and the columns.
    """
    rows, longest = 0, 0
    columns: tuple[str, ...] = ()
    for record, where in read_records(source):
        try:
            if isinstance(record, BadRecord):
                raise record
            if rows < MOST_MEASURED:
                longest = max(longest, *_lengths(record, source, kind, where, template, tokenizer))
        except BadRecord as error:
            raise UserError(f"data: {error}; name the columns with --fields") from None
        columns = columns or tuple(record)
        rows += 1
    if not rows:
        raise UserError(f"data: {source.path} holds no record")
    return Survey(rows, longest, columns, tokenizer is not None)


def first_record(source: Source) -> Record:
    """The first record of a source; `UserError` where there is none or it cannot be read."""
    for record, _ in read_records(source):
        if isinstance(record, BadRecord):
            raise UserError(f"data: {record}")
        return record
    raise UserError(f"data: {source.path} holds no record")


def chat_fields(record: Record) -> tuple[tuple[str, str], ...] | None:
    """`Source.fields` for a record of a conversation; None where its columns are found without them.

    Raises:
        UserError: no column of the record is known as a question or as its response.
    """
    if "messages" in record or ("prompt" in record and "completion" in record):
        return None
    question = next((name for name in QUESTIONS if name in record), None)
    response = next((name for name in RESPONSES if name in record and name != question), None)
    if question is None or response is None:
        raise UserError(
            f"data: no conversation among the columns {', '.join(map(repr, record))}; name them with --fields, such as "
            "--fields user=question,assistant=answer"
        )
    system = (("system", "system"),) if "system" in record else ()
    return (*system, ("user", question), ("assistant", response))


def label_column(record: Record, source: Source) -> str | None:
    """The column that a verifier compares a response with; None where no column is known as one."""
    used = {column for _, column in source.columns}
    return next((name for name in LABELS if name in record and name not in used), None)


def _lengths(
    record: Record, source: Source, kind: str, where: str, template: str, tokenizer: Tokenizer | None
) -> Iterator[int]:
    """Tokens of a record's conversations: one, or the two sides of a pair."""
    if kind == "preference":
        conversations = list(preference.sides_of(record, source, where))
    elif kind == "prompts":
        conversations = [prompts.prompt_of(record, source, where)]
    else:
        conversations = [examples.messages_of(record, source, where)]
    known = roles_of(template)
    for role in dict.fromkeys(message["role"] for messages in conversations for message in messages):
        if role not in known:
            raise BadRecord(f"{where}: template {template} has no {role} turn")
    if tokenizer is None:
        for messages in conversations:
            characters = sum(len(message["content"]) for message in messages)
            yield characters // _CHARACTERS_PER_TOKEN + _TOKENS_PER_TURN * len(messages)
        return
    render = templates.generation_prompt if kind == "prompts" else templates.render
    chosen = resolve(template, tokenizer)
    for ids, _ in templates.tokenize([render(chosen, messages) for messages in conversations], tokenizer):
        yield len(ids)
