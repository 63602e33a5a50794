"""Tülu 2 13B: supervised fine-tuning of Llama 2 13B (arXiv 2311.10702, appendix on training).

The initial model of Tülu 2.5's policies (arXiv 2406.09279).
"""

from easylm_jax.config import Recipe
from recipes.tulu2.base import sft

recipe = Recipe(
    "tulu2-13b-sft",
    mesh="fsdp=-1",
    pod="v5p-128",  # 64 chips, 2 rows on each
    stages=(sft(init="hf:meta-llama/Llama-2-13b-hf", lr=2e-5, accumulate=1, remat="attention"),),
)
