"""OLMo 2 13B: supervised fine-tuning as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 16).

To start from your own base model: `sft.init=run:runs/olmo2-13b/soup`.

Departs from the release: learning rate 5e-6 and batches of 128; its script has batches of 64, its configuration 6e-6.
"""

from easylm_jax.config import Recipe
from recipes.olmo2 import data, published
from recipes.tulu3.base import sft, sft_table

CONVERSATIONS = data.tulu3_olmo2("tulu3_sft_olmo2")

recipe = Recipe(
    "olmo2-13b-sft",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-128",  # 64 chips, 2 rows on each
    stages=(
        sft(
            init="hf:allenai/OLMo-2-1124-13B",
            data=CONVERSATIONS,
            lr=5e-6,  # Section 5; the released configuration says 6e-6
            batch=128,
            remat="attention",
        ),
        sft_table("OLMo 2 13B: SFT", CONVERSATIONS, published.TABLE_16["13b"]),
    ),
)
