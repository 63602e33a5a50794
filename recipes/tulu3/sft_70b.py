"""Tülu 3 70B: supervised fine-tuning of Llama 3.1 70B (arXiv 2411.15124, Tables 7, 11 and 14)."""

from easylm_jax.config import Recipe
from recipes.tulu3 import published
from recipes.tulu3.base import mixture, sft, sft_table

BASE = "hf:meta-llama/Llama-3.1-70B"
DATA = mixture(BASE)

recipe = Recipe(
    "tulu3-70b-sft",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # the weights do not fit on one chip; each holds a fourth
    pod="v5p-256",  # 128 chips, 1 row on each
    stages=(
        sft(
            init=BASE,
            data=DATA,
            examples=939_344,  # Table 7
            lr=2e-6,  # Table 11
            batch=128,  # Table 11
            seed=456,  # the best of three by the development average (Table 14)
            remat="full",
        ),
        sft_table("Tülu 3 70B: SFT", DATA, published.TABLE_5),
    ),
)
