"""Tülu 3 8B: length-normalised DPO on the published preference mixture (arXiv 2411.15124, Tables 20 and 6).

To start from your own model: `dpo.init=run:runs/tulu3-8b-sft/sft`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.tulu3 import published
from recipes.tulu3.base import dpo, pairs, table

SFT = "hf:allenai/Llama-3.1-Tulu-3-8B-SFT"

recipe = Recipe(
    "tulu3-8b-dpo",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips, 4 pairs on each
    stages=(
        dpo(
            init=SFT,
            data=pairs("llama-3.1-tulu-3-8b-preference-mixture", SFT, overlong="truncate"),
            examples=271_409,
            lr=5e-7,  # Table 20
            batch=128,  # Table 20; the card says 32, a script multiplies to 512
            remat="attention",
        ),
        table(
            "Tülu 3 8B: DPO",
            (Entry("SFT", (SFT,)), Entry("DPO", ("dpo",), over="SFT")),
            published.TABLE_6,
            SFT,
        ),
    ),
)
