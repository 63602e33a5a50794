"""OLMo 2 32B: supervised fine-tuning as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 16).

To start from your own base model: `sft.init=run:runs/olmo2-32b/soup`.

Departs from the release: it is not published whether its loss was a sum over tokens; here it is, as at the other sizes.
"""

from easylm_jax.config import Recipe
from recipes.olmo2 import data, published
from recipes.tulu3.base import sft, sft_table

CONVERSATIONS = data.tulu3_olmo2("tulu3_sft_olmo2_0225", template="tulu")

recipe = Recipe(
    "olmo2-32b-sft",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-256",  # 128 chips, 2 rows on each
    stages=(
        sft(
            init="hf:allenai/OLMo-2-0325-32B",
            data=CONVERSATIONS,
            lr=4e-6,  # allenai/open-instruct, scripts/train/olmo2/finetune_32b.sh
            batch=256,
            remat="full",
        ),
        sft_table("OLMo 2 32B: SFT", CONVERSATIONS, published.TABLE_16["32b"]),
    ),
)
