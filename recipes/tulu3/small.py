"""Tülu 3's RLVR (arXiv 2411.15124, Section 6) on one CPU: PPO with a value model from a reward model.

    easylm run recipes/tulu3/small.py

A small OLMo 2 is pre-trained on correct responses to word problems, LaTeX problems and instructions, and fine-tuned on
responses with errors. Prompts have the format of the published rows (`recipes/tulu3/small_data.py`). A reward model is
trained on pairs of the SFT model's responses and initialises PPO's value model; its score is not part of the reward,
which is 10 for a response that the row's verifier accepts and −10 for one without an end. GRPO uses the same prompts
(Tülu 3.1). The shapes of schedules are the paper's; sizes and learning rates are this project's own.
"""

from easylm_jax.config import (
    GRPO,
    PPO,
    SFT,
    BestOfN,
    Checkpoints,
    DataSpec,
    Entry,
    Evaluate,
    MakeData,
    OptimizerConfig,
    Pretrain,
    Recipe,
    Reward,
    RewardModel,
    Sampling,
    Source,
    Task,
    Tokenizer,
    Validation,
)  # fmt: skip
from recipes.quickstart import LARGER, SEQUENCE, conversations, pages

PROMPT, ANSWER = 84, 40  # tokens
SEEDS = (0, 1)
VERIFIER = "by_dataset"  # a row names its verifier


def prompts(name: str, limit: int | None = None) -> DataSpec:
    source = Source(f"stage:data/{name}", limit=limit)
    return DataSpec(
        (source,), "stage:tokenizer", PROMPT, kind="prompts", template="tulu", keep=("dataset", "ground_truth"),
        overlong="error",
    )  # fmt: skip


def pairs(**part: int) -> DataSpec:
    source = Source("stage:answers/pairs.jsonl", **part)
    return DataSpec(
        (source,), "stage:tokenizer", 2 * SEQUENCE, kind="preference", template="tulu",
        max_side_length=PROMPT + ANSWER,
    )  # fmt: skip


def task(name: str, file: str, verifier: str) -> Task:
    return Task(name, prompts(file), verifier, Sampling(ANSWER, temperature=0.0, slots=150))


def tuned(lr: str) -> OptimizerConfig:
    return OptimizerConfig(lr, b2=0.999, weight_decay=0.0)


sampling = Sampling(ANSWER, temperature=1.0, slots=128)
held_out = Validation(prompts("gsm8k_held_out.jsonl", limit=150), every=10)


def ppo(seed: int) -> PPO:
    """PPO: a rollout is one batch and used four times (Table 21)."""
    return PPO(
        f"ppo-{seed}",
        seed=seed,
        init="sft",
        value="rm",
        reward=Reward(verifier=f"10 * {VERIFIER}", missing_end=-10.0),
        data=prompts("prompts.jsonl"),
        batch=128,
        rollout_epochs=4,
        steps=40,
        sampling=sampling,
        kl=0.05,
        validation=held_out,
        check=VERIFIER,
        optimizer=tuned(
            "1e-4 linear to 0 horizon 16000 steps"
        ),  # a hundred times the length of the run, so it hardly decreases
    )


def grpo(seed: int) -> GRPO:
    """GRPO: two updates per rollout (docs/tulu3.md of allenai/open-instruct)."""
    return GRPO(
        f"grpo-{seed}",
        seed=seed,
        init="sft",
        reward=Reward(verifier=f"10 * {VERIFIER}", missing_end=0.0),
        data=prompts("prompts.jsonl"),
        batch=32,
        samples=8,
        mini_batch=128,
        steps=40,
        sampling=sampling,
        kl=0.01,
        validation=held_out,
        check=VERIFIER,
        optimizer=tuned("1e-4 constant"),
    )


recipe = Recipe(
    "tulu3-small",
    stages=(
        MakeData("data", function="recipes.tulu3.small_data:write", seed=1),
        Tokenizer("tokenizer", sources=(Source("stage:data/pages.jsonl", limit=2_000),), vocab_size=512),
        Pretrain(
            "pretrain",
            model=LARGER,
            data=pages("pages.jsonl"),
            batch=16,
            steps=1_500,
            z_loss=1e-4,
            optimizer=OptimizerConfig("3e-3 cosine to 10% warmup 20 steps"),
            checkpoints=Checkpoints(every=20),
        ),
        SFT(
            "sft",
            init="pretrain",
            data=conversations("sft.jsonl"),
            validation=Validation(conversations("sft_held_out.jsonl")),
            batch=16,
            epochs=2,
            optimizer=tuned("1e-3 linear to 0 warmup 3%"),
            checkpoints=Checkpoints(every=20),
        ),
        BestOfN(
            "answers",
            init="sft",
            data=prompts("prompts.jsonl", limit=1_500),
            samples=4,
            batch=128,
            sampling=sampling,
            reward=Reward(verifier=VERIFIER, missing_end=0.0),
        ),
        RewardModel(
            "rm",
            init="sft",
            data=pairs(skip=150),
            validation=Validation(pairs(limit=150)),
            batch=8,
            epochs=2,
            optimizer=tuned("5e-4 linear to 0"),
        ),
        *map(ppo, SEEDS),
        *map(grpo, SEEDS),
        Evaluate(
            "table",
            title="Tülu 3, small: RLVR on word problems, LaTeX problems and instructions",
            tasks=(
                task("GSM8K-like", "gsm8k_held_out.jsonl", "gsm8k"),
                task("MATH-like", "math_held_out.jsonl", "math"),
                task("IF-like", "ifeval_held_out.jsonl", "instructions('fixed', 'strict', 'prompt')"),
            ),
            entries=(
                Entry("SFT", ("sft",)),
                *(
                    Entry(method, tuple(f"{method.lower()}-{seed}" for seed in SEEDS), over="SFT")
                    for method in ("PPO", "GRPO")
                ),
            ),
            reference="sft",
            kl_prompts=128,
        ),
    ),
)
