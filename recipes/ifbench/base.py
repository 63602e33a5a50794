"""IF-RLVR of base models that learn to reason: Llama 3.1 8B, Qwen2.5 7B, OLMo 2 7B (arXiv 2507.02833, Table 6).

As for instruct models, but with the template "think" (`easylm_jax/data/templates.py`), 10,240 tokens of an answer and
no price on divergence. What follows the reasoning is judged.

Departs from the paper: OLMo 2 7B has 2,048 tokens of an answer, not 10,240: its context of 4,096 has no room for more
beside prompts of 2,048.
"""

from easylm_jax.config import Entry
from recipes.ifbench import published, stages, suites

POLICIES = [suites.POLICIES[key] for key in ("llama3.1", "qwen2.5", "olmo2")]

trained, tables = [], []
for policy in POLICIES:
    run = stages.grpo(policy)
    entry = Entry(f"IF-RLVR of {policy.title}", (run.name,), over=policy.title)
    trained.append(run)
    tables.append(
        suites.table(f"table-{policy.key}", f"IF-RLVR of {policy.title}", policy, (entry,), published.TABLE_6)
    )

recipe = stages.recipe(*trained, *tables)
