"""Molmo-7B-D: captions, then the fine-tuning mixture, from Qwen2-7B and CLIP (arXiv 2409.17146, Tables 7 and 10)."""

from easylm_jax.config import Recipe
from recipes.molmo.base import captions, mixture, start, table

recipe = Recipe(
    "molmo-7b-d",
    mesh="fsdp=-1",
    pod="v5p-32",
    stages=(
        start("molmo-7b-d"),
        captions("molmo-7b-d", llm=2e-5),
        mixture("molmo-7b-d", llm=1e-5, seeing=5e-6, steps=30_000),
        table("molmo-7b-d"),
    ),
)
