"""Texts of sources, for training a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from easylm_jax.config.data import Source
from easylm_jax.data.examples import messages_of, text_of
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from models.errors import UserError


def source_texts(sources: Iterable[Source]) -> Iterator[str]:
    """All texts of the sources: documents, or the contents of conversations.

    A record is read as a pair if `preference.holds_pairs`, else as a document if the source has no `fields` and the
    record has a text column, else as a conversation.
    """
    from easylm_jax.data import preference

    for source in sources:
        for record, where in read_records(source):
            try:
                if isinstance(record, BadRecord):
                    raise record
                if preference.holds_pairs(record, source):
                    yield from preference.texts_of(record, source, where)
                elif source.fields is None and source.text_field in record:
                    yield text_of(record, source, where)
                else:
                    yield from (message["content"] for message in messages_of(record, source, where))
            except BadRecord as error:
                raise UserError(f"data: {error}") from None
