"""Tülu 2 13B: supervised fine-tuning of Llama 2 13B (arXiv 2311.10702, appendix on training).

The initial model of Tülu 2.5's policies (arXiv 2406.09279).
"""

from easylm_jax.config import Recipe
from recipes.tulu2.base import sft, table

BASE = "hf:meta-llama/Llama-2-13b-hf"

recipe = Recipe(
    "tulu2-13b-sft",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-128",  # 64 chips, 2 rows on each
    stages=(sft(init=BASE, lr=2e-5, accumulate=1, remat="attention"), table("Tülu 2 13B: SFT", BASE)),
)
