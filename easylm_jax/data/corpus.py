"""The plain text of sources, for training a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from easylm_jax.data.examples import messages_of, text_of
from easylm_jax.data.sources import BadRecord, read_records
from easylm_jax.data.spec import Source


def texts(documents: Sequence[Source], conversations: Sequence[Source] = ()) -> Iterator[str]:
    """The text of each document, then of each turn of each conversation; a bad record raises its `UserError`."""
    for source in documents:
        for record, where in read_records(source):
            yield text_of(_good(record), source, where)
    for source in conversations:
        for record, where in read_records(source):
            for message in messages_of(_good(record), source, where):
                yield message["content"]


def _good(record):
    if isinstance(record, BadRecord):
        raise record
    return record
