"""OLMoE 1B-7B: KTO on UltraFeedback (arXiv 2409.02060, Tables 5 and 7, Appendix B).

Numbers are those of the released command (allenai/OLMoE, README): rate 5e-7, beta 0.1, batches of 32 responses; the
checkpoint after 5,000 updates, 1.3 of three epochs, was released. The rate falls linearly over the three epochs, which
is the default of the trainer that was used (trl 0.9.6).

Departs from the paper: AdamW in place of RMSProp, which this project has not; a batch holds both responses of 16 pairs.
"""

import dataclasses

from easylm_jax.config import Entry, Recipe
from recipes.olmoe import published
from recipes.olmoe.dpo_1b_7b import SFT, dpo
from recipes.olmoe.dpo_1b_7b import recipe as base
from recipes.tulu3.base import adamw, table

kto = dataclasses.replace(
    dpo,
    name="kto",
    loss="kto",
    batch=16,
    epochs=None,
    steps=5000,
    optimizer=adamw("5e-7 linear to 0 horizon 11421 steps"),
)
recipe = Recipe(
    "olmoe-1b-7b-kto",
    mesh=base.mesh,
    pod="v5p-32",  # 16 chips, 1 pair on each
    stages=(
        kto,
        table(
            "OLMoE 1B-7B: KTO",
            (Entry("SFT", (SFT,)), Entry("KTO", ("kto",), over="SFT")),
            published.TABLE_5,
            SFT,
            "olmo",
        ),
    ),
)
