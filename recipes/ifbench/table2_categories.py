"""IF-RLVR, Table 2: accuracies by kinds of instructions, before and after training (arXiv 2507.02833)."""

from easylm_jax.config import Entry
from recipes.ifbench import published, stages, suites

trained, tables = [], []
for policy in (suites.POLICIES["tulu3-dpo"], suites.POLICIES["qwen2.5"]):
    run = stages.grpo(policy)
    entry = Entry(f"IF-RLVR of {policy.title}", (run.name,), over=policy.title)
    trained.append(run)
    tables.append(
        suites.table(
            f"table2-{policy.key}", "IF-RLVR, Table 2: kinds of instructions", policy, (entry,), published.TABLE_2,
            categories=True,
        )
    )  # fmt: skip

recipe = stages.recipe(*trained, *tables)
