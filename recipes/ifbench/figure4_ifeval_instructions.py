"""IF-RLVR, Figure 4: IFTrain's instructions with 5 to 25 of IFEval's beside them (arXiv 2507.02833).

The paper does not say which ones; here smaller choices are subsets of larger ones.
"""

from easylm_jax.config import Entry
from recipes.ifbench import published, stages, suites

prompts = {count: stages.made(f"ifeval{count}", ifeval=count) for count in (5, 10, 15, 20, 25)}

trained, tables = [], []
for policy in (suites.POLICIES["tulu3-dpo"], suites.POLICIES["qwen2.5"]):
    runs = {count: stages.grpo(policy, made) for count, made in prompts.items()}
    trained += runs.values()
    tables.append(
        suites.table(
            f"figure4-{policy.key}",
            "IF-RLVR, Figure 4: instructions of the test among those trained on",
            policy,
            tuple(Entry(f"{count} of IFEval's", (run.name,), over=policy.title) for count, run in runs.items()),
            published.figure_4(policy.key),
        )
    )

recipe = stages.recipe(*prompts.values(), *trained, *tables)
