"""Tülu 3, Table 17: the same responses rated by different judges, and DPO on the pairs of each (arXiv 2411.15124)

The paper's averages: GPT-4o 57.3, Llama 3.1 405B 57.2, GPT-4 Turbo 57.0, GPT-4o mini 56.9, Llama 3.1 70B 56.6. Here
three judges that are models of this project, and all three voting; a server is another arm of `JUDGES`' kind with
`rate-NAME.init=none 'rate-NAME.server={"url": …}'`.
"""

import dataclasses

from easylm_jax.config import Entry, Recipe
from recipes.tulu3 import preference_data as parts
from recipes.tulu3.base import dpo, table

JUDGES = {
    "llama-70b": "hf:meta-llama/Llama-3.1-70B-Instruct", "llama-8b": "hf:meta-llama/Llama-3.1-8B-Instruct",
    "qwen-72b": "hf:Qwen/Qwen2.5-72B-Instruct",
}  # fmt: skip
ARMS = {**{name: (f"rate-{name}",) for name in JUDGES}, "vote": tuple(f"rate-{name}" for name in JUDGES)}

recipe = Recipe(
    "tulu3-ablation-judges",
    pod="v5p-64",  # 32 chips, as dpo_8b
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",
    stages=(
        parts.prompts(parts.OFF_POLICY[3]), parts.responses("responses"),  # UltraFeedback's prompts, as in Table 17
        *(parts.ratings(f"rate-{name}", "responses", judge) for name, judge in JUDGES.items()),
        *(parts.pairs(f"pairs-{arm}", *rates) for arm, rates in ARMS.items()),
        *(dataclasses.replace(dpo(init=parts.POLICY, data=parts.data(f"pairs-{arm}"), lr=5e-7, remat="attention"),
                              name=f"dpo-{arm}") for arm in ARMS),
        table(
            "Tülu 3 8B: judge by judge",
            (Entry("SFT", (parts.POLICY,)), *(Entry(arm, (f"dpo-{arm}",), over="SFT") for arm in ARMS)), (),
            parts.POLICY,
        ),
    ),
)  # fmt: skip
