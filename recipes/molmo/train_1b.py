"""MolmoE-1B: captions, then the fine-tuning mixture, from OLMoE-1B-7B and CLIP (arXiv 2409.17146, Tables 7 and 10)."""

from easylm_jax.config import Recipe
from recipes.molmo.base import captions, mixture, start, table

recipe = Recipe(
    "molmoe-1b",
    mesh="fsdp=-1",
    pod="v5p-32",
    stages=(
        start("molmoe-1b"),
        captions("molmoe-1b", llm=2e-5),
        mixture("molmoe-1b", llm=2e-5, seeing=5e-6, steps=30_000),
        table("molmoe-1b"),
    ),
)
