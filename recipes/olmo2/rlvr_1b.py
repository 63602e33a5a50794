"""OLMo 2 1B: RLVR by GRPO in two stages, on the mixed prompts and on MATH (arXiv 2501.00656, Section 5, Table 16).

Settings of allenai/open-instruct, docs/olmo2.md: two million episodes per stage. A later command there uses the ratio
times the log-ratio as KL estimate and stops at </answer>, which the original did not.

Departs from the release: the number of responses in a micro-batch is not published, so Tülu 3.1's two are used; further
differences are in `tulu3.base.grpo`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.olmo2 import published
from recipes.tulu3.base import MIXED, grpo, rlvr_prompts, table

SFT, DPO = "hf:allenai/OLMo-2-0425-1B-SFT", "hf:allenai/OLMo-2-0425-1B-DPO"
STEPS = 2_000_000 // (48 * 16)

recipe = Recipe(
    "olmo2-1b-rlvr",
    mesh="fsdp=-1",
    pod="v5p-32",  # 16 chips, 24 responses of an update on each, in micro-batches of 6
    stages=(
        grpo(
            "mixed",
            init=DPO,
            data=rlvr_prompts(MIXED, DPO, "olmo"),
            steps=STEPS,
            accumulate=4,
            remat="attention",
        ),
        grpo(
            "math",
            init="mixed",
            data=rlvr_prompts("RLVR-MATH", DPO, "olmo"),
            steps=STEPS,
            accumulate=4,
            remat="attention",
        ),
        table(
            "OLMo 2 1B: RLVR by GRPO",
            (
                Entry("SFT", (SFT,)),
                Entry("DPO", (DPO,), over="SFT"),
                Entry("mixed", ("mixed",), over="DPO"),
                Entry("RLVR", ("math",), over="DPO"),
            ),
            published.TABLE_16["1b"],
            DPO,
            "olmo",
        ),
    ),
)
