"""The whole way at a size for one CPU: make data, train a vocabulary, pre-train a small OLMo 2, fine-tune it.

    make quickstart                     # or: easylm run recipes/quickstart.py

No network, no download: the tasks are arithmetic and small instructions (`recipes/arithmetic.py`). Sizes and rates are
this project's own, chosen so that every stage visibly learns within minutes; the schedules have the papers' shapes.
"""

from easylm_jax.config import (
    SFT,
    Checkpoints,
    DataSpec,
    DecoderConfig,
    MakeData,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Source,
    Tokenizer,
    Validation,
)  # fmt: skip

SEQUENCE = 256

# The block of OLMo 2 (arXiv 2501.00656, §2) at 4 layers: 4.5 million parameters.
MODEL = DecoderConfig(
    family="olmo2", layers=4, width=256, heads=4, ffn=1024, vocab=512, context=SEQUENCE, qk_norm=True
)  # fmt: skip


def pages(name: str) -> DataSpec:
    return DataSpec((Source(f"stage:data/{name}"),), "stage:tokenizer", SEQUENCE)


def conversations(name: str) -> DataSpec:
    return DataSpec(
        (Source(f"stage:data/{name}"),), "stage:tokenizer", SEQUENCE, kind="chat", template="tulu", packing="best_fit"
    )


recipe = Recipe(
    "quickstart",
    stages=(
        MakeData("data", function="recipes.arithmetic:write", seed=1),
        Tokenizer("tokenizer", sources=(Source("stage:data/pretrain.jsonl", limit=2_000),), vocab_size=512),
        Pretrain(
            "pretrain",
            model=MODEL,
            data=pages("pretrain.jsonl"),
            validation=Validation(pages("pretrain_held_out.jsonl"), every=100),
            batch=16,
            steps=400,
            z_loss=1e-4,  # OLMo 2 §3.3.3
            optimizer=OptimizerConfig("2e-3 cosine to 10% warmup 20 steps"),
            checkpoints=Checkpoints(keep_every=100),
        ),
        SFT(
            "sft",
            init="pretrain",
            data=conversations("sft.jsonl"),
            validation=Validation(conversations("sft_held_out.jsonl")),
            batch=16,
            epochs=2,
            # Tülu 2 and 3: linear to 0 after 3 % warm-up, no decay.
            optimizer=OptimizerConfig("1e-3 linear to 0 warmup 3%", b2=0.999, weight_decay=0.0),
        ),
    ),
)
