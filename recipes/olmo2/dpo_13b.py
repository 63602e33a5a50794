"""OLMo 2 13B: length-normalised DPO as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 16).

To start from your own model: `dpo.init=run:runs/olmo2-13b-sft/sft`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.olmo2 import published
from recipes.tulu3.base import dpo, pairs, table

SFT = "hf:allenai/OLMo-2-1124-13B-SFT"

recipe = Recipe(
    "olmo2-13b-dpo",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-128",  # 64 chips, 2 pairs on each
    stages=(
        dpo(
            init=SFT,
            data=pairs("olmo-2-1124-13b-preference-mix", SFT, overlong="truncate", template="olmo"),
            examples=377_700,  # pairs, about
            lr=8e-7,  # Section 5; an older configuration says 5e-7
            batch=128,
            remat="attention",
        ),
        table(
            "OLMo 2 13B: DPO",
            (Entry("SFT", (SFT,)), Entry("DPO", ("dpo",), over="SFT")),
            published.TABLE_16["13b"],
            SFT,
            "olmo",
        ),
    ),
)
