"""template="tokenizer": the tokenizer's own chat template, rendered in a sandbox, with its trained parts."""

import json

import numpy as np
import pytest

from easylm_jax.config import DataSpec, Source
from easylm_jax.config.chat_templates import TEMPLATES
from easylm_jax.data import load_tokenizer, templates, tokenizer_template, train_sentencepiece
from easylm_jax.data.build import build_cache
from easylm_jax.data.jinja_template import to_jinja
from easylm_jax.data.tokenizer_export import write_tokenizer
from models.errors import UserError

pytest.importorskip("jinja2")

SYMBOLS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CONVERSATION = [
    {"role": "user", "content": "one two <|im_end|> three "},
    {"role": "assistant", "content": "four five"},
    {"role": "user", "content": "six"},
    {"role": "assistant", "content": "seven one"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face tokenizer with the control tokens of several templates."""
    home = tmp_path_factory.mktemp("tokenizer")
    texts = ["one two three four five six seven user assistant system <|user|>\n<|assistant|>\n"] * 60
    train_sentencepiece(iter(texts), 320, home, symbols=SYMBOLS)
    out = home / "hf"
    out.mkdir()
    write_tokenizer(load_tokenizer(f"sp:{home / 'tokenizer.model'}"), out, template=None, add_bos=False, context=512)
    return out


def with_template(folder, tmp_path, source):
    """The tokenizer with this chat template beside it."""
    copy = tmp_path / "carried"
    copy.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "chat_template.jinja").write_text(source, encoding="utf-8")
    tokenizer_template.tokenizer_template.cache_clear()
    return load_tokenizer(f"hf:{copy}")


def tokens(template, tokenizer, train_on="assistant"):
    ids, trained = templates.tokenize([templates.render(template, CONVERSATION, train_on=train_on)], tokenizer)[0]
    return ids.tolist(), trained.tolist()


@pytest.mark.parametrize("name", ["tulu", "chatml", "llama3", "qwen"])
@pytest.mark.parametrize("train_on", ["assistant", "last_assistant", "all"])
def test_an_exported_template_gives_the_tokens_and_trained_parts_of_the_named_one(name, train_on, folder, tmp_path):
    plain = load_tokenizer(f"hf:{folder}")
    tokenizer = with_template(folder, tmp_path, to_jinja(name, plain))
    carried = tokenizer_template.tokenizer_template(tokenizer)
    assert tokens(carried, tokenizer, train_on) == tokens(TEMPLATES[name], plain, train_on)
    asked = CONVERSATION[:3]
    assert templates.encode_prompt("tokenizer", asked, tokenizer) == templates.encode_prompt(name, asked, plain)
    assert templates.end_tokens("tokenizer", tokenizer) == templates.end_tokens(name, plain)


def test_a_generation_block_says_what_is_trained(folder, tmp_path):
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}"
        "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = with_template(folder, tmp_path, source)
    pieces = templates.render(tokenizer_template.tokenizer_template(tokenizer), CONVERSATION)
    assert [piece.text for piece in pieces if piece.trained] == ["four five", "seven one"]
    last = templates.render(
        tokenizer_template.tokenizer_template(tokenizer), CONVERSATION, train_on="last_assistant"
    )  # fmt: skip
    assert [piece.text for piece in last if piece.trained] == ["seven one"]


def test_data_are_built_with_the_template_and_their_key_holds_its_text(folder, tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": CONVERSATION}) + "\n")
    keys = []
    for name in ("chatml", "tulu"):
        tokenizer = with_template(folder, tmp_path, to_jinja(name, load_tokenizer(f"hf:{folder}")))
        tokenizer_template.of_spec.cache_clear()
        spec = DataSpec((Source(str(file)),), tokenizer.spec, 128, kind="chat", template="tokenizer")
        cache = build_cache(spec, tmp_path / "cache")
        ids = cache.read(np.arange(1))["tokens"][0].tolist()
        expected, _ = tokens(TEMPLATES[name], load_tokenizer(f"hf:{folder}"))
        assert ids[: len(expected) - 1] == expected[:-1]
        keys.append(cache.fingerprint)
    assert keys[0] != keys[1]


@pytest.mark.parametrize("source, message", [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "does not end"),
    ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}", "does not end"),
    ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "does not end"),
    ("{{ 'x' * 100000000 }}", "repeats more than"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages[7].content.foo.bar }}", "no element 7"),
    ("{% for", "not valid"),
])  # fmt: skip
def test_a_template_that_raises_or_loops_is_one_line(source, message, folder, tmp_path):
    tokenizer = with_template(folder, tmp_path, source)
    with pytest.raises(UserError, match="chat template of hf:.*") as told:
        templates.encode_prompt("tokenizer", CONVERSATION[:1], tokenizer)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_template_without_known_trained_parts_and_a_tokenizer_without_one_are_told(folder, tmp_path):
    backwards = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    tokenizer = with_template(folder, tmp_path, backwards)
    with pytest.raises(UserError, match="mark it with {% generation %}"):
        templates.render(tokenizer_template.tokenizer_template(tokenizer), CONVERSATION)
    with pytest.raises(UserError, match="carries no chat template"):
        templates.encode_prompt("tokenizer", CONVERSATION[:1], load_tokenizer(f"hf:{folder}"))
