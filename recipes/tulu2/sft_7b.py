"""Tülu 2 7B: supervised fine-tuning of Llama 2 7B (arXiv 2311.10702, appendix on training)."""

from easylm_jax.config import Recipe
from recipes.tulu2.base import sft

recipe = Recipe(
    "tulu2-7b-sft",
    mesh="fsdp=-1",
    pod="v5p-64",  # 32 chips, 4 rows on each, in micro-batches of 2
    stages=(sft(init="hf:meta-llama/Llama-2-7b-hf", lr=2e-5, accumulate=2, remat="attention"),),
)
