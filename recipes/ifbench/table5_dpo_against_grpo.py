"""IF-RLVR, Table 5: DPO against GRPO on the same 31,751 prompts, from SFT and from DPO (arXiv 2507.02833).

In the paper the chosen and rejected responses are from five models (Table 4), the best of which follows all
instructions of every fourth prompt. Here one of them, Tülu 3 70B, generates four responses to each prompt: the best is
chosen and the worst rejected where they differ in the instructions they follow. The paper's columns are strict
accuracies.
"""

from easylm_jax.config import DPO, BestOfN, Compute, DataSpec, Entry, OptimizerConfig, Recipe, Sampling, Source
from recipes.ifbench import published, stages, suites

SFT, AFTER_DPO = suites.POLICIES["tulu3-sft"], suites.POLICIES["tulu3-dpo"]
GENERATOR = "hf:allenai/Llama-3.1-Tulu-3-70B"

prompts = stages.made("dpo-against-grpo", count=31_751)
answers = BestOfN(
    "answers",
    init=GENERATOR,
    data=stages.prompts_of(AFTER_DPO, prompts),
    samples=4,
    batch=96,
    sampling=Sampling(2048, temperature=1.0, slots=384),
    reward=stages.REWARD,
    compute=Compute(dtype="bfloat16"),
)


def dpo(policy: suites.Policy) -> DPO:
    """One epoch at the length-normalised loss of Tülu 3, batches of 16 pairs."""
    return DPO(
        f"dpo-{policy.key}-if",
        init=policy.init,
        data=DataSpec(
            (Source("stage:answers/pairs.jsonl"),), policy.tokenizer, 8192, kind="preference",
            template=policy.template, packing="none", train_on="last_assistant",
        ),
        batch=16,
        epochs=1,
        loss="dpo_norm",
        beta=5.0,
        optimizer=OptimizerConfig("5e-7 linear to 0 warmup 10%", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0),
        compute=Compute(dtype="bfloat16", remat="attention"),
    )  # fmt: skip


pairs = {policy: dpo(policy) for policy in (SFT, AFTER_DPO)}
runs = {policy: stages.grpo(policy, prompts) for policy in (SFT, AFTER_DPO)}
tables = [
    suites.table(
        f"table5-{policy.key}",
        "IF-RLVR, Table 5: DPO against GRPO",
        policy,
        (
            Entry(f"DPO of {stage}", (pairs[policy].name,), over=policy.title),
            Entry(f"GRPO of {stage}", (runs[policy].name,), over=f"DPO of {stage}"),
        ),
        published.TABLE_5,
    )
    for policy, stage in ((SFT, "SFT"), (AFTER_DPO, "DPO"))
]

recipe = Recipe(
    stages.RECIPE,
    mesh="fsdp=16,tp=2",
    decode_mesh=stages.DECODE_MESH,  # the generator's weights need four chips
    pod="v5p-64",  # 32 chips; in DPO, two chips per pair
    stages=(prompts, answers, *pairs.values(), *runs.values(), *tables),
)
