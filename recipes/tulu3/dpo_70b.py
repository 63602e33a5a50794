"""Tülu 3 70B: length-normalised DPO on the published preference mixture (arXiv 2411.15124, Tables 20 and 5).

To start from your own model: `dpo.init=run:runs/tulu3-70b-sft/sft`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.tulu3 import published
from recipes.tulu3.base import dpo, pairs, table

SFT = "hf:allenai/Llama-3.1-Tulu-3-70B-SFT"

recipe = Recipe(
    "tulu3-70b-dpo",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # the weights do not fit on one chip; each holds a fourth
    pod="v5p-256",  # 128 chips, 1 pair on each
    stages=(
        dpo(
            init=SFT,
            data=pairs("llama-3.1-tulu-3-70b-preference-mixture", SFT, overlong="truncate"),
            examples=334_302,
            lr=2e-7,  # Table 20
            batch=128,  # Table 20
            remat="full",
        ),
        table(
            "Tülu 3 70B: DPO",
            (Entry("SFT", (SFT,)), Entry("DPO", ("dpo",), over="SFT")),
            published.TABLE_5,
            SFT,
        ),
    ),
)
