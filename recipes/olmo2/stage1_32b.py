"""OLMo 2 32B, stage 1: pre-training on 6.06T tokens (arXiv 2501.00656, Tables 1 and 4)."""

from easylm_jax.config import Recipe
from recipes.olmo2.sizes import stage1, table_of_stage1

recipe = Recipe(
    "olmo2-32b",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # of the table
    pod="v5p-1024",  # 512 chips, 4 rows on each, in micro-batches of 1
    # By the plan (docs/plan.md) about a sixth less time than four at once with "full"; compiling takes longer.
    stages=(stage1("32b", accumulate=4, remat="dots", tile_kib=65536), table_of_stage1("32b")),
)
