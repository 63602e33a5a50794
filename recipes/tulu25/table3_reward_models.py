"""Tülu 2.5, Table 3: reward models by size and data, by best-of-16 and by PPO (arXiv 2406.09279).

13B and 70B, on UltraFeedback and on the mix of six sets. PPO trains Tülu 2 13B on UltraFeedback's prompts; best-of-16
selects among responses of Tülu 2 13B. RewardBench, the table's other column, is not implemented.

Departs from the paper: its best-of-N is over several benchmarks with an unpublished N; here it is best-of-16 on GSM8K.
"""

from easylm_jax.config import Entry
from recipes.tulu25 import published, stages, suites
from recipes.tulu25.grid import reward_models, title_of, trained_on

rewards = reward_models()
policies = trained_on(rewards, ("uf",))

recipe = stages.recipe(
    *rewards,
    *(policy for _, _, policy in policies),
    suites.table(
        "table3-best-of-16",
        "Tülu 2.5, Table 3: the best of 16 replies by each reward model",
        (),
        (),
        tasks=(suites.gsm8k(), *(suites.best_of(reward.name) for reward in rewards)),
    ),
    suites.table(
        "table3",
        "Tülu 2.5, Table 3: PPO with each reward model",
        tuple(Entry(title_of(reward), (ppo.name,), over=suites.BASE.method) for reward, _, ppo in policies),
        published.TABLE_3,
    ),
)
