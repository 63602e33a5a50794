"""Writes a tokenizer in the files that `transformers` reads, with the chat template of the model beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from easylm_jax.config.chat_templates import Template
from easylm_jax.data.jinja_template import to_jinja
from easylm_jax.data.sentencepiece_model import BPE, NORMAL, USER_DEFINED, SentencePieceModel, read_model
from easylm_jax.data.templates import end_tokens
from easylm_jax.data.tokenizer import HFTokenizer, SentencePieceTokenizer, Tokenizer
from easylm_jax.runtime.files import write_json
from models.errors import UserError
from models.hf.files import copy_tokenizer
from models.reading import read_bytes, read_json

_SPACE = "▁"  # SentencePiece's sign for a space
_PROBES = (
    "Hello world,  two spaces and 3.14159!\n\n\tA tab; naïve café – 東京 🙂.\n",
    " leading, and trailing ",
    "aaaaaaaa bbbb    cccc\n\n\n1234567890",
)


def write_tokenizer(
    tokenizer: Tokenizer, folder: Path, *, template: str | Template | None, add_bos: bool, context: int
) -> str | None:
    """Writes the tokenizer's files, chat template and generation_config.json (its end tokens) to an existing folder.

    A SentencePiece model is written as it is and, converted, as tokenizer.json. The files of a Hugging Face tokenizer
    are copied; missing names of control tokens are added, and `template` replaces its chat template.

    Args:
        template: that the model was trained with; None keeps the chat template beside the tokenizer, if there is one.
        add_bos: whether texts were trained with a BOS token in front.
        context: tokens that the model was made for.

    Returns:
        Why there is no tokenizer.json, where the SentencePiece model cannot be converted.
    """
    fault = None
    if isinstance(tokenizer, SentencePieceTokenizer):
        shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
        settings: dict[str, Any] = {"add_bos_token": add_bos}
        try:
            write_json(folder / "tokenizer.json", to_tokenizer_json(tokenizer, add_bos))
        except UserError as error:
            fault = str(error)
    else:
        assert isinstance(tokenizer, HFTokenizer)
        copy_tokenizer(tokenizer.path.parent, folder)
        file = folder / "tokenizer_config.json"
        settings = read_json(file) if file.is_file() else {}
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    settings.setdefault("clean_up_tokenization_spaces", False)
    settings.setdefault("model_max_length", context)
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": padding_id(tokenizer)}
    for name, token in ids.items():
        if token is not None and not settings.get(name):
            settings[name] = tokenizer.token_text(token)
    if template is not None:
        settings["chat_template"] = to_jinja(template, tokenizer)
        for file in folder.glob("chat_template*"):
            file.unlink()
        (folder / "chat_template.jinja").write_text(settings["chat_template"], encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
    _write_generation_config(tokenizer, folder / "generation_config.json", template)
    return fault


def padding_id(tokenizer: Tokenizer) -> int | None:
    """The id of the padding token; None where the tokenizer's is an ordinary token, which a text may hold."""
    made_for_it = isinstance(tokenizer, SentencePieceTokenizer) or tokenizer.pad_id in tokenizer.special_ids
    return tokenizer.pad_id if made_for_it else None


def _write_generation_config(tokenizer: Tokenizer, path: Path, template: str | Template | None) -> None:
    """The ids that end a response, in addition to those in the tokenizer's own generation_config.json."""
    config = read_json(path) if path.is_file() else {}
    known = config.get("eos_token_id")
    known = known if isinstance(known, list) else [] if known is None else [known]
    config["eos_token_id"] = list(dict.fromkeys([tokenizer.eos_id, *known, *end_tokens(template, tokenizer)]))
    for name, token in (("bos_token_id", tokenizer.bos_id), ("pad_token_id", padding_id(tokenizer))):
        if config.get(name) is None:
            config[name] = token
    write_json(path, config)


def to_tokenizer_json(tokenizer: SentencePieceTokenizer, add_bos: bool = False) -> dict[str, Any]:
    """A SentencePiece model of BPE as the content of a `tokenizer.json` that gives the same ids.

    A model file lists pieces with scores, tokenizer.json pairs of pieces in the order in which they are merged: every
    pair whose concatenation is a piece, in the order of that piece's score. The result is compared with the model on
    texts that hold every piece.

    Raises:
        UserError: the model is not BPE, or splits text in another way.
    """
    from tokenizers import Tokenizer as Backend

    model = read_model(read_bytes(tokenizer.path))
    if model.model_type != BPE:
        raise UserError(f"tokenizer: {tokenizer.path} is not a BPE model, so it cannot be converted to tokenizer.json")
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokenizer, model),
        "normalizer": _normalizer(model),
        "pre_tokenizer": None,
        "post_processor": _bos_processor(tokenizer) if add_bos and tokenizer.bos_id is not None else None,
        "decoder": _decoder(model),
        "model": _bpe(model),
    }
    backend = Backend.from_str(json.dumps({**content, "post_processor": None}))
    backend.encode_special_tokens = True
    everything = "".join(piece.text for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED))
    for text in (*_PROBES, everything.replace(_SPACE, " ")):
        if backend.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise UserError(
                f"tokenizer: {tokenizer.path} splits {text[:40]!r} in a way that tokenizer.json cannot express; train "
                "the vocabulary with easylm data tokenizer, or give another one with --tokenizer"
            )
    return content


def _bpe(model: SentencePieceModel) -> dict[str, Any]:
    vocabulary = {piece.text: number for number, piece in enumerate(model.pieces)}
    mergeable = {piece.text for piece in model.pieces if piece.kind == NORMAL}
    ranked = []
    for number, piece in enumerate(model.pieces):
        if piece.kind != NORMAL:
            continue
        for at in range(1, len(piece.text)):
            left, right = piece.text[:at], piece.text[at:]
            if left in mergeable and right in mergeable:
                ranked.append(((-piece.score, number, vocabulary[left], vocabulary[right]), [left, right]))
    unknown = next((piece.text for piece in model.pieces if piece.kind == 2), None)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [pair for _, pair in sorted(ranked)],
    }


def _added_tokens(tokenizer: SentencePieceTokenizer, model: SentencePieceModel) -> list[dict[str, Any]]:
    """Control tokens, and user-defined symbols, which are found before anything else is split.

    A symbol of one character needs no entry, since it is part of no other piece.
    """
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": piece.text.replace(_SPACE, " "), **plain, "special": number in tokenizer.special_ids}
        for number, piece in enumerate(model.pieces)
        if number in tokenizer.special_ids or (piece.kind == USER_DEFINED and len(piece.text) > 1)
    ]


def _normalizer(model: SentencePieceModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if model.replacements:
        import base64

        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.replacements).decode()})
    if model.remove_extra_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bos_processor(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Puts BOS before a text that is encoded with control tokens."""
    name = tokenizer.token_text(tokenizer.bos_id or 0)
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    text, pair = ({"Sequence": {"id": part, "type_id": number}} for number, part in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"SpecialToken": {"id": name, "type_id": 1}}, pair],
        "special_tokens": {name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}},
    }
