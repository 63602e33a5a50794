"""Tülu 3 8B: supervised fine-tuning of Llama 3.1 8B (arXiv 2411.15124, Tables 7, 11 and 14)."""

from easylm_jax.config import Recipe
from recipes.tulu3 import published
from recipes.tulu3.base import mixture, sft, sft_table

BASE = "hf:meta-llama/Llama-3.1-8B"
DATA = mixture(BASE)

recipe = Recipe(
    "tulu3-8b-sft",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips, 4 rows on each
    stages=(
        sft(
            init=BASE,
            data=DATA,
            examples=939_344,  # Table 7
            lr=5e-6,  # Table 11
            batch=128,  # Table 11
            seed=123,  # the best of five by the development average (Table 14)
            remat="attention",
        ),
        sft_table("Tülu 3 8B: SFT", DATA, published.TABLE_6),
    ),
)
