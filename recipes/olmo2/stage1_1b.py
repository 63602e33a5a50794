"""OLMo 2 1B, stage 1: pre-training on 4.00T tokens (arXiv 2501.00656, Tables 1 and 4).

Departs from the paper: z-loss is 1e-4, as in the run, not the 1e-5 of Table 1.
"""

from easylm_jax.config import Recipe
from recipes.olmo2.sizes import stage1, table_of_stage1

recipe = Recipe(
    "olmo2-1b",
    mesh="fsdp=-1",
    pod="v5p-128",  # 64 chips, 8 rows on each
    stages=(stage1("1b", accumulate=1, remat="attention"), table_of_stage1("1b")),
)
