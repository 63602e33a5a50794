"""OLMo 1B: pre-training on 3.1T tokens of Dolma 1.5 (arXiv 2402.00838, Table 1)."""

from easylm_jax.config import Recipe
from recipes.olmo1.base import stage1, table

recipe = Recipe(
    "olmo1-1b",
    mesh="fsdp=-1",
    pod="v5p-128",  # 64 chips, 32 rows on each, in micro-batches of 16
    stages=(
        stage1(
            "olmo-1b",
            dolma="v1_5",
            lr="4e-4 cosine to 10% warmup 2000 steps from 10%",
            steps=739_328,
            accumulate=2,
            remat="attention",
        ),
        table("OLMo 1B: base model"),
    ),
)
