"""SentencePiece model files: kinds of pieces, changing pieces to control pieces, and training."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from models.errors import UserError

# The file is a protocol buffer; its repeated field 1 holds the pieces {1: text, 2: score, 3: kind}.
CONTROL, USER_DEFINED = 3, 4


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


def piece_kinds(data: bytes) -> list[tuple[str, int]]:
    """(text, kind) of every piece of a model file, in order of ids; `ValueError` or `IndexError` for other files."""
    kinds = []
    for number, wire, start, end in _fields(data):
        if number != 1 or wire != 2:
            continue
        piece, kind, body = "", 1, data[start:end]
        for inner, _, first, last in _fields(body):
            if inner == 1:
                piece = body[first:last].decode("utf-8", "replace")
            elif inner == 3:
                kind = body[first]
        kinds.append((piece, kind))
    return kinds


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
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(model.getvalue())
    temporary.replace(path)
    return path


def _sentences(text: str) -> Iterable[str]:
    """Lines without the newline, which is a piece of its own; the trainer reads one line at a time."""
    return (line for line in text.split("\n") if line.strip())
