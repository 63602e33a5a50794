"""OLMoE 1B-7B: DPO on UltraFeedback (arXiv 2409.02060, Tables 3, 5 and 7).

Numbers are those of the released command (allenai/OLMoE, README): rate 5e-7 linear after 10 % of warm-up, batches of
32, three epochs, beta 0.1, summed log-probabilities, no load-balancing loss. To start from your own model:
`dpo.init=run:runs/olmoe-1b-7b-sft/sft`.
"""

from easylm_jax.config import DPO, Checkpoints, Compute, DataSpec, Entry, Recipe, Source
from recipes.olmoe import published
from recipes.tulu3.base import adamw, table

SFT = "hf:allenai/OLMoE-1B-7B-0924-SFT"
pairs = DataSpec(
    (Source("hf:argilla/ultrafeedback-binarized-preferences-cleaned"),),
    SFT,
    2 * 4096,
    kind="preference",
    template="olmo",
    packing="none",
    overlong="truncate",
    on_bad="skip",
)
dpo = DPO(
    "dpo",
    init=SFT,
    data=pairs,
    batch=32,
    epochs=3,
    examples=60_917,  # 5,712 updates
    loss="dpo",
    beta=0.1,
    load_balancing=0.0,
    router_z=0.0,
    optimizer=adamw("5e-7 linear to 0 warmup 10% rounded down"),
    compute=Compute(dtype="bfloat16", remat="dots"),
    checkpoints=Checkpoints(when_busy="skip"),
)
recipe = Recipe(
    "olmoe-1b-7b-dpo",
    mesh="fsdp=-1",
    pod="v5p-64",  # 32 chips, 1 pair on each
    stages=(
        dpo,
        table(
            "OLMoE 1B-7B: DPO",
            (Entry("SFT", (SFT,)), Entry("DPO", ("dpo",), over="SFT")),
            published.TABLE_5,
            SFT,
            "olmo",
        ),
    ),
)
