"""OLMoE 1B-7B: supervised fine-tuning (arXiv 2409.02060, Table 3 and Appendix B).

Numbers are those of the released command (allenai/OLMoE, README): rate 2e-5 linear after 3 % of warm-up, batches of
128, two epochs, no weight decay, the loss summed over tokens, BOS in front of a conversation. To start from your own
base model: `sft.init=run:runs/olmoe-1b-7b/stage2`.

Departs from the paper: its text says that the rate was constant and that the load-balancing loss was on; the released
model was trained with a linear decay and without it (Section 4.3, Table 7).
"""

import dataclasses

from easylm_jax.config import DataSpec, Recipe
from recipes import mixes
from recipes.olmoe import published
from recipes.tulu3.base import sft, sft_table

data = DataSpec(
    (mixes.source("tulu3_sft_olmoe"),),
    "hf:allenai/OLMoE-1B-7B-0924",
    4096,
    kind="chat",
    template="olmo",
    packing="none",
    on_bad="skip",
)
recipe = Recipe(
    "olmoe-1b-7b-sft",
    mesh="fsdp=-1",
    pod="v5p-64",  # 32 chips, 4 rows on each
    stages=(
        dataclasses.replace(
            sft(
                init="hf:allenai/OLMoE-1B-7B-0924",
                data=data,
                lr=2e-5,
                batch=128,
                remat="dots",
                examples=607_950,  # 9,500 updates
            ),
            load_balancing=0.0,
            router_z=0.0,
        ),
        sft_table("OLMoE 1B-7B: SFT", data, published.TABLE_5),
    ),
)
