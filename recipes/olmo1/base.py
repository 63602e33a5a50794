"""Pre-training of the first OLMo (arXiv 2402.00838, Tables 1 and 5; allenai/OLMo, configs/official).

Dolma (arXiv 2402.00159) is published as files: download the version of a recipe to `data/dolma/<version>/`.
"""

from easylm_jax.config import Checkpoints, Compute, DataSpec, Entry, Evaluate, OptimizerConfig, Pretrain, Source
from recipes.tables import suite_table


def stage1(model: str, *, dolma: str, lr: str, steps: int, accumulate: int, remat: str) -> Pretrain:
    """Both sizes: 2048 rows of 2048 tokens, AdamW with eps 1e-5, no z-loss, data seed 6198."""
    return Pretrain(
        "stage1",
        model=model,
        data=DataSpec(
            (Source(f"data/dolma/{dolma}/*.json.gz"),),
            "hf:allenai/gpt-neox-olmo-dolma-v1_5",
            2048,
            packing="concat",
            document_mask=False,  # tokens attend across the documents of a row
            on_bad="skip",  # counted in the cache's manifest
        ),
        batch=2048,
        accumulate=accumulate,
        steps=steps,
        seed=6198,
        optimizer=OptimizerConfig(lr, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, decay_embeddings=False, clip=1.0),
        compute=Compute(dtype="bfloat16", remat=remat),
        checkpoints=Checkpoints(every=250, history=1000),
    )


def table(title: str) -> Evaluate:
    """The suite "olmes", which is younger than the paper: its numbers are of other prompts, so none stands beside."""
    return suite_table(title, "olmes", (Entry("stage 1", ("stage1",)),))
