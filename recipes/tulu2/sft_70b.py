"""Tülu 2 70B: supervised fine-tuning of Llama 2 70B (arXiv 2311.10702, appendix on training)."""

from easylm_jax.config import Recipe
from recipes.tulu2.base import sft, table

BASE = "hf:meta-llama/Llama-2-70b-hf"

recipe = Recipe(
    "tulu2-70b-sft",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-256",  # 128 chips, 1 row on each
    stages=(sft(init=BASE, lr=1e-5, accumulate=1, remat="full"), table("Tülu 2 70B: SFT", BASE)),
)
