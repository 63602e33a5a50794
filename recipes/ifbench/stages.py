"""The stages of IF-RLVR (arXiv 2507.02833) with its hyper-parameters (Section 4, appendix; allenai/open-instruct).

Every table and figure is a recipe called "ifbench". A run that several of them need has one name and one set of
settings, so it is trained only once.

Departs from the paper: rewards use corrected verifiers (`ifeval`), since the published ones can be gamed (spec ifbench
§5); evaluations use the published ones. The clipping range is 0.2 on both sides, as in the code of 2025; later code has
0.272 above. The paper does not say how the loss is averaged; here it is over all tokens of an update. The prompts of
the ablations are generated again (`recipes/ifbench/data.py`), 60,000 of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from easylm_jax.config import (
    GRPO,
    Checkpoints,
    Compute,
    DataSpec,
    MakeData,
    OptimizerConfig,
    Recipe,
    Reward,
    Sampling,
    Source,
    Stage,
    Validation,
)  # fmt: skip
from recipes.ifbench import suites
from recipes.ifbench.suites import Policy

RECIPE = "ifbench"
MESH = "fsdp=-1"
DECODE_MESH = "fsdp=-1,tp=4"  # reading the weights dominates decoding; each chip reads a fourth
POD = "v5p-64"  # 32 chips; the 384 responses of an update in micro-batches of one or two per chip
PROMPT = 2048  # tokens
PUBLISHED_SET = Source("hf:allenai/IF_multi_constraints_upto5")  # 95,373 prompts with up to five instructions
REWARD = Reward(verifier="10 * ifeval", missing_end=0.0)  # ten times the share of instructions that are followed
EVERY = 25  # steps between validations on IFEval
STEPS = 2000
# AdamW of PyTorch with the settings of the released code.
OPTIMIZER = OptimizerConfig("5e-7 constant", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)


def recipe(*stages: Stage) -> Recipe:
    """The recipe of a table or figure, for the pod that its batch sizes are chosen for."""
    return Recipe(RECIPE, stages, mesh=MESH, decode_mesh=DECODE_MESH, pod=POD)


def made(key: str, *, seed: int = 1, **arguments: Any) -> MakeData:
    """A stage that generates prompts (`recipes/ifbench/data.py`), by default 60,000 of them."""
    return MakeData(
        f"prompts-{key}", function="recipes.ifbench.data:write", seed=seed, arguments={"count": 60_000, **arguments}
    )


def source_of(prompts: MakeData | None) -> Source:
    """The source of the prompts; by default the published set."""
    return PUBLISHED_SET if prompts is None else Source(f"stage:{prompts.name}/prompts.jsonl")


def prompts_of(policy: Policy, prompts: MakeData | None) -> DataSpec:
    """One prompt per row; prompts above 2,048 tokens are left out."""
    return DataSpec(
        (source_of(prompts),), policy.tokenizer, PROMPT, kind="prompts", template=policy.template,
        keep=("dataset", "ground_truth"), on_bad="skip",
    )  # fmt: skip


def grpo(policy: Policy, prompts: MakeData | None = None, **changes: Any) -> GRPO:
    """GRPO with 48 prompts per rollout, 16 responses each, two updates; only instruct models have a KL penalty.

    The standard deviation of a group is the population's (ddof 0), and zero-variance groups are left out, as in the
    released code. Clipping at 0.2 on both sides is as in the code of 2025.
    """
    stage = GRPO(
        f"grpo-{policy.key}" + (f"-{prompts.name.removeprefix('prompts-')}" if prompts else ""),
        init=policy.init,
        reward=REWARD,
        data=prompts_of(policy, prompts),
        batch=48,
        samples=16,
        mini_batch=384,
        accumulate=12 if policy.thinks else 6,
        steps=STEPS,
        seed=1,
        sampling=Sampling(
            policy.response, temperature=1.0, stop_strings=("</answer>",) if policy.thinks else (), slots=384
        ),
        kl=0.0 if policy.thinks else 0.01,
        kl_kind="k3",
        advantages="standard",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="token",
        drop_equal=True,
        validation=Validation(suites.ifeval(policy).data, every=EVERY),
        check=suites.HEADLINE,
        optimizer=OPTIMIZER,
        compute=Compute(dtype="bfloat16", remat="full" if policy.thinks else "attention"),
        checkpoints=Checkpoints(keep_every=100, when_busy="skip"),
    )
    return dataclasses.replace(stage, **changes)
