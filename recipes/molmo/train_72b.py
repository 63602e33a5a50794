"""Molmo-72B: captions, then the fine-tuning mixture, from Qwen2-72B and CLIP (arXiv 2409.17146, Tables 7 and 10)."""

from easylm_jax.config import Recipe
from recipes.molmo.base import captions, mixture, start, table

recipe = Recipe(
    "molmo-72b",
    mesh="fsdp=16,tp=8",  # the batches are of 32 and 48 rows
    pod="v5p-256",
    stages=(
        start("molmo-72b"),
        captions("molmo-72b", llm=1e-5),
        mixture("molmo-72b", llm=5e-6, seeing=3e-6, steps=20_000),
        table("molmo-72b"),
    ),
)
