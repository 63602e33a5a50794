"""Tülu 2 7B: supervised fine-tuning of Llama 2 7B (arXiv 2311.10702, appendix on training)."""

from easylm_jax.config import Recipe
from recipes.tulu2.base import sft, table

BASE = "hf:meta-llama/Llama-2-7b-hf"

recipe = Recipe(
    "tulu2-7b-sft",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips, 4 rows on each, in micro-batches of 2
    stages=(sft(init=BASE, lr=2e-5, accumulate=2, remat="attention"), table("Tülu 2 7B: SFT", BASE)),
)
