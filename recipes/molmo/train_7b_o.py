"""Molmo-7B-O: captions, then the fine-tuning mixture, from OLMo-7B-1024 and CLIP (arXiv 2409.17146, Tables 7, 10)."""

from easylm_jax.config import Recipe
from recipes.molmo.base import captions, mixture, start, table

recipe = Recipe(
    "molmo-7b-o",
    mesh="fsdp=-1",
    pod="v5p-32",
    stages=(
        start("molmo-7b-o"),
        captions("molmo-7b-o", llm=2e-5),
        mixture("molmo-7b-o", llm=1e-5, seeing=5e-6, steps=32_000),
        table("molmo-7b-o"),
    ),
)
