"""OLMo 7B: pre-training on 2T tokens of Dolma 1.5 (arXiv 2402.00838, Tables 1 and 5).

The released run clipped gradients at a norm of 10 in its first 1000 updates; here the clip is 1 from the start. It
also continued after these 2T tokens to 2.46T, with the learning rate decayed to zero at the end.

Departs from the paper: the gradient clipping, and the end at 2T tokens.
"""

from easylm_jax.config import Recipe
from recipes.olmo1.base import stage1, table

recipe = Recipe(
    "olmo1-7b",
    mesh="fsdp=-1",
    pod="v5p-256",  # 128 chips, 16 rows on each, in micro-batches of 8
    stages=(
        stage1(
            "olmo-7b",
            dolma="v1_5-sample",
            lr="3e-4 linear to 10% warmup 5000 steps from 10%",
            steps=476_837,
            accumulate=2,
            remat="attention",
        ),
        table("OLMo 7B: base model"),
    ),
)
