"""OLMo 2's programme (arXiv 2501.00656, Section 4) on one CPU: stage 1, three anneals, their soup, all evaluated.

    easylm run recipes/olmo2/small.py
    EASYLM_DATA=/my/data easylm run recipes/olmo2/small.py

Stage 1 trains on web pages (C4 and Dolma samples), with a cosine that ends at 10 % of the peak. The anneals go on from
it with its moments, linearly to zero, on half web and half maths, in three data orders (Section 4.2); the soup is their
plain average (Section 4.5). The table has the held-out loss of each on web pages and on maths. Shapes of schedules are
the paper's; sizes and learning rates are this project's own.
"""

import dataclasses

from easylm_jax.config import (
    Average,
    DataSpec,
    DecoderConfig,
    Entry,
    HeldOut,
    Losses,
    MakeData,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Source,
    Tokenizer,
    Validation,
)  # fmt: skip
from recipes.olmo2.small_data import DATA

SEQUENCE = 256
VOCABULARY = 2048
SEEDS = (42, 42069, 666)  # the data orders of the 7B
PAGES = (Source(f"{DATA}/c4_sample/c4-train-*.parquet"), Source(f"{DATA}/dolma_sample/*.jsonl"))


def text(*sources: Source) -> DataSpec:
    return DataSpec(sources, "stage:tokenizer", SEQUENCE, document_mask=False)


web_test = text(Source(f"{DATA}/c4_sample/c4-validation-*.parquet"))
maths_test = text(Source("stage:data/maths-test.jsonl"))

stage1 = Pretrain(
    "stage1",
    model=DecoderConfig(
        family="olmo2", layers=4, width=128, heads=4, ffn=384, vocab=VOCABULARY, context=SEQUENCE, qk_norm=True,
        norm_eps=1e-6,
    ),
    data=text(*PAGES),
    validation=Validation(web_test, every=50),
    batch=16,
    steps=150,
    z_loss=1e-4,
    optimizer=OptimizerConfig("3e-3 cosine to 10% warmup 20 steps", decay_embeddings=False),
)  # fmt: skip


def anneal(seed: int) -> Pretrain:
    """Stage 2 on web pages and maths in equal parts; `seed` sets the data's order."""
    half = [dataclasses.replace(source, weight=0.25) for source in PAGES]
    return dataclasses.replace(
        stage1,
        name=f"stage2-seed{seed}",
        model=None,
        init="stage1",
        keep_moments=True,
        data=text(*half, Source("stage:data/maths.jsonl", 0.5)),
        validation=Validation(maths_test, every=25),
        steps=50,
        seed=seed,
        optimizer=dataclasses.replace(stage1.optimizer, lr="3e-4 linear to 0"),
    )


anneals = tuple(anneal(seed) for seed in SEEDS)
names = tuple(stage.name for stage in anneals)

recipe = Recipe(
    "olmo2-small",
    stages=(
        MakeData("data", function="recipes.olmo2.small_data:write"),
        Tokenizer("tokenizer", sources=(*PAGES, Source("stage:data/maths.jsonl")), vocab_size=VOCABULARY),
        stage1,
        *anneals,
        Average("soup", ingredients=names),
        Losses(
            "table",
            title="OLMo 2's programme at a small size: held-out loss",
            sets=(HeldOut("web", web_test), HeldOut("maths", maths_test)),
            entries=(
                Entry("stage 1", ("stage1",)),
                *(Entry(name, (name,), over="stage 1") for name in names),
                Entry("mean of the anneals", names),
                Entry("soup", ("soup",), over="mean of the anneals"),
            ),
        ),
    ),
)
