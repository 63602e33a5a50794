"""A small OLMoE beside the dense model of equal active size, on the same tokens (arXiv 2409.02060, Sections 3 and 4.1).

    easylm run recipes/olmoe/small.py
    EASYLM_DATA=/my/data easylm run recipes/olmoe/small.py

Both train on web pages (C4 and Dolma samples, the C4 text of OLMoE's routing analyses) with the same schedule, data
order and number of updates. The mixture has 16 experts of which 4 are active; a dense feed-forward layer is as wide as
these 4 together. What an expert adds is multiplied by its probability, about 1/16 at first, while AdamW's updates have
the same size for all: so that 300 updates suffice, the experts have four times the learning rate of the rest, which
departs from the paper. The rate of the rest is the dense model's best of 0.7, 1, 1.5 and 3 · 10⁻³. Then the dense model
is upcycled to such a mixture (Section 4.1, "Sparse upcycling") and trained for half as long again, beside the dense
model trained on. The table has their held-out losses. `expert_load_max` and `expert_load_min` in `metrics.jsonl` say
how evenly experts are used. Sizes and learning rates are this project's own.
"""

import dataclasses

from easylm_jax.config import (
    Checkpoints,
    DataSpec,
    Entry,
    HeldOut,
    Losses,
    OptimizerConfig,
    ParameterGroup,
    Pretrain,
    Recipe,
    Source,
    Tokenizer,
    Upcycle,
    Validation,
)  # fmt: skip
from models.config import DecoderConfig, Experts
from models.families.olmoe import ARCHITECTURE
from recipes.olmo2.small_data import DATA

SEQUENCE = 256
VOCABULARY = 2048
EXPERTS, ACTIVE, HIDDEN = 16, 4, 96
C4_PAGES = f"{DATA}/routing/routing_text/c4_texts.txt.gz"
TRAIN = (
    Source(f"{DATA}/c4_sample/c4-train-*.parquet"),
    Source(f"{DATA}/dolma_sample/*.jsonl"),
    Source(C4_PAGES, text_unit="line", limit=6500),
)
TEST = (Source(f"{DATA}/c4_sample/c4-validation-*.parquet"), Source(C4_PAGES, text_unit="line", skip=6500))
MIXTURE = DecoderConfig(
    "olmoe", layers=4, width=128, heads=4, ffn=HIDDEN, vocab=VOCABULARY, context=SEQUENCE, norm_eps=1e-5,
    experts=Experts(EXPERTS, ACTIVE), **ARCHITECTURE,
)  # fmt: skip


def optimizer(lr: str, experts: str | None = None) -> OptimizerConfig:
    groups = () if experts is None else (ParameterGroup("experts", ("moe.gate", "moe.up", "moe.down"), lr=experts),)
    return OptimizerConfig(lr, b2=0.95, weight_decay=0.1, groups=groups)


def text(sources: tuple[Source, ...]) -> DataSpec:
    return DataSpec(sources, "stage:tokenizer", SEQUENCE, document_mask=False)


moe = Pretrain(
    "moe",
    model=MIXTURE,
    data=text(TRAIN),
    validation=Validation(text(TEST), every=100),
    batch=16,
    steps=300,
    load_balancing=0.01,
    router_z=0.001,
    optimizer=optimizer("1.5e-3 cosine to 10% warmup 20 steps", experts="6e-3 cosine to 10% warmup 20 steps"),
    checkpoints=Checkpoints(history=100),  # for the routing analyses
)
dense = dataclasses.replace(
    moe,
    name="dense",
    model=MIXTURE.replace(experts=None, ffn=ACTIVE * HIDDEN),
    load_balancing=None,
    router_z=None,
    optimizer=optimizer("1.5e-3 cosine to 10% warmup 20 steps"),
)
longer = dataclasses.replace(
    dense,
    name="dense-longer",
    model=None,
    init="dense",
    steps=150,
    seed=1,
    optimizer=optimizer("1e-3 linear to 0 warmup 10 steps"),
)

recipe = Recipe(
    "olmoe-small",
    stages=(
        Tokenizer("tokenizer", sources=TRAIN, vocab_size=VOCABULARY),
        moe,
        dense,
        Upcycle("upcycled", init="dense", experts=EXPERTS, active=ACTIVE, keep_scale=True),
        longer,
        dataclasses.replace(longer, name="upcycled-longer", init="upcycled", load_balancing=0.01, router_z=0.001),
        Losses(
            "table",
            title="OLMoE beside a dense model of equal active size: held-out loss",
            sets=(HeldOut("C4", text(TEST)),),
            entries=(
                Entry("dense", ("dense",)),
                Entry("OLMoE", ("moe",), over="dense"),
                Entry("dense, longer", ("dense-longer",), over="dense"),
                Entry("upcycled, longer", ("upcycled-longer",), over="dense, longer"),
            ),
        ),
    ),
)
