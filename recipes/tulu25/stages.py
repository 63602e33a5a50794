"""The stages of Tülu 2.5 (arXiv 2406.09279) with its hyper-parameters (appendix F; allenai/EasyLM, notes on the paper).

All policies start from Tülu 2 13B. Every table is a recipe called "tulu25". A stage that several tables share has one
name and one set of settings, so it is trained only once. All batch sizes divide over `MESH`.

Departs from the paper's released code (spec tulu25 §13), except in `compat_13b.py`: PPO keeps the log-probabilities of
the rollout (in the released code the ratio is always 1) and whitens advantages per rollout, not per mini-batch; DPO
does not train headers without a user turn before them. Everywhere, log-probabilities, rewards and values are float32
instead of bfloat16.
"""

from __future__ import annotations

from easylm_jax.config import (
    DPO,
    PPO,
    Checkpoints,
    Compute,
    OptimizerConfig,
    Recipe,
    Reward,
    RewardModel,
    Sampling,
    Stage,
)  # fmt: skip
from recipes.tulu25.data import Preferences, Prompts

RECIPE = "tulu25"
SFT = {"13b": "hf:allenai/tulu-2-13b", "70b": "hf:allenai/tulu-2-70b"}
MESH = "fsdp=32,tp=2"
DECODE_MESH = "fsdp=-1,tp=4"  # reading the weights dominates decoding; each chip reads a fourth
POD = "v5p-128"  # 64 chips; in DPO, 2 chips per row
REPLY = 1024  # tokens of a response
REMAT = {"13b": "attention", "70b": "full"}
KL = {"13b": 0.05, "70b": 0.0325}  # KL coefficient, by size of the reward model
SEED = 42
CHECKPOINTS = Checkpoints(when_busy="skip")


def recipe(*stages: Stage) -> Recipe:
    """The recipe of a table or figure, for the pod that its batch sizes are chosen for."""
    return Recipe(RECIPE, stages, mesh=MESH, decode_mesh=DECODE_MESH, pod=POD)


def optimizer(lr: str) -> OptimizerConfig:
    """AdamW without weight decay, the same for every stage; the betas are EasyLM's."""
    return OptimizerConfig(lr, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=1.0)


def reward_model(size: str, data: Preferences) -> RewardModel:
    """One epoch in batches of 512 pairs; those with a side above 4096 tokens are left out.

    The head is initialised as in the released code, with standard deviation 0.02 (allenai/EasyLM, EasyLM/models/llama).
    """
    return RewardModel(
        f"rm-{size}-{data.key}",
        head_init="tulu25",
        init=SFT[size],
        data=data.pairs(truncated="drop"),
        batch=512,
        accumulate=16,
        epochs=1,
        examples=data.size,
        seed=SEED,
        optimizer=optimizer("1e-5 linear to 1e-6 warmup 3%"),
        compute=Compute(dtype="bfloat16", remat=REMAT[size]),
        checkpoints=CHECKPOINTS,
    )


def dpo(data: Preferences) -> DPO:
    """Three epochs in batches of 32 pairs; sides above 4096 tokens are truncated."""
    return DPO(
        f"dpo-{data.key}",
        init=SFT["13b"],
        data=data.pairs(truncated="truncate"),
        batch=32,
        epochs=3,
        examples=data.size,
        seed=SEED,
        beta=0.1,
        label_smoothing=0.0,
        optimizer=optimizer("5e-7 linear to 0 warmup 10%"),
        compute=Compute(dtype="bfloat16", remat=REMAT["13b"]),
        checkpoints=CHECKPOINTS,
    )


def ppo(reward: RewardModel, prompts: Prompts) -> PPO:
    """One epoch over the prompts, 512 per rollout, in 8 updates of 64 responses; each response is used once.

    The policy starts from Tülu 2 13B, the value model from the reward model, and both have the same learning rate.
    Responses are sampled at temperature 0.7 with top-k 50, and log-probabilities in training are at temperature 1, as
    in the released code.
    """
    _, size, key = reward.name.split("-", 2)
    return PPO(
        f"ppo-{reward.name}" if prompts.key == key else f"ppo-{reward.name}-on-{prompts.key}",
        init=SFT["13b"],
        reward=Reward(model=reward.name, missing_end=-10.0),
        data=prompts.data,
        batch=512,
        samples=1,
        mini_batch=64,
        rollout_epochs=1,
        epochs=1,
        examples=prompts.size,
        seed=SEED,
        sampling=Sampling(REPLY, temperature=0.7, top_k=50, slots=512),
        logprob_temperature=1.0,
        kl=KL[size],
        kl_kind="k1",
        gamma=1.0,
        lam=0.95,
        clip=0.2,
        value_clip=0.2,
        value_coefficient=0.1,
        whiten="rollout",
        optimizer=optimizer("1e-6 constant warmup 10%"),
        compute=Compute(dtype="bfloat16", remat=REMAT[size]),
        checkpoints=CHECKPOINTS,
    )
