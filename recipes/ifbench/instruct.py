"""IF-RLVR of instruct models: Tülu-3-8B-DPO, Qwen2.5-7B-Instruct, OLMo2-7B-Instruct (arXiv 2507.02833, Table 6).

On the published set of prompts with up to five instructions each; 2,000 rollouts, about a day on 8 GPUs.
"""

from easylm_jax.config import Entry
from recipes.ifbench import published, stages, suites

POLICIES = [suites.POLICIES[key] for key in ("tulu3-dpo", "qwen2.5-instruct", "olmo2-instruct")]

trained, tables = [], []
for policy in POLICIES:
    run = stages.grpo(policy)
    entry = Entry(f"IF-RLVR of {policy.title}", (run.name,), over=policy.title)
    trained.append(run)
    tables.append(
        suites.table(f"table-{policy.key}", f"IF-RLVR of {policy.title}", policy, (entry,), published.TABLE_6)
    )

recipe = stages.recipe(*trained, *tables)
