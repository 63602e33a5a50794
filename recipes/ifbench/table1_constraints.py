"""IF-RLVR, Table 1: instructions per prompt, and prompts per instruction (arXiv 2507.02833).

Qwen2.5 7B on prompts with up to one to six instructions (Figure 2 has their curves), and on 10 to 1,000 prompts for
each of the 54 instructions (Figure 3).
"""

from easylm_jax.config import Entry
from recipes.ifbench import published, stages, suites

POLICY = suites.POLICIES["qwen2.5"]

runs = {f"up to {most}": stages.made(f"upto{most}", most=most) for most in range(1, 7)}
runs |= {f"{count} of each": stages.made(f"{count}-each", instances=count) for count in (10, 50, 100, 500, 1000)}
trained = {title: stages.grpo(POLICY, prompts) for title, prompts in runs.items()}
entries = tuple(Entry(title, (run.name,), over=POLICY.title) for title, run in trained.items())

recipe = stages.recipe(
    *runs.values(),
    *trained.values(),
    suites.table("table1", "IF-RLVR, Table 1: instructions of a prompt", POLICY, entries, published.TABLE_1),
)
