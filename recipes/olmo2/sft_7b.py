"""OLMo 2 7B: supervised fine-tuning as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 17).

To start from your own base model: `sft.init=run:runs/olmo2-7b/soup`.

Departs from the paper: learning rate 1e-5, the best of Table 17, not the 2e-5 of the text.
"""

from easylm_jax.config import Recipe
from recipes.olmo2 import data, published
from recipes.tulu3.base import sft, sft_table

CONVERSATIONS = data.tulu3_olmo2("tulu3_sft_olmo2")

recipe = Recipe(
    "olmo2-7b-sft",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-64",  # 32 chips, 4 rows on each
    stages=(
        sft(
            init="hf:allenai/OLMo-2-1124-7B",
            data=CONVERSATIONS,
            lr=1e-5,  # the best of Table 17; Section 5 and a later script say 2e-5
            batch=128,
            remat="attention",
        ),
        sft_table("OLMo 2 7B: SFT", CONVERSATIONS, published.TABLE_16["7b"]),
    ),
)
