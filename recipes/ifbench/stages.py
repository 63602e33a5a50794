"""The stages of IF-RLVR (arXiv 2507.02833) with its hyper-parameters (Section 4, appendix; allenai/open-instruct).

Every table and figure is a recipe called "ifbench", and a run that two of them need has one name and one set of
settings: it is trained once, whichever comes first.

Departs from the paper: rewards are those of the repaired checks (`ifeval`), since the published ones can be gamed (spec
ifbench §5); the tests are asked with the published ones. The clip is 0.2 on both sides, as in the code of 2025; later
code has 0.272 above. How the loss is averaged is not printed: here it is over all tokens of an update. Prompts of the
ablations are drawn anew (`recipes/ifbench/data.py`), 60,000 of them, where the paper has its own.
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
DECODE_MESH = "fsdp=-1,tp=4"  # reading the weights takes most of the time of writing: each chip a fourth
POD = "v5p-64"  # 32 chips, an update's 384 responses in micro-batches of one or two a chip
PROMPT = 2048  # tokens
PUBLISHED_SET = Source("hf:allenai/IF_multi_constraints_upto5")  # 95,373 prompts with up to five instructions
REWARD = Reward(verifier="10 * ifeval", missing_end=0.0)  # ten times the share that is followed
EVERY = 25  # steps between validations on IFEval
STEPS = 2000
# Torch's AdamW as the released code calls it.
OPTIMIZER = OptimizerConfig("5e-7 constant", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)


def recipe(*stages: Stage) -> Recipe:
    """A table or figure on the pod that its stages are sized for."""
    return Recipe(RECIPE, stages, mesh=MESH, decode_mesh=DECODE_MESH, pod=POD)


def made(key: str, *, seed: int = 1, **arguments: Any) -> MakeData:
    """Prompts of one's own (`recipes/ifbench/data.py`), 60,000 of them unless said otherwise."""
    return MakeData(
        f"prompts-{key}", function="recipes.ifbench.data:write", seed=seed, arguments={"count": 60_000, **arguments}
    )


def source_of(prompts: MakeData | None) -> Source:
    """Where the prompts are read; without any, the published set."""
    return PUBLISHED_SET if prompts is None else Source(f"stage:{prompts.name}/prompts.jsonl")


def prompts_of(policy: Policy, prompts: MakeData | None) -> DataSpec:
    """One prompt a row; longer ones are left out."""
    return DataSpec(
        (source_of(prompts),), policy.tokenizer, PROMPT, kind="prompts", template=policy.template,
        keep=("dataset", "ground_truth"), on_bad="skip",
    )  # fmt: skip


def grpo(policy: Policy, prompts: MakeData | None = None, **changes: Any) -> GRPO:
    """48 prompts a rollout, 16 answers each, two updates; divergence is priced for instruct models alone.

    The variance of a group is the one over all its answers, and groups without any are left out, as in the released
    code; clipping at 0.2 on both sides is that of 2025.
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
