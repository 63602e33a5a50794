"""SentencePiece model files: reading pieces and settings, changing pieces to control pieces, and training."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from easylm_jax.runtime.files import atomic_write
from models.errors import UserError

# The file is a protocol buffer (sentencepiece_model.proto): the repeated field 1 holds the pieces {1: text, 2: score,
# 3: kind}, field 2 the settings of the trainer {3: model type, 35: byte fallback}, field 3 those of the normaliser {2:
# table of replacements, 3: adds a space in front, 4: removes extra spaces}.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
BPE = 2


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    score: float
    kind: int


class SentencePieceModel(NamedTuple):
    """The content of a model file that decides how it splits text. `replacements` is empty if it keeps all text."""

    pieces: list[Piece]
    model_type: int
    byte_fallback: bool
    replacements: bytes
    dummy_prefix: bool
    remove_extra_spaces: bool


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields (field number, wire type, start of value, end of value) of a protocol buffer message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            end = _varint(data, at)[1]
        elif wire in (1, 5):
            end = at + (8 if wire == 1 else 4)
        elif wire == 2:
            size, at = _varint(data, at)
            end = at + size
        else:
            raise ValueError("unexpected wire type")
        if end > len(data):
            raise ValueError("file is truncated")
        yield tag >> 3, wire, at, end
        at = end


def read_model(data: bytes) -> SentencePieceModel:
    """The content of a model file; `ValueError` or `IndexError` for other files."""
    pieces = []
    settings: dict[int, dict[int, bytes | int]] = {2: {3: 1}, 3: {3: 1, 4: 1}}  # with the defaults of the format
    for number, wire, start, end in _fields(data):
        body = data[start:end]
        if number == 1 and wire == 2:
            pieces.append(_read_piece(body))
        elif number in settings and wire == 2:
            for inner, kind, first, last in _fields(body):
                settings[number][inner] = _varint(body, first)[0] if kind == 0 else body[first:last]
    trainer, normaliser = settings[2], settings[3]
    replacements = normaliser.get(2)
    return SentencePieceModel(
        pieces, int(trainer[3]), bool(trainer.get(35)), replacements if isinstance(replacements, bytes) else b"",
        bool(normaliser[3]), bool(normaliser[4]),
    )  # fmt: skip


def _read_piece(body: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, _, first, last in _fields(body):
        if number == 1:
            text = body[first:last].decode("utf-8", "replace")
        elif number == 2 and last - first == 4:
            score = struct.unpack("<f", body[first:last])[0]
        elif number == 3:
            kind = body[first]
    return Piece(text, score, kind)


def as_control(data: bytes, indices: set[int]) -> bytes:
    """The model file with some pieces changed to control pieces: they keep their ids, and text never matches them."""
    changed, index = bytearray(data), 0
    for number, wire, start, end in _fields(data):
        if number != 1 or wire != 2:
            continue
        if index in indices:
            for inner, _, first, _ in _fields(data[start:end]):
                if inner == 3:
                    changed[start + first] = CONTROL
        index += 1
    return bytes(changed)


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    folder: str | Path,
    *,
    symbols: Sequence[str] = (),
    dummy_prefix: bool = False,
    name: str = "tokenizer.model",
) -> Path:
    """Trains a BPE vocabulary with byte fallback and returns the path of the model file (for `sp:<path>`).

    The same texts give the same bytes (one thread, no sampling). Ids: pad 0, bos 1, eos 2, unknown 3, then `symbols`
    (control tokens such as `<|im_start|>`), then 256 bytes. Digits are split, white space is kept, and a newline is a
    token of its own, so that decode(encode(text)) == text. `UserError` when there is too little text for `vocab_size`.
    """
    import sentencepiece

    model = io.BytesIO()
    sentences = (line for text in texts for line in _sentences(text))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            control_symbols=list(symbols),
            user_defined_symbols=["\n"],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=dummy_prefix,
            split_digits=True,
            num_threads=1,
            shuffle_input_sentence=False,
            max_sentence_length=1 << 20,
            minloglevel=3,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"tokenizer: cannot train {vocab_size} pieces on these texts: {reason}") from None
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(model.getvalue())
    return path


def _sentences(text: str) -> Iterable[str]:
    """Lines without the newline, which is a piece of its own; the trainer reads one line at a time."""
    return (line for line in text.split("\n") if line.strip())
