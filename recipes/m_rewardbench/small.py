"""M-RewardBench (arXiv 2410.15522) on one CPU: a reward model, a DPO pair and a judge, trained on five languages

    easylm run recipes/m_rewardbench/small.py
    python -m recipes.m_rewardbench.fixtures runs/fixtures --rows 23
    easylm eval runs/m-rewardbench-small/rm --suite m_rewardbench --data runs/fixtures
    easylm eval runs/m-rewardbench-small/dpo --suite m_rewardbench --data runs/fixtures --reference \
        runs/m-rewardbench-small/pretrain
    easylm eval runs/m-rewardbench-small/judge --suite m_rewardbench --data runs/fixtures
    python -m recipes.m_rewardbench.figures runs/eval-m_rewardbench-* --out m_rewardbench.html

The three kinds of judge that the paper compares, on sets of this project's own (`recipes/m_rewardbench/fixtures.py`).
`untrained` is the reward model after one step at a rate of nearly zero: chance in Chat and Safety. Sizes and learning
rates are this project's own.
"""

from easylm_jax.config import (
    DPO,
    SFT,
    DataSpec,
    DecoderConfig,
    MakeData,
    OptimizerConfig,
    Pretrain,
    Recipe,
    RewardModel,
    Source,
    Tokenizer,
)

SEQUENCE = 512
CONTEXT = 2048  # a question to the judge holds a prompt and two answers, and half of the context is for its reply
MODEL = DecoderConfig(
    "olmo2", layers=2, width=96, heads=4, ffn=256, vocab=4096, context=CONTEXT, qk_norm=True, tie_embeddings=True
)


def pairs(**part: int) -> DataSpec:
    source = Source("stage:data/pairs.jsonl", **part)
    return DataSpec((source,), "stage:tokenizer", 2 * SEQUENCE, kind="preference", template="tulu",
                    max_side_length=SEQUENCE)  # fmt: skip


def tuned(lr: str) -> OptimizerConfig:
    return OptimizerConfig(lr, weight_decay=0.0)


recipe = Recipe(
    "m-rewardbench-small",
    stages=(
        MakeData("data", function="recipes.m_rewardbench.small_data:write", seed=1),
        Tokenizer("tokenizer", sources=(Source("stage:data/vocabulary.jsonl"),), vocab_size=4096),
        Pretrain(
            "pretrain", model=MODEL, data=DataSpec((Source("stage:data/pages.jsonl"),), "stage:tokenizer", SEQUENCE),
            batch=8, steps=80, optimizer=OptimizerConfig("3e-3 cosine to 10% warmup 10 steps"),
        ),
        RewardModel("untrained", init="pretrain", data=pairs(limit=8), batch=1, steps=1, optimizer=tuned("1e-9")),
        RewardModel("rm", init="pretrain", data=pairs(), batch=4, epochs=1,
                    optimizer=tuned("1e-3 linear to 0 warmup 3%")),
        DPO("dpo", init="pretrain", data=pairs(limit=300), batch=4, epochs=1, beta=0.1,
            optimizer=tuned("3e-4 linear to 0 warmup 10%")),
        SFT(
            "judge", init="pretrain", batch=1, epochs=1,
            data=DataSpec((Source("stage:data/judgements.jsonl"),), "stage:tokenizer", 2 * SEQUENCE, kind="chat",
                          template="tulu", packing="best_fit", overlong="drop"),
            optimizer=tuned("2e-3 linear to 0 warmup 3%"),
        ),
    ),
)  # fmt: skip
