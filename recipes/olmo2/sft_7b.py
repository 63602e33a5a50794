"""OLMo 2 7B: supervised fine-tuning as in Tülu 3 (arXiv 2501.00656, Section 5 and Table 17).

To start from your own base model: `sft.init=run:runs/olmo2-7b/soup`.

Departs from the paper: learning rate 1e-5, the best of Table 17, not the 2e-5 of the text.
"""

from easylm_jax.config import Recipe
from recipes.olmo2 import data
from recipes.tulu3.base import sft

recipe = Recipe(
    "olmo2-7b-sft",
    mesh="fsdp=-1",
    pod="v5p-64",  # 32 chips, 4 rows on each
    stages=(
        sft(
            init="hf:allenai/OLMo-2-1124-7B",
            data=data.tulu3_olmo2("tulu3_sft_olmo2"),
            lr=1e-5,  # the best of Table 17; Section 5 and a later script say 2e-5
            batch=128,
            remat="attention",
        ),
    ),
)
