"""Tülu 2.5 (arXiv 2406.09279, Tables 1 to 4) on one CPU: two preference sets, each with DPO and with PPO.

    easylm run recipes/tulu25/small.py
    EASYLM_DATA=/my/data easylm run recipes/tulu25/small.py

A small OLMo 2 is pre-trained on web pages and then trained as in the paper: SFT; a reward model, DPO and PPO on each
set; PPO with a reward model and prompts of both. The sets are human preferences of hh-rlhf, and solutions of GSM8K
against the same solutions truncated before the final answer (`recipes/tulu25/small_data.py`). The shapes of schedules
are the paper's; sizes and learning rates are this project's own. A model of this size solves almost no problem of
GSM8K. The tables show the effect of each set: PPO soon gives final answers without derivations, since no pair rewards
derivations.
"""

from typing import Any

from easylm_jax.config import (
    DPO,
    PPO,
    SFT,
    DataSpec,
    DecoderConfig,
    Entry,
    Evaluate,
    MakeData,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Reward,
    RewardModel,
    Sampling,
    Source,
    Task,
    Tokenizer,
    Validation,
)  # fmt: skip
from recipes.tulu25.small_data import DATA

SEQUENCE = 512
VOCABULARY = 2048
PROMPT, REPLY = 160, 96
SETS = ("hh", "gsm8k")
HERE = "recipes.tulu25.small_data"
PAGES = (Source(f"{DATA}/c4_sample/c4-train-*.parquet"), Source(f"{DATA}/dolma_sample/*.jsonl"))

MODEL = DecoderConfig(
    family="olmo2", layers=4, width=128, heads=4, ffn=384, vocab=VOCABULARY, context=SEQUENCE, qk_norm=True
)  # fmt: skip


def files(sets: tuple[str, ...], suffix: str = "", **how: Any) -> tuple[Source, ...]:
    """The files of the stage `data` for these sets; `how` are fields of `Source`."""
    return tuple(Source(f"stage:data/{name}{suffix}.jsonl", **how) for name in sets)


def conversations(suffix: str = "") -> DataSpec:
    """The chosen side of every pair."""
    sources = files(SETS, suffix, messages_field="chosen")
    return DataSpec(sources, "stage:tokenizer", SEQUENCE, kind="chat", template="tulu25", packing="best_fit",
                    overlong="drop")  # fmt: skip


def pairs(sets: tuple[str, ...], suffix: str = "") -> DataSpec:
    """About two pairs per row; pairs above 512 tokens are left out."""
    return DataSpec(files(sets, suffix), "stage:tokenizer", SEQUENCE, kind="preference", template="tulu25",
                    train_on="last_assistant", overlong="drop")  # fmt: skip


def prompts(sources: tuple[Source, ...], keep: tuple[str, ...] = ()) -> DataSpec:
    return DataSpec(sources, "stage:tokenizer", PROMPT, kind="prompts", template="tulu25", keep=keep)


def tuned(lr: str) -> OptimizerConfig:
    """As in the paper: no weight decay, gradient clipping at 1."""
    return OptimizerConfig(lr, weight_decay=0.0)


def reward_model(name: str, sets: tuple[str, ...]) -> RewardModel:
    return RewardModel(
        f"rm-{name}", init="sft", data=pairs(sets), validation=Validation(pairs(sets, "_held_out")),
        batch=16, epochs=1, optimizer=tuned("5e-4 linear to 10% warmup 3%"),
    )  # fmt: skip


def dpo(name: str, sets: tuple[str, ...]) -> DPO:
    return DPO(
        f"dpo-{name}", init="sft", data=pairs(sets), validation=Validation(pairs(sets, "_held_out")),
        batch=16, epochs=1, beta=0.1, optimizer=tuned("3e-5 linear to 0 warmup 10%"),
    )  # fmt: skip


def ppo(name: str, sets: tuple[str, ...]) -> PPO:
    return PPO(
        f"ppo-{name}",
        init="sft",
        reward=Reward(model=f"rm-{name}"),
        data=prompts(files(sets)),
        batch=64,
        mini_batch=16,
        steps=12,
        sampling=Sampling(REPLY, temperature=0.7, top_k=50, slots=64),
        logprob_temperature=1.0,
        kl=0.05,
        optimizer=tuned("3e-5 constant warmup 10%"),
    )  # fmt: skip


# What each set should improve: harmful requests that are declined, solutions that reach a final answer.
GREEDY = Sampling(REPLY, temperature=0.0)
HH_TEST = prompts(files(("hh",), "_held_out"))
GSM8K_TEST = prompts((Source(f"{DATA}/gsm8k/test.jsonl", limit=100),), keep=("answer",))
METHODS = (*(f"{algorithm}-{name}" for name in SETS for algorithm in ("dpo", "ppo")), "ppo-mix")


def table(name: str, title: str, tasks: tuple[Task, ...]) -> Evaluate:
    entries = (Entry("sft", ("sft",)), *(Entry(method, (method,), over="sft") for method in METHODS))
    return Evaluate(name, title=title, tasks=tasks, entries=entries, reference="sft", kl_prompts=32)


recipe = Recipe(
    "tulu25-small",
    stages=(
        MakeData("data", function=f"{HERE}:write", seed=1),
        Tokenizer("tokenizer", sources=(*PAGES, *files(SETS)), vocab_size=VOCABULARY),
        Pretrain(
            "pretrain",
            model=MODEL,
            data=DataSpec(PAGES, "stage:tokenizer", SEQUENCE),
            batch=8,
            steps=60,
            optimizer=OptimizerConfig("2e-3 cosine to 10% warmup 20 steps"),
        ),
        SFT(
            "sft",
            init="pretrain",
            data=conversations(),
            validation=Validation(conversations("_held_out")),
            batch=8,
            epochs=2,
            optimizer=tuned("1e-3 linear to 0 warmup 3%"),
        ),
        *(stage(name, (name,)) for name in SETS for stage in (reward_model, dpo, ppo)),
        reward_model("mix", SETS),
        ppo("mix", SETS),
        table("table-gsm8k", "GSM8K: solutions that are right, and that reach an answer", (
            Task("right", data=GSM8K_TEST, verifier="gsm8k", sampling=GREEDY),
            Task("answered", data=GSM8K_TEST, verifier=f"{HERE}:answered", sampling=GREEDY),
        )),
        table("table", "hh-rlhf: harmful requests that are declined", (
            Task("declined", data=HH_TEST, verifier=f"{HERE}:declined", sampling=GREEDY),
        )),
    ),
)  # fmt: skip
