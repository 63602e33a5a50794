"""IF-RLVR, Figure 6: one kind of instructions left out of the training (arXiv 2507.02833).

In the paper, leaving out case or detectable format hardly hurts; leaving out keywords or lengths does.
"""

from easylm_jax.config import Entry
from recipes.ifbench import published, stages, suites

POLICY = suites.POLICIES["tulu3-dpo"]
GROUPS = ("change_case", "detectable_format", "keywords", "length_constraints")

prompts = {group: stages.made(f"without-{group}", leave_out=group) for group in GROUPS}
prompts = {"none": stages.made("same-ranges", ranges="same")} | prompts  # Figure 5 uses it too
runs = {group: stages.grpo(POLICY, made) for group, made in prompts.items()}
entries = tuple(Entry(f"without {group}", (run.name,), over=POLICY.title) for group, run in runs.items())

recipe = stages.recipe(
    *prompts.values(),
    *runs.values(),
    suites.table("figure6", "IF-RLVR, Figure 6: kinds left out", POLICY, entries, published.FIGURE_6,
                 categories=True),
)  # fmt: skip
