"""Tülu 2.5 13B, the released model: PPO with the 70B reward model on UltraFeedback (arXiv 2406.09279, Table 5).

Also DPO on the same pairs. The stage `released` evaluates the released weights, which shows before any training how
closely the evaluation matches the paper's: `--only released`.
"""

from easylm_jax.config import Entry
from recipes.tulu25 import data, published, stages, suites

UF = data.preferences("uf")
reward = stages.reward_model("70b", UF)
ppo = stages.ppo(reward, UF.prompts)
dpo = stages.dpo(UF)

recipe = stages.recipe(
    suites.table(
        "released",
        "Tülu 2.5 13B as released",
        (
            Entry("PPO, 70B UF", ("hf:allenai/tulu-v2.5-ppo-13b-uf-mean-70b-uf-rm",), over=suites.BASE.method),
            Entry("Tülu 2 DPO", ("hf:allenai/tulu-2-dpo-13b",), over=suites.BASE.method),
        ),
        published.CARDS,
    ),
    reward,
    ppo,
    dpo,
    suites.table(
        "final-13b",
        "Tülu 2.5 13B",
        (
            Entry("DPO, UF", (dpo.name,), over=suites.BASE.method),
            Entry("PPO, 70B UF", (ppo.name,), over="DPO, UF"),
        ),
        published.CARDS,
    ),
)
