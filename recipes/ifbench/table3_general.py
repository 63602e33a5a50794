"""IF-RLVR, Table 3: other skills, and a reward mixed with that of a reward model (arXiv 2507.02833, Equation 2).

Of AlpacaEval 2, GSM8K, MMLU and BBH, only GSM8K is evaluated here. In the mixed reward, a response that follows any
instruction gets 1 more if the score of the reward model is above 7 (about the mean), and 0.5 less otherwise.

Departs from the paper: the scale of V in Equation 2 is not published; here it is ten times the share, as in the other
runs.
"""

from easylm_jax.config import Entry, Reward
from recipes.ifbench import published, stages, suites

TULU, QWEN = suites.POLICIES["tulu3-dpo"], suites.POLICIES["qwen2.5"]
MIXED = Reward(
    model="hf:allenai/Llama-3.1-Tulu-3-8B-RM",
    verifier="(10 * ifeval + 1 if model > 7 else 10 * ifeval - 0.5) if ifeval > 0 else 0",
    missing_end=0.0,
)

runs = {policy: stages.grpo(policy) for policy in (TULU, QWEN)}
# 512 responses per rollout, 8 to a prompt; the paper's row is that of step 1,100.
mixed = stages.grpo(TULU, name=f"grpo-{TULU.key}-rm", reward=MIXED, batch=64, samples=8, mini_batch=256, accumulate=4,
                    steps=1100)  # fmt: skip
tables = [
    suites.table(
        f"table3-{policy.key}",
        "IF-RLVR, Table 3: other skills",
        policy,
        (
            Entry(f"IF-RLVR of {policy.title}", (run.name,), over=policy.title),
            *([Entry("with the reward model", (mixed.name,), over=policy.title)] if policy is TULU else []),
        ),
        published.TABLE_3,
        further=(suites.gsm8k(policy),),
    )
    for policy, run in runs.items()
]

recipe = stages.recipe(*runs.values(), mixed, *tables)
