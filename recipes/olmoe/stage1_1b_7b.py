"""OLMoE 1B-7B: pre-training on 5.03T tokens, then annealing on 100B (arXiv 2409.02060, Tables 2 and 10).

Numbers are from the paper's tables; the warm-up from 10 % of the peak, the repetition filter and the seeds are from the
released configuration (allenai/OLMoE, configs/OLMoE-1B-7B-0924.yml). The z-loss of the routers has the released
trainer's normalisation: it divides the weight of 0.001 by the 8 active experts.

Departs from the paper: the load of experts is balanced over the whole batch, not over the four rows of each device.
"""

import dataclasses

from easylm_jax.config import (
    Checkpoints,
    Compute,
    DataSpec,
    Entry,
    OptimizerConfig,
    Pretrain,
    Recipe,
)
from recipes import mixes
from recipes.olmoe import published
from recipes.tables import suite_table, while_training

stage1 = Pretrain(
    "stage1",
    model="olmoe-1b-7b",
    data=DataSpec(
        (mixes.source("olmoe_mix_0924"),),  # Table 2
        "hf:allenai/gpt-neox-olmo-dolma-v1_5",
        4096,
        packing="concat",
        document_mask=False,  # tokens attend across the documents of a row
        repetition_filter=True,  # 32 or more repeats of up to 13 tokens
        on_bad="skip",  # counted in the cache's manifest
    ),
    batch=1024,
    steps=1_200_000,  # 5.03T tokens, 1.3 epochs
    seed=6198,
    load_balancing=0.01,
    router_z=0.001,
    optimizer=OptimizerConfig(
        "4e-4 cosine to 10% warmup 2500 steps from 10% horizon 5T tokens",
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        decay_embeddings=True,
        clip=1.0,
    ),
    compute=Compute(dtype="bfloat16", remat="dots", tile_kib=65536),
    checkpoints=Checkpoints(every=250, history=5000),  # the interval of the released checkpoints
    benchmarks=while_training(5000, "perplexity"),  # Table 11, and the text of a held-out set
)

# Annealing: the same mix in another order, linearly to zero from where the cosine ended.
stage2 = dataclasses.replace(
    stage1,
    name="stage2",
    model=None,
    init="stage1",
    keep_moments=True,
    steps=23_842,  # 100B tokens
    seed=42,
    optimizer=dataclasses.replace(stage1.optimizer, lr="4e-5 linear to 0"),
)

table = suite_table(
    "OLMoE 1B-7B: base model", "olmes", (Entry("stage 1", ("stage1",)), Entry("stage 2", ("stage2",), over="stage 1")),
    published.TABLE_4,
)  # fmt: skip

recipe = Recipe(
    "olmoe-1b-7b", mesh="fsdp=-1", pod="v5p-256", stages=(stage1, stage2, table)
)  # 128 chips, 8 rows on each
