"""Tülu 2.5, Table 2: DPO and PPO of Tülu 2 13B on the same preference sets (arXiv 2406.09279).

For PPO, a 13B reward model is trained on the set and the policy on the prompts of the set. Larger sets are reduced to
60,908 pairs; Chatbot Arena 2023 has 20,465.
"""

from easylm_jax.config import Entry
from recipes.tulu25 import data, published, stages, suites

trained, entries = [], []
for key in ("stack-exchange-60k", "chatbot-arena-2023", "hh-rlhf-60k", "nectar-60k", "uf"):
    pairs = data.preferences(key)
    dpo, reward = stages.dpo(pairs), stages.reward_model("13b", pairs)
    ppo = stages.ppo(reward, pairs.prompts)
    trained += [dpo, reward, ppo]
    entries += [
        Entry(f"{pairs.title}, DPO", (dpo.name,), over=suites.BASE.method),
        Entry(f"{pairs.title}, PPO", (ppo.name,), over=f"{pairs.title}, DPO"),
    ]

recipe = stages.recipe(
    *trained,
    suites.table("table2", "Tülu 2.5, Table 2: PPO against DPO", tuple(entries), published.TABLE_2),
)
