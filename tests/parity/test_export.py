"""An exported run talks in `transformers` as it does here: the same prompts, the same greedy tokens, and it stops."""

import json

import data_kit
import jax
import numpy as np
import pytest

from easylm_jax.checkpoint.load import load
from easylm_jax.cli import main
from easylm_jax.config.chat_templates import TEMPLATES
from easylm_jax.data import load_tokenizer
from easylm_jax.data.templates import encode_prompt, end_tokens, render, tokenize
from easylm_jax.data.tokenizer_export import write_tokenizer
from easylm_jax.decode import generate
from easylm_jax.runtime.mesh import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

ANSWERS = {"the quick brown fox": "jumps over 12", "a lazy dog": "seven small cats watch", "warm roofs": "near"}
RECIPE = """
from easylm_jax.config import *

CHATS = (Source("{folder}/chats.jsonl"),)
MODEL = DecoderConfig("olmo2", layers=2, width=64, heads=4, ffn=128, vocab=320, context=64, qk_norm=True)
recipe = Recipe("tiny", stages=(
    Tokenizer("tokenizer", sources=CHATS, vocab_size=300),
    SFT("sft", model=MODEL, data=DataSpec(CHATS, "stage:tokenizer", 64, kind="chat", template="tulu", packing="none"),
        batch=8, steps=60, optimizer=OptimizerConfig("1e-2 constant"), checkpoints=Checkpoints(every=60)),
))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that learned three answers by heart, and its export."""
    folder = tmp_path_factory.mktemp("run")
    turns = [[data_kit.user(ask), data_kit.assistant(answer)] for ask, answer in ANSWERS.items()]
    data_kit.write_jsonl(folder / "chats.jsonl", [{"messages": messages} for messages in turns * 40])
    (folder / "recipe.py").write_text(RECIPE.replace("{folder}", str(folder)))
    assert main.main(["run", str(folder / "recipe.py"), "--out", str(folder / "runs")]) == 0
    assert main.main(["convert", str(folder / "runs/tiny/sft"), str(folder / "export")]) == 0
    return folder


def test_a_trained_chat_model_stops_at_its_end_token_with_our_greedy_tokens(trained):
    loaded = load(str(trained / "runs/tiny/sft"), mesh=make_mesh("fsdp=1", jax.devices()[:1]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "export")
    model = transformers.AutoModelForCausalLM.from_pretrained(trained / "export", dtype=torch.float32).eval()
    for ask, answer in ANSWERS.items():
        messages = [data_kit.user(ask)]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert prompt == encode_prompt("tulu", messages, loaded.tokenizer)
        with torch.no_grad():
            theirs = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
        ours = generate(
            loaded.decoder, loaded.params, [prompt], max_new_tokens=24, temperature=0,
            eos_ids=end_tokens("tulu", loaded.tokenizer),
        )  # fmt: skip
        assert theirs.tolist() == ours.tokens[0, : ours.lengths[0]].tolist()
        assert theirs[-1] == tokenizer.eos_token_id and len(theirs) < 24
        assert tokenizer.decode(theirs, skip_special_tokens=True) == answer


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece with a leading space", "tokenizer.json"])
def test_every_chat_template_gives_the_same_ids(tmp_path, kind):
    spec = (
        data_kit.hf_tokenizer(tmp_path / "ours")
        if kind == "tokenizer.json"
        else data_kit.sentencepiece(tmp_path / "ours", symbols=data_kit.MARKERS, dummy_prefix="leading" in kind)
    )
    ours = load_tokenizer(spec)
    chats = [
        *data_kit.conversations(4),
        [data_kit.user("  say\n'it' \\\\ 日本 "), data_kit.assistant("<think>so</think> it")],
    ]
    chats.append([*chats[-1], data_kit.user("again"), data_kit.assistant("no <think>")])
    compared = 0
    for name, template in TEMPLATES.items():
        if kind == "tokenizer.json" and any(
            part.name == "bos" and part.otherwise is None for part in tokens_of(template)
        ):
            continue  # this vocabulary has no BOS
        folder = tmp_path / name
        folder.mkdir()
        assert write_tokenizer(ours, folder, template=name, add_bos=False, context=64) is None
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        for messages in chats:
            if not {message["role"] for message in messages} <= template.turns.keys():
                continue  # the template has no system turn
            want = tokenize([render(name, messages)], ours)[0][0].tolist()
            assert theirs.apply_chat_template(messages, return_dict=True)["input_ids"] == want, (name, messages)
            want = encode_prompt(name, messages[:-1], ours)
            got = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
            assert got == want, (name, messages)
            compared += 1
    assert compared > 20


def tokens_of(template):
    parts = [*template.start, *template.generation, *(part for turn in template.turns.values() for part in turn)]
    return [part for part in parts if not isinstance(part, str)]


def test_plain_texts_have_the_same_ids_and_come_back(tmp_path):
    ours = load_tokenizer(data_kit.sentencepiece(tmp_path / "ours"))
    (tmp_path / "out").mkdir()
    write_tokenizer(ours, tmp_path / "out", template=None, add_bos=True, context=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in [*data_kit.corpus(200), "  spaces\n\n\tand 3.14 日本 🙂 "]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert theirs(text)["input_ids"] == [ours.bos_id, *ours.encode(text)]
        assert theirs.decode(np.array(ours.encode(text))) == text
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [ours.eos_id]
