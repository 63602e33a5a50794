"""Tülu 2 70B: supervised fine-tuning of Llama 2 70B (arXiv 2311.10702, appendix on training)."""

from easylm_jax.config import Recipe
from recipes.tulu2.base import sft

recipe = Recipe(
    "tulu2-70b-sft",
    mesh="fsdp=-1",
    pod="v5p-256",  # 128 chips, 1 row on each
    stages=(sft(init="hf:meta-llama/Llama-2-70b-hf", lr=1e-5, accumulate=1, remat="full"),),
)
