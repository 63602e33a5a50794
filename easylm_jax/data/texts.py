"""The plain texts of sources, for training a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from easylm_jax.config.data import Source
from easylm_jax.data.examples import messages_of, text_of
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from models.errors import UserError


def source_texts(sources: Iterable[Source]) -> Iterator[str]:
    """All text of the sources, for training a vocabulary: documents, or the contents of conversations.

    A source is read as pairs when it names or has a column chosen, else as conversations when it has `fields` or when
    its records have no text column.
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
