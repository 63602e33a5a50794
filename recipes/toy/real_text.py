"""A small OLMo 2 (arXiv 2501.00656) on real text: C4 and Dolma web pages, then GSM8K as conversations.

    easylm run recipes/toy/real_text.py
    EASYLM_DATA=/my/data easylm run recipes/toy/real_text.py

`EASYLM_DATA` is a folder with `c4_sample/*.parquet`, `dolma_sample/*.jsonl` and `gsm8k/{train,test}.jsonl`; the default
is `../shared/data`. Sizes and learning rates are this project's own; the shapes of schedules are the papers'.
"""

import os

from easylm_jax.config import (
    SFT,
    Checkpoints,
    DataSpec,
    DecoderConfig,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Source,
    Tokenizer,
    Validation,
)  # fmt: skip

DATA = os.environ.get("EASYLM_DATA", "../shared/data")
SEQUENCE = 512
PAGES = (Source(f"{DATA}/c4_sample/c4-train-*.parquet"), Source(f"{DATA}/dolma_sample/*.jsonl"))
HELD_OUT_PAGES = (Source(f"{DATA}/c4_sample/c4-validation-*.parquet"),)


def gsm8k(split: str, **part) -> Source:
    return Source(f"{DATA}/gsm8k/{split}.jsonl", fields={"user": "question", "assistant": "answer"}, **part)


def pages(sources: tuple[Source, ...]) -> DataSpec:
    return DataSpec(sources, "stage:tokenizer", SEQUENCE)


def conversations(source: Source) -> DataSpec:
    return DataSpec((source,), "stage:tokenizer", SEQUENCE, kind="chat", template="tulu", packing="best_fit")


recipe = Recipe(
    "real-text",
    stages=(
        Tokenizer("tokenizer", sources=(*PAGES, gsm8k("train")), vocab_size=4096),
        Pretrain(
            "pretrain",
            model=DecoderConfig(
                family="olmo2", layers=4, width=256, heads=4, ffn=1024, vocab=4096, context=SEQUENCE, qk_norm=True
            ),
            data=pages(PAGES),
            validation=Validation(pages(HELD_OUT_PAGES), every=50),
            batch=8,
            steps=200,
            z_loss=1e-4,  # OLMo 2 §3.3.3
            optimizer=OptimizerConfig("2e-3 cosine to 10% warmup 20 steps"),
            checkpoints=Checkpoints(keep_every=100),
        ),
        SFT(
            "sft",
            init="pretrain",
            data=conversations(gsm8k("train")),
            validation=Validation(conversations(gsm8k("test"))),
            batch=8,
            epochs=1,
            # Tülu 2 and 3: linear to 0 after 3 % warm-up, no weight decay.
            optimizer=OptimizerConfig("1e-3 linear to 0 warmup 3%", b2=0.999, weight_decay=0.0),
        ),
    ),
)
