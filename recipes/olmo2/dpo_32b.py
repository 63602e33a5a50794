"""OLMo 2 32B: length-normalised DPO as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 16).

To start from your own model: `dpo.init=run:runs/olmo2-32b-sft/sft`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.olmo2 import published
from recipes.tulu3.base import dpo, pairs, table

SFT = "hf:allenai/OLMo-2-0325-32B-SFT"

recipe = Recipe(
    "olmo2-32b-dpo",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-256",  # 128 chips, 1 pair on each
    stages=(
        dpo(
            init=SFT,
            data=pairs("olmo-2-0325-32b-preference-mix", SFT, overlong="truncate", template="tulu"),
            lr=2e-6,  # Section 5; swept from 8e-7 to 2.5e-6
            batch=128,
            remat="full",
        ),
        table(
            "OLMo 2 32B: DPO",
            (Entry("SFT", (SFT,)), Entry("DPO", ("dpo",), over="SFT")),
            published.TABLE_16["32b"],
            SFT,
            "tulu",
        ),
    ),
)
