"""IF-RLVR of base models that learn to reason: Llama 3.1 8B, Qwen2.5 7B, OLMo 2 7B (arXiv 2507.02833, Table 6).

As for instruct models, but with the template "think" (`easylm_jax/config/chat_templates.py`), responses of up to 10,240
tokens and no KL penalty. The text after the reasoning is verified.

Departs from the paper: OLMo 2 7B has responses of 2,048 tokens, not 10,240, since its context is 4,096 tokens and
prompts have up to 2,048.
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
