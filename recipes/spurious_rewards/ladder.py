"""Spurious Rewards (arXiv 2506.10947, Figure 1, Section 5) on one CPU: five rewards, and one without clipping.

    easylm run recipes/spurious_rewards/ladder.py
    python -m recipes.spurious_rewards.sharpness runs/spurious-ladder

The initial model is a small SFT model, whose training conversations were inconsistent as the quickstart's are: it can
work out a problem and end with "#### answer", but often does neither. Each arm is GRPO from this model on the same
problems with three seeds; arms differ only in the reward. The labels of "majority vote" and "incorrect" come from the
model. No held-out problem was ever trained on, in any wording, so no reward can elicit memorised answers: a random
reward should have no effect.

A rollout has 8 updates as in the paper, so that clipping applies from the second one on (spec spurious_rewards §8);
sizes and learning rates are this project's own.
"""

import dataclasses
import math

from easylm_jax.config import (
    GRPO,
    SFT,
    Checkpoints,
    DataSpec,
    Entry,
    Evaluate,
    MajorityVote,
    MakeData,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Reward,
    Sampling,
    Source,
    Task,
    Tokenizer,
    Validation,
)  # fmt: skip
from recipes.quickstart import CHECK, LARGER, SEEDS, conversations, pages, prompts, rate

ANSWER = 32  # tokens; the longest reference answer has 28

HERE = "recipes.spurious_rewards.ladder_checks"
FORMAT = f"{HERE}:answer_line"
SAMPLING = Sampling(ANSWER, temperature=1.0, slots=128)
STEPS = 40


def labelled(file: str) -> DataSpec:
    """Problems with the pseudo-labels of the stage `votes`."""
    return dataclasses.replace(prompts("prompts.jsonl"), sources=(Source(f"stage:votes/{file}"),))


PROBLEMS = prompts("prompts.jsonl", limit=1_500)
ARMS = {  # name: reward, problems, clipping range
    "ground truth": (CHECK, PROBLEMS, 0.2),
    "majority vote": (CHECK, labelled("labelled.jsonl"), 0.2),
    "format": (FORMAT, PROBLEMS, 0.2),
    "incorrect": (CHECK, labelled("incorrect.jsonl"), 0.2),
    "random": ("random(0.5)", PROBLEMS, 0.2),
    "random, no clip": ("random(0.5)", PROBLEMS, math.inf),
}
BASE = (
    MakeData("data", function="recipes.arithmetic:write", seed=1),
    Tokenizer("tokenizer", sources=(Source("stage:data/vocabulary.jsonl"),), vocab_size=512),
    Pretrain(
        "pretrain",
        model=LARGER,
        data=pages("pretrain.jsonl"),
        validation=Validation(pages("pretrain_held_out.jsonl"), every=100),
        batch=16,
        steps=1_200,
        z_loss=1e-4,  # OLMo 2 §3.3.3
        optimizer=OptimizerConfig("3e-3 cosine to 10% warmup 20 steps"),
        checkpoints=Checkpoints(keep_every=100),
    ),
    SFT(
        "sft",
        init="pretrain",
        data=conversations("sft.jsonl"),
        validation=Validation(conversations("sft_held_out.jsonl")),
        batch=16,
        epochs=2,
        optimizer=rate(1e-3, "linear to 0 warmup 3%"),
    ),
)


def arm(name: str, seed: int) -> GRPO:
    """One run: 16 problems per rollout, 8 responses to each, 8 updates of 16 responses."""
    reward, data, clip = ARMS[name]
    return GRPO(
        f"{name.replace(', ', '-').replace(' ', '-')}-{seed}",
        seed=seed,
        init="sft",
        reward=Reward(verifier=reward, missing_end=0.0),
        data=data,
        batch=16,
        samples=8,
        mini_batch=16,
        steps=STEPS,
        sampling=SAMPLING,
        clip_low=clip,
        clip_high=clip,
        whiten="rollout",
        validation=Validation(prompts("prompts_held_out.jsonl", limit=300), every=20),
        check=CHECK,
        optimizer=dataclasses.replace(rate(3e-5, "constant"), b2=0.95),
    )


def table(name: str, title: str, runs: dict[str, tuple[str, ...]]) -> Evaluate:
    """Evaluates the SFT model and the runs of each arm on all held-out problems, greedily."""
    return Evaluate(
        name,
        title=title,
        tasks=(
            Task(
                "problems", prompts("prompts_held_out.jsonl"), CHECK, Sampling(ANSWER, temperature=0.0, slots=256),
                also=(("answer line", FORMAT),),
            ),
        ),
        reference="sft",
        entries=(Entry("SFT", ("sft",)), *(Entry(arm, stages, over="SFT") for arm, stages in runs.items())),
    )  # fmt: skip


recipe = Recipe(
    "spurious-ladder",
    stages=(
        *BASE,
        MajorityVote(
            "votes", init="sft", data=PROBLEMS, samples=64, batch=64, sampling=SAMPLING, check=CHECK,
            extract=f"{HERE}:answer_of",
        ),
        *(arm(name, seed) for name in ARMS for seed in SEEDS),
        table("table", "Spurious rewards, small: held-out problems", {
            name: tuple(arm(name, seed).name for seed in SEEDS) for name in ARMS
        }),
    ),
)  # fmt: skip
