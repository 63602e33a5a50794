"""IF-RLVR, Table 7: training on single turns, on two turns, and on both (arXiv 2507.02833).

In the second of two turns the user asks to rewrite the first response under instructions.
"""

from easylm_jax.config import Entry
from recipes.ifbench import published, stages, suites

# Single-turn prompts with up to five instructions are those of Table 1.
prompts = {"single": stages.made("upto5", most=5)}
prompts |= {turns: stages.made(f"{turns}-turn", most=5, turns=turns) for turns in ("multi", "mix")}

trained, tables = [], []
for policy in (suites.POLICIES["qwen2.5"], suites.POLICIES["qwen2.5-instruct"]):
    runs = {turns: stages.grpo(policy, made) for turns, made in prompts.items()}
    trained += runs.values()
    tables.append(
        suites.table(
            f"table7-{policy.key}",
            "IF-RLVR, Table 7: single and multi-turn training",
            policy,
            tuple(Entry(f"{turns}-turn", (run.name,), over=policy.title) for turns, run in runs.items()),
            published.table_7(policy.key),
            further=suites.multi_turn(policy),
        )
    )

recipe = stages.recipe(*prompts.values(), *trained, *tables)
