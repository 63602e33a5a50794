"""Tokenizers: one interface for SentencePiece models and `tokenizer.json` files of Hugging Face.

Text is never encoded to a control token: a literal `</s>` or `<|endoftext|>` in a document is encoded as ordinary text.
The chat template and the packing of documents insert control tokens by id.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np

from easylm_jax.data.sentencepiece_model import CONTROL, USER_DEFINED, as_control, read_model
from models import reading
from models.errors import UserError

if TYPE_CHECKING:
    from models.model import Model

_MEND = "restore it from a copy, or download it again"
Offsets = tuple[np.ndarray, np.ndarray, np.ndarray]
_MARKER = re.compile(r"<[|｜][^<>]*[|｜]>|<(start|end)_of_\w+>|<im_(start|end)>")
_EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>")
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>")
_PAD_NAMES = ("<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "[PAD]", "<unk>")


class _AddedToken(TypedDict):
    content: str
    id: int
    special: bool


class _Model(TypedDict):
    vocab: dict[str, int] | list[Any]


class _TokenizerFile(TypedDict):
    """What is read here of a `tokenizer.json`; the library `tokenizers` reads the rest."""

    model: _Model
    added_tokens: NotRequired[list[_AddedToken] | None]


class _NamedToken(TypedDict):
    content: str


class _SpecialNames(TypedDict, total=False):
    bos_token: str | _NamedToken | None
    eos_token: str | _NamedToken | None
    pad_token: str | _NamedToken | None


class Tokenizer(abc.ABC):
    """Encodes text to ids and decodes ids to text.

    `eos_id` always exists, `bos_id` may be None. `pad_id` differs from both: where the file has none, it is the unknown
    token or else the lowest other id (masks come from spans, so its value does not matter). Text is never encoded to
    `special_ids`. `hash` depends on the bytes of the file and on these ids.
    """

    spec: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    special_ids: frozenset[int]
    hash: str
    path: Path  # the file that it was read from

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids (int32 [n]) of each text, without control tokens."""

    @abc.abstractmethod
    def encode_with_offsets(self, texts: Sequence[str], continuation: Sequence[bool] | None = None) -> list[Offsets]:
        """(ids, starts, ends) of each text, with offsets in characters.

        `continuation[i]`: text i follows a control token in the same rendered text, so that a tokenizer that adds a
        space only at the start of the whole text adds none.
        """

    @abc.abstractmethod
    def token_text(self, token: int) -> str:
        """The entry of a token in the vocabulary."""

    @abc.abstractmethod
    def _id_of(self, name: str) -> int | None: ...

    @abc.abstractmethod
    def _decode_plain(self, ids: Sequence[int]) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return self.encode_batch([text])[0].tolist()

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of the ids; control tokens are shown by name unless `skip_special`. Ids behind the vocabulary, such as
        those of pictures, have no text."""
        parts: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            if token >= self.vocab_size:
                continue
            if token not in self.special_ids:
                run.append(token)
                continue
            parts.append(self._decode_plain(run) if run else "")
            parts.append("" if skip_special else self.token_text(token))
            run = []
        return "".join([*parts, self._decode_plain(run) if run else ""])

    def special(self, name: str) -> int | None:
        """Id of a control token by "bos", "eos", "pad" or its literal name; None if there is none."""
        named = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}
        if name in named:
            return named[name]
        found = self._id_of(name)
        return found if found in self.special_ids else None

    def describe(self) -> dict[str, object]:
        """The entries of a manifest."""
        names = ("spec", "hash", "vocab_size", "bos_id", "eos_id", "pad_id")
        return {name: getattr(self, name) for name in names}

    def _finish(self, content: bytes, special_ids: Iterable[int], pad_id: int | None) -> None:
        taken = {self.eos_id, self.bos_id}
        if pad_id is None or pad_id in taken:
            pad_id = next(i for i in range(self.vocab_size) if i not in taken)
        self.pad_id = pad_id
        self.special_ids = frozenset(special_ids) | {i for i in (self.eos_id, self.bos_id) if i is not None}
        ids = f"|{self.bos_id}|{self.eos_id}|{self.pad_id}".encode()
        self.hash = hashlib.sha256(content + ids).hexdigest()


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file. User-defined symbols of the form `<|…|>` are control tokens."""

    def __init__(self, path: str | Path, spec: str):
        from sentencepiece import SentencePieceProcessor

        self.path = Path(path)
        content = reading.read_bytes(self.path, mend=_MEND)
        try:
            pieces = read_model(content).pieces
            markers = {i for i, p in enumerate(pieces) if p.kind == USER_DEFINED and _MARKER.fullmatch(p.text)}
            self._model = SentencePieceProcessor(model_proto=as_control(content, markers) if markers else content)
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"tokenizer: {path} is not a SentencePiece model: {error}") from None
        self.spec, self.vocab_size = spec, self._model.get_piece_size()
        present = lambda token: token if token >= 0 else None  # noqa: E731
        if self._model.eos_id() < 0:
            raise UserError(f"tokenizer: {path} has no end token (eos); train the model with eos_id")
        self.bos_id, self.eos_id = present(self._model.bos_id()), self._model.eos_id()
        control = {i for i, piece in enumerate(pieces) if piece.kind == CONTROL} | markers
        pad = present(self._model.pad_id())
        self._finish(content, control, pad if pad is not None else present(self._model.unk_id()))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return list(self._model.encode(list(texts), return_type="numpy"))

    def encode_with_offsets(self, texts: Sequence[str], continuation: Sequence[bool] | None = None) -> list[Offsets]:
        results = self._model.encode(list(texts), return_type="offset_mapping")
        encoded = []
        for result in results:
            offsets = np.array(result["offsets"], np.int64).reshape(-1, 2)
            encoded.append((np.array(result["ids"], np.int32), offsets[:, 0], offsets[:, 1]))
        return encoded

    def token_text(self, token: int) -> str:
        return self._model.id_to_piece(int(token))

    def _id_of(self, name: str) -> int | None:
        found = self._model.piece_to_id(name)
        return found if self._model.id_to_piece(found) == name else None

    def _decode_plain(self, ids: Sequence[int]) -> str:
        return self._model.decode(list(ids))


class HFTokenizer(Tokenizer):
    """A `tokenizer.json`; names of bos, eos and pad come from `tokenizer_config.json` beside it where there is one."""

    def __init__(self, path: str | Path, spec: str):
        self.path = path = Path(path)
        content = reading.read_bytes(path, mend=_MEND)
        try:
            data = reading.parse_json(content, _TokenizerFile, path)
        except reading.Damaged as error:
            raise UserError(f"tokenizer: {path} is not a tokenizer.json ({error.why}); {_MEND}") from None
        added = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
        names = _special_names(path.parent, added)
        if names["eos_token"] is None:
            raise UserError(f"tokenizer: {path} names no end token; give eos_token in tokenizer_config.json beside it")
        try:
            self._model = _load_hf(data, set(names.values()))
            self._continuation = _without_leading_space(data, set(names.values())) or self._model
        except Exception as error:  # the library raises plain exceptions
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"tokenizer: {path} is not a tokenizer.json ({reason[:200]}); {_MEND}") from None
        self.spec, self.vocab_size = spec, max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        ids = {role: None if name is None else self._id_of(name) for role, name in names.items()}
        if ids["eos_token"] is None:
            raise UserError(f"tokenizer: eos_token {names['eos_token']!r} is not in the vocabulary of {path}")
        self.bos_id, self.eos_id = ids["bos_token"], ids["eos_token"]
        decoder = self._model.get_added_tokens_decoder()
        self._finish(content, [i for i, token in decoder.items() if token.special], ids["pad_token"])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(e.ids, np.int32) for e in self._model.encode_batch(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, texts: Sequence[str], continuation: Sequence[bool] | None = None) -> list[Offsets]:
        later = list(continuation) if continuation is not None else [False] * len(texts)
        results: list = [None] * len(texts)
        for model, wanted in ((self._model, False), (self._continuation, True)):
            chosen = [i for i, flag in enumerate(later) if bool(flag) == wanted]
            encodings = model.encode_batch([texts[i] for i in chosen], add_special_tokens=False) if chosen else []
            for i, encoding in zip(chosen, encodings, strict=True):
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                results[i] = (np.array(encoding.ids, np.int32), offsets[:, 0], offsets[:, 1])
        return results

    def token_text(self, token: int) -> str:
        return self._model.id_to_token(int(token)) or f"<unused {token}>"

    def _id_of(self, name: str) -> int | None:
        return self._model.token_to_id(name)

    def _decode_plain(self, ids: Sequence[int]) -> str:
        return self._model.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(spec: str) -> Tokenizer:
    """Loads `sp:/path.model`, `hf:folder`, `hf:/path/tokenizer.json` or `hf:hub/name`.

    Without a prefix, names that end in .model are SentencePiece models, all others Hugging Face tokenizers.

    Raises:
        UserError: there is no such file, or it is not a tokenizer.
    """
    prefix, _, rest = spec.partition(":")
    if prefix not in ("sp", "hf"):
        prefix, rest = ("sp" if spec.endswith(".model") else "hf"), spec
    path = Path(rest)
    if prefix == "sp":
        if path.is_dir():
            path = path / "tokenizer.model"
        if not path.is_file():
            raise UserError(f"tokenizer: no SentencePiece model at {path}")
        return SentencePieceTokenizer(path, spec)
    if not path.exists():
        path = _download(rest)
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            path = path / "tokenizer.json"
        elif (path / "tokenizer.model").is_file():
            return SentencePieceTokenizer(path / "tokenizer.model", spec)
        else:
            raise UserError(f"tokenizer: {path} holds neither tokenizer.json nor tokenizer.model")
    return HFTokenizer(path, spec)


def _download(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.endswith(".json"):
        raise UserError(f"tokenizer: {name} is neither a file, a folder nor a hub name (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["tokenizer*", "special_tokens_map.json"]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tokenizer: {name} is not a local path and could not be downloaded from the hub: {reason}"
        ) from None


def _special_names(folder: Path, added: dict[str, int]) -> dict[str, str | None]:
    """Names of bos, eos and pad: from tokenizer_config.json, else special_tokens_map.json, else the usual names."""
    names: dict[str, str | None] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if not path.is_file():
            continue
        config = reading.read_json(path, _SpecialNames, mend=_MEND)
        for role in ("bos_token", "eos_token", "pad_token"):
            if role in config:
                value = config[role]
                names[role] = value.get("content") if isinstance(value, dict) else value
    usual = {"bos_token": _BOS_NAMES, "eos_token": _EOS_NAMES, "pad_token": _PAD_NAMES}
    for role, candidates in usual.items():
        if role not in names or (role == "pad_token" and names[role] in (None, names.get("eos_token"))):
            names[role] = next((name for name in candidates if name in added), None)
    return names


def _load_hf(data: dict, special: set[str | None]):
    """A `tokenizers.Tokenizer` that encodes control tokens in text as ordinary text, with exact offsets."""
    from tokenizers import Tokenizer as Backend

    added = []
    for token in data.get("added_tokens") or []:
        control = token["special"] or token["content"] in special or _MARKER.fullmatch(token["content"])
        added.append({**token, "special": bool(control)})
    # Without the post-processor, which adds control tokens and removes white space from offsets.
    changed = {**data, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
    backend = Backend.from_str(json.dumps(changed))
    backend.encode_special_tokens = True
    return backend


def _without_leading_space(data: dict, special: set[str | None]):
    """For tokenizers that add a space before the first word only: the same without it; None for others."""
    text = json.dumps(data.get("pre_tokenizer"))
    if '"prepend_scheme": "first"' not in text:
        return None
    later = json.loads(text.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"'))
    return _load_hf({**data, "pre_tokenizer": later}, special)


def restrict_vocab(model: Model, tokenizer: Tokenizer) -> Model:
    """The model for sampling: `vocab_used` is limited to the tokenizer's vocabulary, so that ids without a token are
    never sampled."""
    used = min(model.config.vocab_used, tokenizer.vocab_size)
    return dataclasses.replace(model, config=model.config.replace(vocab_used=used))  # type: ignore[type-var]


def differing_token(own: Tokenizer, other: Tokenizer) -> str | None:
    """The first token that means another text in two tokenizers; None if all are the same.

    Control tokens are not compared, and `other` may have more tokens: a chat model renames reserved control tokens of
    its base model, or adds some, and keeps the meaning of all others.
    """
    control = own.special_ids | other.special_ids
    for token in range(min(own.vocab_size, other.vocab_size)):
        if token not in control and own.token_text(token) != other.token_text(token):
            first, second = own.token_text(token), other.token_text(token)
            return f"token {token} is {first!r} in one and {second!r} in the other"
    return None
