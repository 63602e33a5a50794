"""The stages of Spurious Rewards (arXiv 2506.10947) with its hyper-parameters (Section 2, appendix on training details;
ruixin31/Spurious_Rewards).

Every figure is a recipe called "spurious-rewards". A run that several figures need has one name and one set of
settings, so it is trained only once. Every row of a table is trained with each of `SEEDS`, since greedy scores vary
from run to run (spec spurious_rewards §6, §10). To train one seed alone, name its stage: that of seed 42 has no suffix,

    easylm run recipes/spurious_rewards/figure1_models.py --only qwen2.5-math-7b-format
    easylm run recipes/spurious_rewards/figure1_models.py --only qwen2.5-math-7b-format-seed43

Departs from the paper: the loss is the mean over all tokens of an update. The released code takes the mean over the
tokens of 4 packed responses and then the mean of these, which is `RELEASED_LOSS`; the paper's Equation 1 has a sum over
tokens and its Appendix B a mean for each response (`aggregation="sequence"`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from easylm_jax.config import (
    GRPO,
    Checkpoints,
    Compute,
    MajorityVote,
    OptimizerConfig,
    Recipe,
    Reward,
    Sampling,
    Source,
    Stage,
    Validation,
)  # fmt: skip
from recipes.spurious_rewards import arms, data
from recipes.spurious_rewards.data import LABELLERS, POLICIES, Policy

RECIPE = "spurious-rewards"
POD = "v5p-32"
MESH = "fsdp=-1"  # v5p-32: 16 chips, 8 responses of an update on each, in micro-batches of 4
DECODE_MESH = "fsdp=-1,tp=2"  # each chip reads half of the weights per token; the 1.5B model has two key-value heads
STEPS = 300  # of the main runs
SEED = 42  # of the released runs
SEEDS = (SEED, 43, 44)  # of every row of a table
EVERY = 10  # steps between evaluations on MATH-500; the paper evaluates every step and smooths over ten
OPTIMIZER = OptimizerConfig("5e-7 constant", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=1.0)
RELEASED_LOSS = {"aggregation": "bnpo", "bnpo_rows": 4}  # `changes` of `run` for the loss of the released code
SAMPLING = Sampling(data.ANSWER, temperature=1.0, top_p=1.0, slots=512)


def seeded(run: GRPO) -> tuple[GRPO, ...]:
    """The run with each of `SEEDS`; the run of seed 42 keeps its name, the others get a suffix "-seed<seed>"."""
    return tuple(
        dataclasses.replace(run, seed=seed, name=run.name if seed == SEED else f"{run.name}-seed{seed}")
        for seed in SEEDS
    )  # fmt: skip


def recipe(*stages: Stage) -> Recipe:
    """The recipe of a figure, for the pod that its batch sizes are chosen for."""
    return Recipe(RECIPE, stages, mesh=MESH, decode_mesh=DECODE_MESH, pod=POD)


def votes(policy: Policy) -> MajorityVote:
    """Majority votes over 64 responses of the untrained model to every problem, without chat template (Section 2)."""
    labeller = POLICIES[LABELLERS.get(policy.key, policy.key)]
    return MajorityVote(
        f"votes-{labeller.key}",
        init=labeller.init,
        data=data.all_problems(labeller),
        samples=64,
        batch=64,
        sampling=SAMPLING,
        check="math(style='spurious')",
        seed=SEED,
        compute=Compute(dtype="bfloat16"),
    )


def run(policy: Policy, name: str, *, steps: int = STEPS, name_of_run: str | None = None, **changes: Any) -> GRPO:
    """GRPO of a policy with the reward called `name`: 64 problems, 16 responses each, 8 updates of 128 responses.

    There is no KL penalty and no entropy bonus. Advantages are divided by the standard deviation of the group and then,
    as in the released code, standardised over all tokens of the rollout. `changes` are fields of the stage; a run that
    differs in more than reward and steps needs its own name, `name_of_run`.
    """
    arm = arms.arm(name)
    stage = GRPO(
        name_of_run or f"{policy.key}-{data.slug(name)}" + ("" if steps == STEPS else f"-{steps}"),
        init=policy.init,
        reward=Reward(verifier=arms.reward(arm, policy), missing_end=None),
        data=_problems(policy, arm.labels),
        validation=Validation(data.math500(policy), every=EVERY),
        check=arms.math_of(policy),
        batch=64,
        samples=16,
        mini_batch=128,
        accumulate=2,
        steps=steps,
        seed=SEED,
        sampling=dataclasses.replace(SAMPLING, stop_strings=policy.stops),
        kl=0.0,
        advantages="grpo",
        whiten="rollout",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="token",
        optimizer=OPTIMIZER,
        compute=Compute(dtype="bfloat16", remat="attention"),
        checkpoints=Checkpoints(every=10, latest=1, when_busy="skip"),
    )
    return dataclasses.replace(stage, **changes)


def _problems(policy: Policy, labels: str):
    if labels == "truth":
        return data.deepscaler(policy)
    if labels == "one":
        return data.problems(policy, Source(f"stage:{data.ONE.name}/problem.jsonl"))
    return data.math500(policy) if labels == "test" else data.labelled(policy, votes(policy).name, labels)


def before(policy: Policy, names: tuple[str, ...]) -> tuple[Stage, ...]:
    """Stages that these rewards of a policy need first: majority votes, and the problem of one-shot training."""
    needed = {arms.arm(name).labels for name in names}
    made: list[Stage] = [votes(policy)] if needed & {"labelled", "incorrect"} else []
    return (*made, data.ONE) if "one" in needed else tuple(made)
