"""OLMo 2 7B: length-normalised DPO as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 16).

To start from your own model: `dpo.init=run:runs/olmo2-7b-sft/sft`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.olmo2 import published
from recipes.tulu3.base import dpo, pairs, table

SFT = "hf:allenai/OLMo-2-1124-7B-SFT"

recipe = Recipe(
    "olmo2-7b-dpo",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips, 4 pairs on each
    stages=(
        dpo(
            init=SFT,
            data=pairs("olmo-2-1124-7b-preference-mix", SFT, overlong="truncate", template="olmo"),
            examples=366_700,  # pairs, about
            lr=1e-6,  # Section 5; an older configuration says 5e-7
            batch=128,
            remat="attention",
        ),
        table(
            "OLMo 2 7B: DPO",
            (Entry("SFT", (SFT,)), Entry("DPO", ("dpo",), over="SFT")),
            published.TABLE_16["7b"],
            SFT,
            "olmo",
        ),
    ),
)
