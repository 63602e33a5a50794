"""IF-RLVR (arXiv 2507.02833) on one CPU: instructions that the SFT model follows half of the time, improved by GRPO.

    easylm run recipes/ifbench/small.py

A small OLMo 2 is pre-trained on pages where instructions are followed, and fine-tuned on responses that ignore half of
them; then GRPO has the share of instructions that a response follows as its reward, as in the paper. The table
evaluates held-out requests with the instructions of training, and with two others. Sizes and learning rates are this
project's own.
"""

from easylm_jax.config import (
    GRPO,
    SFT,
    Checkpoints,
    DataSpec,
    Entry,
    Evaluate,
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
from recipes.quickstart import LARGER, conversations, pages

PROMPT, ANSWER = 84, 40  # tokens
SEEDS = (0, 1, 2)


def prompts(name: str, limit: int | None = None) -> DataSpec:
    source = Source(f"stage:data/{name}", limit=limit)
    return DataSpec(
        (source,), "stage:tokenizer", PROMPT, kind="prompts", template="tulu", keep=("dataset", "ground_truth"),
        overlong="error",
    )  # fmt: skip


def followed(name: str, file: str) -> Task:
    """Prompt-level strict accuracy, with the share of instructions and loose accuracy as further columns."""
    return Task(
        name,
        prompts(file),
        "instructions('fixed', 'strict', 'prompt')",
        Sampling(ANSWER, temperature=0.0, slots=200),
        also=(("share", "ifeval"), ("loose", "instructions('fixed', 'loose', 'prompt')")),
    )


def grpo(seed: int) -> GRPO:
    return GRPO(
        f"grpo-{seed}",
        seed=seed,
        init="sft",
        reward=Reward(verifier="10 * ifeval", missing_end=0.0),
        data=prompts("prompts.jsonl"),
        batch=32,
        samples=8,
        mini_batch=128,
        steps=40,
        sampling=Sampling(ANSWER, temperature=1.0, slots=128),
        drop_equal=True,
        validation=Validation(prompts("prompts_held_out.jsonl", limit=200), every=10),
        check="ifeval",
        optimizer=OptimizerConfig("1e-4 constant", weight_decay=0.0),
    )


recipe = Recipe(
    "ifbench-small",
    stages=(
        MakeData("data", function="recipes.ifbench.small_data:write", seed=1),
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
            optimizer=OptimizerConfig("1e-3 linear to 0 warmup 3%", weight_decay=0.0),
            checkpoints=Checkpoints(every=20),
        ),
        *map(grpo, SEEDS),
        Evaluate(
            "table",
            title="IF-RLVR, small: instructions followed on held-out requests",
            tasks=(
                followed("trained", "prompts_held_out.jsonl"),
                followed("others", "prompts_others.jsonl"),
            ),
            entries=(
                Entry("SFT", ("sft",)),
                Entry("GRPO", tuple(f"grpo-{seed}" for seed in SEEDS), over="SFT"),
            ),
            reference="sft",
            kl_prompts=128,
        ),
    ),
)
