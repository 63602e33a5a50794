"""The whole way at a size for one CPU: from raw text to PPO against DPO, judged on held-out problems.

    make quickstart                     # or: easylm run recipes/quickstart.py

A vocabulary, a small OLMo 2 pre-trained, SFT on uneven conversations; then preferences of its own making (its answers,
ordered by the gold check), a reward model and DPO on the same pairs, PPO from the reward model, and GRPO from the gold
check itself. Every method starts from the same SFT model, in three seeds. The stage `table` asks all of them the same
held-out problems and lets `arithmetic.check` judge.

What the methods can gain is built into the conversations, not tuned for one SFT model: of the questions in the second
wording 70 % have a short answer without the working and the check line that the gold check asks for. So the SFT model,
asked greedily, fails nearly all of these, half of all problems, though it can work most of them out; and as it gives
the better answer to three of ten when it samples, pairs and rewards have something to choose.
`benchmarks/quickstart_seeds.py` runs all of it with other seeds and counts how often that holds.

No network, no download: the tasks are comparisons and small instructions (`recipes/arithmetic.py`). Sizes and rates are
this project's own, chosen so that every stage visibly learns within a minute or so; the schedules have the papers'
shapes.
"""

from easylm_jax.config import (
    DPO,
    GRPO,
    PPO,
    SFT,
    BestOfN,
    Checkpoints,
    Compute,
    DataSpec,
    DecoderConfig,
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

SEQUENCE = 128
PROMPT = 32  # tokens; the longest prompt of the tasks has 22
ANSWER = 20  # tokens; the longest reference answer has 16
SEEDS = (0, 1, 2)

# The block of OLMo 2 (arXiv 2501.00656, §2) at 2 layers, the fewest that learn to copy: 0.56 million parameters.
MODEL = DecoderConfig(
    family="olmo2", layers=2, width=128, heads=4, ffn=384, vocab=512, context=SEQUENCE, qk_norm=True
)  # fmt: skip
# Of the small recipes whose tasks are longer: 1.1 million parameters.
LARGER = DecoderConfig(
    family="olmo2", layers=2, width=192, heads=4, ffn=512, vocab=512, context=SEQUENCE, qk_norm=True
)  # fmt: skip
COMPUTE = Compute(unroll=2)  # both layers in one iteration: on CPUs a fifth faster than a scan over them
# Fewer than every step, the default: stages last seconds, and a killed run does at most 20 steps again.
CHECKPOINTS = Checkpoints(every=20)
CHECK = "recipes.arithmetic:check"


def pages(name: str) -> DataSpec:
    return DataSpec((Source(f"stage:data/{name}"),), "stage:tokenizer", SEQUENCE)


def conversations(name: str) -> DataSpec:
    return DataSpec(
        (Source(f"stage:data/{name}"),), "stage:tokenizer", SEQUENCE, kind="chat", template="tulu", packing="best_fit"
    )


def prompts(name: str, limit: int | None = None) -> DataSpec:
    source = Source(f"stage:data/{name}", limit=limit)
    return DataSpec((source,), "stage:tokenizer", PROMPT, kind="prompts", template="tulu", keep=("answer",))


def pairs(**part: int) -> DataSpec:
    source = Source("stage:answers/pairs.jsonl", **part)
    return DataSpec(
        (source,), "stage:tokenizer", 2 * SEQUENCE, kind="preference", template="tulu",
        max_side_length=PROMPT + ANSWER,
    )  # fmt: skip


def rate(lr: float, shape: str) -> OptimizerConfig:
    """No decay, as everywhere in Tülu's post-training (spec tulu25 §4)."""
    return OptimizerConfig(f"{lr} {shape}", weight_decay=0.0)


# 64 answers at a time: calls shrink to 16 and 4 rows as answers end, and every number of rows is compiled for.
sampling = Sampling(ANSWER, temperature=1.0, slots=64)
held_out = Validation(prompts("prompts_held_out.jsonl", limit=200), every=10)
stages = [
    MakeData(
        "data",
        function="recipes.arithmetic:write",
        arguments={
            "pages": 8_000,
            "conversations": 2_400,
            "prompts": 4_000,
            "held_out": 600,
            "careless": 0.7,
            "opening": "It is ",
            "tasks": "short",
        },
        seed=1,
    ),
    Tokenizer("tokenizer", sources=(Source("stage:data/vocabulary.jsonl"),), vocab_size=512),
    Pretrain(
        "pretrain",
        model=MODEL,
        data=pages("pretrain.jsonl"),
        validation=Validation(pages("pretrain_held_out.jsonl"), every=500),
        batch=8,
        steps=1_000,
        z_loss=1e-4,  # OLMo 2 §3.3.3
        optimizer=OptimizerConfig("4e-3 cosine to 10% warmup 20 steps"),
        compute=COMPUTE,
        checkpoints=CHECKPOINTS,
    ),
    SFT(
        "sft",
        init="pretrain",
        data=conversations("sft.jsonl"),
        validation=Validation(conversations("sft_held_out.jsonl")),
        batch=8,
        epochs=2,
        optimizer=rate(1e-3, "linear to 0 warmup 3%"),  # Tülu 2 and 3: linear to 0 after 3 % warm-up
        compute=COMPUTE,
        checkpoints=CHECKPOINTS,
    ),
    BestOfN(
        "answers",
        init="sft",
        data=prompts("prompts.jsonl", limit=1_000),
        samples=8,
        pairs=2,
        batch=256,
        sampling=sampling,
        reward=Reward(verifier=CHECK, missing_end=0.0),
    ),
    RewardModel(
        "reward",
        init="sft",
        data=pairs(skip=200),
        validation=Validation(pairs(limit=200)),
        batch=8,
        epochs=2,
        optimizer=rate(1e-3, "linear to 10% warmup 3%"),
        compute=COMPUTE,
        checkpoints=CHECKPOINTS,
    ),
]
for seed in SEEDS:
    stages += [
        DPO(
            f"dpo-{seed}",
            seed=seed,
            init="sft",
            data=pairs(skip=200),
            batch=8,
            epochs=1,
            beta=0.3,
            # At 2e-4 it also lowers answers like the rejected ones: digits to sort fell from 97 to 74 % right.
            optimizer=rate(1e-4, "linear to 0 warmup 10%"),
            compute=COMPUTE,
            checkpoints=CHECKPOINTS,
        ),
        PPO(
            f"ppo-{seed}",
            seed=seed,
            init="sft",
            reward=Reward(model="reward"),
            data=prompts("prompts.jsonl"),
            batch=128,
            mini_batch=64,
            steps=12,
            sampling=sampling,
            kl=0.1,
            validation=held_out,
            check=CHECK,
            optimizer=rate(1e-4, "linear to 0 warmup 10%"),
            compute=COMPUTE,
            checkpoints=CHECKPOINTS,
        ),
        GRPO(
            f"grpo-{seed}",
            seed=seed,
            init="sft",
            reward=Reward(verifier=CHECK, missing_end=0.0),
            data=prompts("prompts.jsonl"),
            batch=32,
            samples=4,
            mini_batch=64,
            steps=16,
            sampling=sampling,
            validation=held_out,
            check=CHECK,
            optimizer=rate(1e-4, "linear to 0 warmup 10%"),
            compute=COMPUTE,
            checkpoints=CHECKPOINTS,
        ),
    ]
stages.append(
    Evaluate(
        "table",
        title="Quickstart: one SFT model, three ways on",
        tasks=(
            Task("problems", prompts("prompts_held_out.jsonl"), CHECK, Sampling(ANSWER, temperature=0.0, slots=64)),
        ),
        reference="sft",
        kl_prompts=128,
        entries=(
            Entry("pretrained", ("pretrain",)),
            Entry("SFT", ("sft",)),
            *(
                Entry(method, tuple(f"{method.lower()}-{seed}" for seed in SEEDS), over="SFT")
                for method in ("DPO", "PPO", "GRPO")
            ),
        ),
    )
)

# Whole runs took 11,200, 19,100 and 19,600 times the probe at their start on two cores, the last of them quiet.
recipe = Recipe("quickstart", stages=tuple(stages), length=17_000)
