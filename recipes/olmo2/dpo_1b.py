"""OLMo 2 1B: length-normalised DPO as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 16).

To start from your own model: `dpo.init=run:runs/olmo2-1b-sft/sft`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.olmo2 import published
from recipes.tulu3.base import dpo, pairs, table

SFT = "hf:allenai/OLMo-2-0425-1B-SFT"

recipe = Recipe(
    "olmo2-1b-dpo",
    mesh="fsdp=-1",
    pod="v5p-32",  # 16 chips, 8 pairs on each
    stages=(
        dpo(
            init=SFT,
            data=pairs("olmo-2-0425-1b-preference-mix", SFT, overlong="truncate", template="olmo"),
            lr=2.5e-6,  # docs/olmo2.md
            batch=128,
            remat="attention",
        ),
        table(
            "OLMo 2 1B: DPO",
            (Entry("SFT", (SFT,)), Entry("DPO", ("dpo",), over="SFT")),
            published.TABLE_16["1b"],
            SFT,
            "olmo",
        ),
    ),
)
