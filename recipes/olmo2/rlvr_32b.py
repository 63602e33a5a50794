"""OLMo 2 32B: RLVR by GRPO (allenai/open-instruct, docs/olmo2.md; arXiv 2501.00656, Section 5, Table 16).

Departs from the paper: the KL coefficient is 0.01, as in the command, not the paper's 0.1; the number of responses in a
micro-batch is not published, so Tülu 3.1's two are used; further differences are in `tulu3.base.grpo`.
"""

from easylm_jax.config import Entry, Recipe
from recipes.olmo2 import published
from recipes.tulu3.base import MIXED, grpo, rlvr_prompts, table

SFT, DPO = "hf:allenai/OLMo-2-0325-32B-SFT", "hf:allenai/OLMo-2-0325-32B-DPO"

recipe = Recipe(
    "olmo2-32b-rlvr",
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",  # reading the weights dominates decoding; each chip reads a fourth
    pod="v5p-256",  # 128 chips, 7 responses of an update on each, in micro-batches of 1
    stages=(
        grpo(
            "grpo",
            init=DPO,
            data=rlvr_prompts(MIXED, DPO),  # no BOS in the released 32B
            prompts=112,
            steps=320,  # the step of the released model, 573,440 responses
            accumulate=7,
            remat="full",
        ),
        table(
            "OLMo 2 32B: RLVR by GRPO",
            (Entry("SFT", (SFT,)), Entry("DPO", (DPO,), over="SFT"), Entry("RLVR", ("grpo",), over="DPO")),
            published.TABLE_16["32b"],
            DPO,
        ),
    ),
)
