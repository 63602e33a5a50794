"""Tülu 2 70B with PPO and the 70B reward model of Table 3 (allenai/EasyLM, examples/ppo_70b_tpu.sh; arXiv 2406.09279).

Not in the paper's tables. A rollout of 32 prompts is one update; the warm-up of the learning rate is 1/80 of the epoch.
"""

import dataclasses

from easylm_jax.config import Entry, Recipe
from recipes.tulu25 import data, stages, suites

base = Entry("Tülu 2 70B SFT", (stages.SFT["70b"],))
UF = data.preferences("uf")
reward = stages.reward_model("70b", UF)

ppo = stages.ppo(reward, UF.prompts)
ppo = dataclasses.replace(
    ppo,
    name="ppo-70b-rm-70b-uf",
    init=stages.SFT["70b"],
    batch=32,
    mini_batch=32,
    sampling=dataclasses.replace(ppo.sampling, slots=32),
    kl=0.05,
    optimizer=stages.optimizer("1e-6 constant warmup 1.25%"),
)

recipe = Recipe(
    stages.RECIPE,
    mesh="fsdp=32,tp=4",
    pod="v5p-256",  # 128 chips
    stages=(
        reward,
        ppo,
        suites.table("ppo-70b", "Tülu 2 70B with PPO", (Entry("PPO", (ppo.name,), over=base.method),), (), base=base),
    ),
)
