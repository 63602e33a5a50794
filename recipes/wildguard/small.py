"""WildGuard (arXiv 2406.18495) on one CPU: a moderator of public labels, beside a majority and TF-IDF

    easylm run recipes/wildguard/small.py
    EASYLM_DATA=/my/data easylm run recipes/wildguard/small.py

A small OLMo 2 is pre-trained on the training texts, then trained on the answers of a moderator. It is tested on prompts
of ToxicChat, responses of JailbreakBench, and refusals among the completions of a model that training has not seen.
Sizes and learning rates are this project's own, for about five minutes of one core. The paper's moderator has 7B
parameters and 86,759 rows; this one 0.6M and about 7,000, so F1 shows the path and not the paper's numbers
(docs/moderation.md has the table, in which no task is ahead of TF-IDF by two standard errors).
"""

from easylm_jax.config import (
    SFT,
    DataSpec,
    DecoderConfig,
    MakeData,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Source,
    Tokenizer,
)
from easylm_jax.config.moderation import ModerationSet, ModerationTable
from recipes.wildguard.small_data import DATA

SEQUENCE = 512
VOCABULARY = 2048
PAGES = (Source("stage:data/pages.jsonl"),)
TRAIN = (Source("stage:data/train.jsonl"),)
MODEL = DecoderConfig(
    "olmo2", layers=2, width=128, heads=4, ffn=256, vocab=VOCABULARY, context=SEQUENCE, qk_norm=True,
    tie_embeddings=True,
)  # fmt: skip

recipe = Recipe(
    "wildguard-small",
    stages=(
        MakeData("data", function="recipes.wildguard.small_data:write", seed=1),
        Tokenizer("tokenizer", sources=TRAIN, vocab_size=VOCABULARY),
        Pretrain(
            "pretrain", model=MODEL, data=DataSpec(PAGES, "stage:tokenizer", SEQUENCE), batch=8, epochs=1,
            optimizer=OptimizerConfig("3e-3 cosine to 10% warmup 10 steps"),
        ),
        SFT(
            "moderator", init="pretrain", batch=8, epochs=2, dropout=0.1,
            data=DataSpec(
                TRAIN, "stage:tokenizer", SEQUENCE, kind="chat", template="plain", train_on="last_assistant",
                packing="best_fit", overlong="drop",
            ),
            optimizer=OptimizerConfig("1e-3 linear to 0 warmup 3%", weight_decay=0.0),
        ),
        ModerationTable(
            "table", title="Small moderator beside baselines", moderators=("moderator",), compare=500,
            baselines=(Source("stage:data/rows.jsonl"),),
            sets=(
                ModerationSet("toxic_chat", f"{DATA}/non_commercial/toxic_chat/toxic_chat_human.jsonl.gz"),
                ModerationSet("jailbreakbench", f"{DATA}/moderation/jailbreakbench/artifacts_pair_jbc.jsonl.gz"),
                ModerationSet("xstest_completions", f"{DATA}/xstest/xstest_v2_completions_gpt4.csv"),
            ),
        ),
    ),
)  # fmt: skip
