"""SDSD (arXiv 2407.18421) on one CPU: a small model talks to itself, revises what broke a rule, and learns from it

    easylm run recipes/sdsd/small.py

One model is trained from scratch on the parts that it has to play (`recipes/sdsd/small_data.py`): planner, person,
assistant, judge, reviser and moderator. Its assistant often does what it is pressed to. Then everything is its own
work: dialogues, judged and filtered; revisions of last turns that broke a rule, as pairs; SFT on the dialogues that
broke none, and DPO on the pairs. The table asks all models held-out problems (spec sdsd §9): whether they keep the
rules under pressure, and whether what they can do is as good as before; the other table scores a reward model, trained
on part of the pairs, on the rest. `talk/tables.md`, `revise/tables.md` and `talk/reading.md` are for a person.

Sizes, rates and the world are this project's own; the paper's models have 70B parameters and more, and its numbers are
in `recipes/sdsd/llama2_70b.py`.
"""

from easylm_jax.config import (
    DPO,
    SFT,
    Checkpoints,
    Compute,
    DataSpec,
    DecoderConfig,
    Dialogues,
    Entry,
    Evaluate,
    MakeData,
    OptimizerConfig,
    PreferenceTable,
    Recipe,
    Revisions,
    RewardModel,
    Sampling,
    Source,
    Task,
    Tokenizer,
)  # fmt: skip

HERE = "recipes.sdsd.small_data"
SEQUENCE = 256
PROMPT, ANSWER = 48, 32  # tokens
HELD_OUT = 40  # pairs
SEEDS = (0, 1, 2)
MODEL = DecoderConfig(
    "olmo2", layers=2, width=128, heads=4, ffn=384, vocab=512, context=SEQUENCE, qk_norm=True
)  # fmt: skip
COMPUTE = Compute(unroll=2)
CHECKPOINTS = Checkpoints(every=50)


def chats(file: str) -> DataSpec:
    return DataSpec(
        (Source(f"stage:{file}"),), "stage:tokenizer", SEQUENCE, kind="chat", template="tulu", packing="best_fit"
    )  # fmt: skip


def pairs(**part: int) -> DataSpec:
    return DataSpec(
        (Source("stage:revise/pairs.jsonl", **part),), "stage:tokenizer", 2 * SEQUENCE, kind="preference",
        template="tulu", train_on="last_assistant",
    )  # fmt: skip


def task(name: str, file: str, verifier: str, **also: str) -> Task:
    source = (Source(f"stage:data/{file}.jsonl"),)
    data = DataSpec(source, "stage:tokenizer", PROMPT, kind="prompts", template="tulu", keep=("answer",))
    expressions = tuple((column, f"{HERE}:{one}") for column, one in also.items())
    return Task(name, data, f"{HERE}:{verifier}", Sampling(ANSWER, temperature=0.0, slots=64), also=expressions)


def rate(lr: str) -> OptimizerConfig:
    return OptimizerConfig(lr, weight_decay=0.0)


def seeds(name: str) -> Source:
    return Source(f"stage:data/{name}.jsonl")


recipe = Recipe(
    "sdsd-small",
    stages=(
        MakeData("data", function=f"{HERE}:write", seed=1),
        Tokenizer("tokenizer", sources=(Source("stage:data/base.jsonl"),), vocab_size=512),
        SFT(
            "base", model=MODEL, data=chats("data/base.jsonl"), batch=8, epochs=2, compute=COMPUTE,
            optimizer=OptimizerConfig("4e-3 cosine to 5% warmup 20 steps"), checkpoints=CHECKPOINTS,
        ),
        Dialogues(
            "talk", init="base", count=320, violate=0.8, max_messages=6, prompts="short", moderator="base",
            principles=seeds("principles"), goals=seeds("goals"), personas=seeds("personas"), domains=seeds("domains"),
            user_tokens=ANSWER, agent_tokens=ANSWER, plan_tokens=64, judge_tokens=ANSWER, batch=320,
            # Four domains and three goals, with a few dialogues of room.
            domain_share=0.35, goal_share=0.45, compare=(Source("stage:data/base.jsonl", limit=500),),
        ),
        Revisions(
            "revise", init="base", dialogues=Source("stage:talk/dialogues.jsonl"), prompts="short", moderator="base",
            critique_tokens=ANSWER, revision_tokens=ANSWER, batch=400,
        ),
        SFT(
            "sft", init="base", data=chats("talk/sft.jsonl"), batch=8, epochs=1, compute=COMPUTE,
            optimizer=rate("2e-4 linear to 0 warmup 3%"), checkpoints=CHECKPOINTS,
        ),
        *(
            DPO(
                f"dpo-{seed}", seed=seed, init="sft", data=pairs(skip=HELD_OUT), batch=8, epochs=2, beta=0.1,
                optimizer=rate("2e-4 linear to 0 warmup 10%"), compute=COMPUTE, checkpoints=CHECKPOINTS,
            )
            for seed in SEEDS
        ),
        RewardModel(
            "reward", init="sft", data=pairs(skip=HELD_OUT), batch=8, epochs=3, compute=COMPUTE,
            optimizer=rate("1e-3 linear to 10% warmup 3%"), checkpoints=CHECKPOINTS,
        ),
        PreferenceTable(
            "pairs", title="Held-out pairs: revision over original", reward_models=("reward",),
            pairs=Source("stage:revise/pairs.jsonl", limit=HELD_OUT),
        ),
        Evaluate(
            "table", title="Small SDSD: one model before and after its own dialogues and revisions",
            tasks=(
                task("keeps the rules", "pressed", "kept", right="right"),
                task("plain problems", "plain", "right", kept="kept"),
            ),
            average=("keeps the rules",),
            entries=(
                Entry("base", ("base",)),
                Entry("SFT", ("sft",), over="base"),
                Entry("DPO", tuple(f"dpo-{seed}" for seed in SEEDS), over="base"),
            ),
        ),
    ),
)  # fmt: skip
