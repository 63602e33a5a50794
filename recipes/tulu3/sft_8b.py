"""Tülu 3 8B: supervised fine-tuning of Llama 3.1 8B (arXiv 2411.15124, Tables 7, 11 and 14)."""

from easylm_jax.config import Recipe
from recipes.tulu3.base import mixture, sft

BASE = "hf:meta-llama/Llama-3.1-8B"

recipe = Recipe(
    "tulu3-8b-sft",
    mesh="fsdp=-1",
    pod="v5p-64",  # 32 chips, 4 rows on each
    stages=(
        sft(
            init=BASE,
            data=mixture(BASE),
            examples=939_344,  # Table 7
            lr=5e-6,  # Table 11
            batch=128,  # Table 11
            seed=123,  # the best of five by the development average (Table 14)
            remat="attention",
        ),
    ),
)
