"""IF-RLVR, Figure 5: numbers in the instructions as in the test, from wider ranges, from others (arXiv 2507.02833).

In the paper, wider ranges do as well as those of the test or better, different ones worse.
"""

from easylm_jax.config import Entry
from recipes.ifbench import stages, suites

POLICY = suites.POLICIES["tulu3-dpo"]

prompts = {ranges: stages.made(f"{ranges}-ranges", ranges=ranges) for ranges in ("same", "wider", "different")}
runs = {ranges: stages.grpo(POLICY, made) for ranges, made in prompts.items()}
entries = tuple(Entry(f"{ranges} ranges", (run.name,), over=POLICY.title) for ranges, run in runs.items())

recipe = stages.recipe(
    *prompts.values(),
    *runs.values(),
    suites.table("figure5", "IF-RLVR, Figure 5: ranges of numbers", POLICY, entries),
)
