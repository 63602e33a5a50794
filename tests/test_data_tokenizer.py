"""Vocabularies: lossless, deterministic, and no control token is ever born from text."""

import json

import numpy as np
import pytest
from data_kit import MARKERS, corpus, hf_tokenizer, sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from easylm_jax.data import load_tokenizer, train_sentencepiece
from easylm_jax.data.sentencepiece_model import USER_DEFINED, read_model
from models.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module", params=["sp", "hf"])
def tokenizer(request, folder):
    make = {"sp": lambda: sentencepiece(folder / "sp", symbols=MARKERS), "hf": lambda: hf_tokenizer(folder / "hf")}
    return load_tokenizer(make[request.param]())


def test_text_survives_encode_and_decode(tokenizer):
    for text in ["", "plain words", "  two  spaces\n\n\ttab ", "héllo wörld 日本 🎈", *corpus(5)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_literal_control_tokens_in_text_stay_text(tokenizer):
    for name in ["</s>", "<s>", "<pad>", "<|endoftext|>", "<|pad|>", *MARKERS]:
        text = f"say {name}{name} now"
        ids = tokenizer.encode(text)
        assert not set(ids) & tokenizer.special_ids, name
        assert tokenizer.decode(ids) == text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["</s>", "<|endoftext|>", "<|im_end|>", "a", " ", "\n", "é", "🎈", "<", ">"])))
def test_no_mixture_of_text_yields_a_control_token(tokenizer, parts):
    assert not set(tokenizer.encode("".join(parts))) & tokenizer.special_ids


def test_offsets_cover_the_text_in_characters(tokenizer):
    text = "a héllo\n\n日本 🎈 roofs"
    ((ids, starts, ends),) = tokenizer.encode_with_offsets([text])
    assert ids.tolist() == tokenizer.encode(text)
    covered = np.zeros(len(text), bool)
    for start, end in zip(starts, ends, strict=True):
        assert 0 <= start <= end <= len(text)
        covered[start:end] = True
    assert covered.all()


def test_pad_differs_from_both_ends_and_control_tokens_have_names(tokenizer):
    assert tokenizer.pad_id not in (tokenizer.eos_id, tokenizer.bos_id)
    assert tokenizer.special("eos") == tokenizer.eos_id
    assert tokenizer.token_text(tokenizer.special("<|im_end|>")) == "<|im_end|>"
    assert tokenizer.special("<|no_such|>") is None
    assert tokenizer.special("the") is None  # a word is no control token, even where it is a single piece
    assert max(tokenizer.encode("the fox")) < tokenizer.vocab_size


def test_hash_follows_the_content_not_the_path(folder):
    one = load_tokenizer(sentencepiece(folder / "a"))
    same = load_tokenizer(sentencepiece(folder / "b"))
    other = load_tokenizer(sentencepiece(folder / "c", vocab=430))
    assert one.hash == same.hash and one.spec != same.spec
    assert one.hash != other.hash


def test_hash_changes_with_the_end_token(folder):
    spec = hf_tokenizer(folder / "ends")
    before = load_tokenizer(spec)
    (folder / "ends" / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    after = load_tokenizer(spec)
    assert after.token_text(after.eos_id) == "<|im_end|>"
    assert before.hash != after.hash


def test_training_a_vocabulary_twice_gives_the_same_bytes(folder):
    paths = [train_sentencepiece(corpus(100), 380, folder / name) for name in ("x", "y")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_marker_like_user_defined_symbols_are_closed_to_text(folder):
    """A foreign SentencePiece model may hold markers as user-defined symbols, which text can match."""
    import io

    import sentencepiece as spm

    model = io.BytesIO()
    symbols = ["<|user|>", "<start_of_turn>", "<table>"]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(100)), model_writer=model, vocab_size=380, model_type="bpe", byte_fallback=True,
        user_defined_symbols=symbols, add_dummy_prefix=False, minloglevel=3, num_threads=1,
    )  # fmt: skip
    path = folder / "foreign.model"
    path.write_bytes(model.getvalue())
    tokenizer = load_tokenizer(f"sp:{path}")
    for name in symbols[:2]:
        assert tokenizer.special(name) is not None
        assert tokenizer.special(name) not in tokenizer.encode(f"a {name} b")
    assert tokenizer.special("<table>") is None  # ordinary text that the vocabulary has as one piece
    assert {piece.text: piece.kind for piece in read_model(model.getvalue()).pieces}["<table>"] == USER_DEFINED


def test_a_space_in_front_of_the_first_word_only_is_kept_to_the_first_word(folder):
    tokenizer = load_tokenizer(hf_tokenizer(folder / "metaspace", metaspace="first"))
    alone, after = tokenizer.encode_with_offsets(["fox", "fox"], continuation=[False, True])
    assert tokenizer._model.decode(alone[0].tolist()) == "fox"
    assert "".join(tokenizer.token_text(i) for i in alone[0]) == "▁fox"
    assert "".join(tokenizer.token_text(i) for i in after[0]) == "fox"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("sp:/nowhere/t.model", "no SentencePiece model at /nowhere/t.model"),
        ("hf:/nowhere/at/all/here", "neither a file, a folder nor a hub name"),
        ("hf:{tmp}", "holds neither tokenizer.json nor tokenizer.model"),
        ("sp:{tmp}/broken.model", "is not a SentencePiece model"),
        ("hf:{tmp}/broken.json", "is not a tokenizer.json"),
        ("hf:{tmp}/endless/tokenizer.json", "names no end token"),
    ],
)
def test_a_wrong_vocabulary_is_one_line(tmp_path, spec, message):
    (tmp_path / "broken.model").write_bytes(b"\x0a\xff not a model")
    (tmp_path / "broken.json").write_text('{"model": 3}')
    (tmp_path / "endless").mkdir()
    empty = {"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (tmp_path / "endless" / "tokenizer.json").write_text(json.dumps(empty))
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(spec.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


def test_too_many_pieces_for_the_texts_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot train 5000 pieces") as caught:
        train_sentencepiece(["a b c"], 5000, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
