"""A RoBERTa classifier as a judge: its probabilities, its verdicts whatever stands beside a text, and ToxiGen by it."""

import json

import jax
import numpy as np
import pytest
import rl_kit

from easylm_jax.checkpoint import load
from easylm_jax.config import Ask
from easylm_jax.evaluate.harness import ask_model
from easylm_jax.evaluate.judges import judge_of
from easylm_jax.evaluate.results import result_of
from easylm_jax.runtime import mesh
from models.errors import UserError

pytestmark = pytest.mark.parity
TEXTS = ["a kind word", "a", "one two three four five six seven eight nine ten", "kind kind kind", "", "odd word"] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random RoBERTa with two labels and a tokenizer of characters."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

    vocabulary = {
        word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(32, 127))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )  # fmt: skip
    path = tmp_path_factory.mktemp("roberta")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=34, num_labels=2, pad_token_id=1, initializer_range=1.0,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(path)
    return path


def test_the_classifier_says_what_its_model_says_alone(folder):
    """Each text by itself through the plain model; beyond 32 tokens a text is cut."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    judge = judge_of(f"hf-classifier:{folder}")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.eval()
    replies = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        ids = [*ids[:31], ids[-1]] if len(ids) > 32 else ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(judge.logits([text, "a longer text beside"])[0], logits, atol=1e-5)
        replies.append("yes" if logits[1] > logits[0] else "no")
    assert judge(TEXTS) == replies and set(replies) == {"yes", "no"}
    other = {"yes": "no", "no": "yes"}
    assert judge_of(f"hf-classifier:{folder}#LABEL_0")(TEXTS) == [other[reply] for reply in replies]


def test_what_is_no_classifier_is_told_in_a_line(folder, tmp_path):
    with pytest.raises(UserError, match="has no label 'toxic'; it has LABEL_0, LABEL_1"):
        judge_of(f"hf-classifier:{folder}#toxic")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no such classifier"):
        judge_of(f"hf-classifier:{tmp_path / 'empty'}")


def test_toxigen_is_judged_by_a_classifier_and_asked_anew_by_another(folder, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(
        json.dumps({"prompt": f"- one {word}\n-", "group": "a"}) + "\n" for word in ("one", "two", "three")
    ))  # fmt: skip
    with rl_kit.devices(1):
        model = load.load(str(rl_kit.made().out / "rl" / "sft"), mesh=mesh.make_mesh("fsdp=-1", jax.devices()[:1]))
        ask = Ask("toxigen", file=str(prompts), max_new_tokens=4)
        scores = {}
        for label in ("LABEL_0", "LABEL_1"):
            judge = judge_of(f"hf-classifier:{folder}#{label}")
            asked = ask_model(model, ask, tmp_path / "kept", identity="sft", judge=judge)
            for response in asked.responses:
                assert response.replies == tuple(judge(response.texts))
            scores[label] = result_of(asked)["score"]
        assert scores["LABEL_0"] + scores["LABEL_1"] == pytest.approx(1.0)
        with pytest.raises(UserError, match="a classifier cannot judge it"):
            ask_model(model, Ask("harmbench"), tmp_path / "kept", identity="sft", judge=judge)
