"""Tülu 2.5 13B with the quirks of the released code (arXiv 2406.09279, Table 2, last two rows).

PPO recomputes log-probabilities, values and advantages with the parameters of each mini-batch, so that ratios are 1 and
nothing is clipped, and whitens advantages per mini-batch. DPO also trains the headers that the released code trains.
The reward model is that of the tables, whose head is initialised as in the released code. GSM8K is evaluated on 200
problems.
"""

import dataclasses

from easylm_jax.config import Entry
from recipes.tulu25 import data, published, stages, suites

UF = data.preferences("uf")
reward = stages.reward_model("13b", UF)

ppo = stages.ppo(reward, UF.prompts)
ppo = dataclasses.replace(ppo, name=f"{ppo.name}-compat", compat="tulu25", whiten="mini_batch")
dpo = stages.dpo(UF)
dpo = dataclasses.replace(dpo, name=f"{dpo.name}-compat", data=dataclasses.replace(dpo.data, compat="tulu25"))

recipe = stages.recipe(
    reward,
    ppo,
    dpo,
    suites.table(
        "compat-13b",
        "Tülu 2.5 13B as the released code trains it",
        (
            Entry(f"{UF.title}, DPO", (dpo.name,), over=suites.BASE.method),
            Entry(f"{UF.title}, PPO", (ppo.name,), over=f"{UF.title}, DPO"),
        ),
        published.TABLE_2,
        tasks=(suites.gsm8k(paper=True), suites.ifeval()),
    ),
)
