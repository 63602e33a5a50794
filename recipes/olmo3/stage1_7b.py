"""OLMo 3 7B, stage 1: pre-training on 5.93T tokens of Dolma 3 (arXiv 2512.13961, base model training).

Numbers: allenai/OLMo-core, src/scripts/official/OLMo3, OLMo-3-1025-7B-pretrain-1.py and -2.py.
"""

from easylm_jax.config import Checkpoints, Compute, DataSpec, Entry, OptimizerConfig, Pretrain, Recipe, Source
from recipes.tables import suite_table

recipe = Recipe(
    "olmo3-7b",
    mesh="fsdp=-1",
    pod="v5p-256",  # 128 chips, 4 rows on each, in micro-batches of 1
    stages=(
        Pretrain(
            "stage1",
            model="olmo3-7b-8k",
            data=DataSpec(
                (Source("hf:allenai/dolma3_mix-6T-1025-7B"),),  # the mix of the run, with its repetitions
                "hf:allenai/dolma2-tokenizer",
                8192,
                packing="concat",
                document_mask=False,  # tokens attend across the documents of a row
                on_bad="skip",  # counted in the cache's manifest
            ),
            batch=512,
            accumulate=4,
            steps=1_413_814,  # one epoch
            seed=34521,
            z_loss=1e-5,
            optimizer=OptimizerConfig(
                # Planned for 5T tokens. At update 597 046, half-way through this cosine, its second half was extended
                # to end at 7T.
                "3e-4 cosine to 10% warmup 2000 steps horizon 5T tokens half-cosine 7T tokens",
                b1=0.9,
                b2=0.95,
                eps=1e-8,
                weight_decay=0.1,
                decay_embeddings=False,
                clip=1.0,
                skip_step=True,  # instead of a filter of repeated n-grams
            ),
            # By the plan (docs/plan.md) a fifth less time than two rows with "attention"; compiling takes longer.
            compute=Compute(dtype="bfloat16", remat="dots", tile_kib=65536),
            checkpoints=Checkpoints(every=250, history=1000),
        ),
        # The paper's own suite is not here.
        suite_table("OLMo 3 7B: after stage 1", "olmes", (Entry("stage 1", ("stage1",)),), name="stage1-table"),
    ),
)
