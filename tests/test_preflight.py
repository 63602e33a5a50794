"""Models that stages cannot use are refused before any work: another kind, another tokenizer, too short a context."""

import dataclasses
import json
from pathlib import Path

import pytest
from data_kit import hf_tokenizer, sentencepiece, write_jsonl

from easylm_jax.checkpoint.preflight import check_models
from easylm_jax.cli.main import main
from easylm_jax.config import (
    DPO,
    GRPO,
    PPO,
    SFT,
    BestOfN,
    DataSpec,
    DecoderConfig,
    Entry,
    Evaluate,
    JudgeModel,
    MajorityVote,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Reward,
    RewardModel,
    Sampling,
    Source,
    Task,
    Tokenizer,
)
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import load_tokenizer
from easylm_jax.data.tokenizer import differing_token
from models.errors import UserError

MODEL = DecoderConfig("olmo2", layers=1, width=16, heads=2, ffn=32, vocab=512, context=64)
RATE = OptimizerConfig(1e-3)
TRAINED = {"batch": 4, "steps": 1, "optimizer": RATE}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {"own": sentencepiece(folder / "own"), "other": sentencepiece(folder / "other", vocab=400)}


def data(tokenizer: str, kind: str = "chat", length: int = 32) -> DataSpec:
    return DataSpec((Source("x.jsonl"),), tokenizer, length, kind=kind, template=None if kind == "text" else "tulu",
                    packing="best_fit" if kind == "chat" else None)  # fmt: skip


def stages_on(tokenizer: str, **more):
    """Every kind of stage that has both a model and data, by name; their data use `tokenizer`, the models "base"."""
    prompts = data(tokenizer, "prompts", length=16)
    rollouts = {"init": "base", "data": prompts, "sampling": Sampling(8)}
    task = Task("task", prompts, "gsm8k", Sampling(8))
    return {
        "sft": SFT("sft", init="base", data=data(tokenizer), **TRAINED),
        "more": Pretrain("more", init="base", data=data(tokenizer, "text"), **TRAINED),
        "reward": RewardModel("reward", init="base", data=data(tokenizer, "preference"), **TRAINED),
        "dpo": DPO("dpo", init="base", data=data(tokenizer, "preference"), **TRAINED),
        "grpo": GRPO("grpo", reward=Reward(verifier="gsm8k"), samples=2, **rollouts, **TRAINED),
        "ppo": PPO("ppo", reward=Reward(model="scores"), **rollouts, **TRAINED),
        "best": BestOfN("best", reward=Reward(verifier="gsm8k"), **rollouts),
        "votes": MajorityVote("votes", check="gsm8k", **rollouts),
        "table": Evaluate("table", title="t", tasks=(task,), entries=(Entry("base", ("base",)),)),
    }


def recipe_of(tokenizers, *stages) -> Recipe:
    own = tokenizers["own"]
    base = Pretrain("base", model=MODEL, data=data(own, "text"), **TRAINED)
    scores = RewardModel("scores", init="base", data=data(own, "preference"), **TRAINED)
    return Recipe("r", (base, scores, *stages))


def check(tokenizers, folder: Path, *stages) -> None:
    recipe = recipe_of(tokenizers, *stages)
    check_models(recipe.stages, Workspace(recipe, folder))


def refused(tokenizers, folder: Path, *stages) -> str:
    with pytest.raises(UserError) as caught:
        check(tokenizers, folder, *stages)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NAMES = ("sft", "more", "reward", "dpo", "grpo", "ppo", "best", "votes", "table")


@pytest.mark.parametrize("name", NAMES)
def test_data_of_another_tokenizer_are_refused_in_every_stage(name, tokenizers, tmp_path):
    check(tokenizers, tmp_path, stages_on(tokenizers["own"])[name])
    line = refused(tokenizers, tmp_path, stages_on(tokenizers["other"])[name])
    field = "entries" if name == "table" else "init"
    assert line.startswith(f"stage {name}: {field} base was trained with another tokenizer than the one of the stage's")


def test_held_out_data_of_another_tokenizer_are_refused_too(tokenizers, tmp_path):
    from easylm_jax.config import Validation

    stage = stages_on(tokenizers["own"])["sft"]
    changed = dataclasses.replace(stage, validation=Validation(data(tokenizers["other"])))
    assert tokenizers["other"] in refused(tokenizers, tmp_path, changed)


def test_tokenizers_that_two_stages_will_train_are_known_by_their_stages(tokenizers, tmp_path):
    trained = [Tokenizer(name, sources=(Source("x.jsonl"),), vocab_size=300) for name in ("words", "pieces")]
    base = Pretrain("base", model=MODEL, data=data("stage:words", "text"), **TRAINED)
    for tokenizer, fits in (("stage:words", True), ("stage:pieces", False)):
        recipe = Recipe("r", (*trained, base, SFT("sft", init="base", data=data(tokenizer), **TRAINED)))
        if fits:
            check_models(recipe.stages, Workspace(recipe, tmp_path))
            continue
        with pytest.raises(UserError, match="stage sft: init base was trained with another tokenizer"):
            check_models(recipe.stages, Workspace(recipe, tmp_path))


def wrong_kinds(own: str):
    on = stages_on(own)
    prompts = {"init": "base", "data": data(own, "prompts", 16), "sampling": Sampling(8)}
    judge = Reward(verifier="judge", judge=JudgeModel(model="scores"))
    return {
        "sft": (dataclasses.replace(on["sft"], init="scores"), "init scores is a reward model"),
        "more": (dataclasses.replace(on["more"], init="scores"), "init scores is a reward model"),
        "dpo": (dataclasses.replace(on["dpo"], init="scores"), "init scores is a reward model"),
        "grpo": (dataclasses.replace(on["grpo"], init="scores"), "init scores is a reward model"),
        "reference": (dataclasses.replace(on["grpo"], reference="scores"), "reference scores is a reward model"),
        "ppo": (dataclasses.replace(on["ppo"], reward=Reward(model="base")), "reward.model base has no scalar head"),
        "best": (dataclasses.replace(on["best"], init="scores"), "init scores is a reward model"),
        "judged": (BestOfN("judged", reward=judge, **prompts), "reward.judge.model scores is a reward model"),
        "table": (
            dataclasses.replace(on["table"], entries=(Entry("m", ("base", "scores")),)),
            "entries scores is a reward model",
        ),
        "kl": (dataclasses.replace(on["table"], reference="scores"), "reference scores is a reward model"),
        "of-data": (dataclasses.replace(on["sft"], init="best"), "init best is a BestOfN stage, which leaves no model"),
    }


@pytest.mark.parametrize("name", list(wrong_kinds("sp:t")))
def test_a_model_of_the_wrong_kind_is_refused(name, tokenizers, tmp_path):
    stage, says = wrong_kinds(tokenizers["own"])[name]
    more = [stages_on(tokenizers["own"])["best"]] if name == "of-data" else []
    assert says in refused(tokenizers, tmp_path, *more, stage)


def test_rows_and_responses_longer_than_the_context_are_refused(tokenizers, tmp_path):
    own, on = tokenizers["own"], stages_on(tokenizers["own"])
    cases = {
        "data.sequence_length needs a context of 65": dataclasses.replace(on["sft"], data=data(own, length=65)),
        "data.sequence_length needs a context of 70": dataclasses.replace(on["dpo"], data=data(own, "preference", 140)),
        "sampling.max_new_tokens needs a context of 65": dataclasses.replace(on["grpo"], sampling=Sampling(64)),
    }
    for says, stage in cases.items():
        assert says in refused(tokenizers, tmp_path, stage)
    check(tokenizers, tmp_path, dataclasses.replace(on["dpo"], data=data(own, "preference", 128)))  # sides of 64


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizers, tmp_path):
    base = Pretrain(
        "small", model=MODEL.replace(vocab=300, vocab_used=300), data=data(tokenizers["own"], "text"), **TRAINED
    )
    assert "stage small: model: the tokenizer has 420 tokens, the model only 300" in refused(tokenizers, tmp_path, base)


def test_a_chat_model_may_rename_control_tokens_and_add_some(tmp_path):
    base = load_tokenizer(hf_tokenizer(tmp_path / "base"))
    hf_tokenizer(tmp_path / "chat")
    path = tmp_path / "chat" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][1]["content"] = "<|assistant_end|>"
    last = max(token["id"] for token in content["added_tokens"])
    more = {**content["added_tokens"][1], "id": last + 1, "content": "<|one_more|>"}
    vocabulary = content["model"]["vocab"]
    vocabulary["<|assistant_end|>"] = vocabulary.pop("<|pad|>")
    path.write_text(json.dumps({**content, "added_tokens": [*content["added_tokens"], more]}))
    (tmp_path / "chat" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    chat = load_tokenizer(f"hf:{tmp_path / 'chat'}")
    assert base.hash != chat.hash and differing_token(base, chat) is None
    other = load_tokenizer(sentencepiece(tmp_path / "other"))
    assert "in one and" in str(differing_token(base, other))


def test_a_recipe_is_refused_before_its_first_stage_runs(tokenizers, tmp_path, capsys):
    write_jsonl(tmp_path / "x.jsonl", [{"text": "x"}])
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"""\
from easylm_jax.config import *
model = DecoderConfig("olmo2", layers=1, width=16, heads=2, ffn=32, vocab=512, context=64)
how = dict(batch=1, steps=1, optimizer=OptimizerConfig(1e-3))
text = DataSpec((Source("{tmp_path}/x.jsonl"),), "{tokenizers["own"]}", 8)
chat = DataSpec((Source("{tmp_path}/x.jsonl"),), "{tokenizers["other"]}", 8, kind="chat", template="tulu")
recipe = Recipe("r", (Pretrain("pre", model=model, data=text, **how), SFT("sft", init="pre", data=chat, **how)))
""")
    assert main(["run", str(recipe), "--out", str(tmp_path / "runs")]) == 2
    assert "stage sft: init pre was trained with another tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "r").exists() and not list(tmp_path.glob("runs/cache/*/manifest.json"))
