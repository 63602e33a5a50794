"""OLMo 2 1B: supervised fine-tuning as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 16).

To start from your own base model: `sft.init=run:runs/olmo2-1b/stage2-50b-seed42`.

Departs from the release: it is not published whether its loss was a sum over tokens; here it is, as at the other sizes.
"""

from easylm_jax.config import Recipe
from recipes.olmo2 import data, published
from recipes.tulu3.base import sft, sft_table

CONVERSATIONS = data.tulu3_olmo2("tulu3_sft_olmo2_0225")

recipe = Recipe(
    "olmo2-1b-sft",
    mesh="fsdp=-1",
    pod="v5p-32",  # 16 chips, 8 rows on each
    stages=(
        sft(
            init="hf:allenai/OLMo-2-0425-1B",
            data=CONVERSATIONS,
            lr=3e-5,  # allenai/open-instruct, docs/olmo2.md
            batch=128,
            remat="attention",
        ),
        sft_table("OLMo 2 1B: SFT", CONVERSATIONS, published.TABLE_16["1b"]),
    ),
)
