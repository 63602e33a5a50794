"""Spurious Rewards, Figure 18: five prompts before and after training Qwen2.5-Math-7B (arXiv 2506.10947, Figure 18).

Each prompt with three rewards and each of the seeds, 150 steps; a prompt is used in training and in evaluation. The
table `figure18-prompts` evaluates the untrained model with all five prompts: the baselines of the trained ones.
"""

import dataclasses

from easylm_jax.config import Compute, DataSpec, Entry, Evaluate, Source, Stage, Task, Validation
from easylm_jax.evaluate import tasks
from recipes.spurious_rewards import data, published, stages, suites

POLICY = data.POLICIES["qwen2.5-math-7b"]
REWARDS = ("ground truth", "format", "random 0.5")


def problems(prompt: str, which: str) -> DataSpec:
    """The problems of "train" or "test" with a prompt."""
    return data.problems(POLICY, Source(f"stage:{data.asked(prompt, which).name}/problems.jsonl"))


def task(prompt: str) -> Task:
    """MATH-500 with a prompt; the column "parsable" is the share of responses with a boxed answer."""
    one = tasks.with_sampling(tasks.math500(POLICY.init, POLICY.template), slots=512)
    return dataclasses.replace(
        one, name=f"{published.MATH}, {prompt}", data=problems(prompt, "test"),
        also=(*one.also, ("parsable", "boxed_format")),
    )  # fmt: skip


def run(prompt: str, reward: str) -> tuple[Stage, ...]:
    """GRPO with a prompt and a reward, once for each seed."""
    one = stages.run(
        POLICY,
        reward,
        steps=150,
        name_of_run=f"{POLICY.key}-{data.slug(prompt)}-{data.slug(reward)}",
        data=problems(prompt, "train"),
        validation=Validation(problems(prompt, "test"), every=stages.EVERY),
    )
    return stages.seeded(one)


written = [data.asked(prompt, which) for prompt in data.PROMPTS for which in ("train", "test")]
trained = {prompt: {reward: run(prompt, reward) for reward in REWARDS} for prompt in data.PROMPTS}
recipe = stages.recipe(
    *written,
    Evaluate(
        "figure18-prompts",
        title=f"Spurious Rewards, Figure 18: {POLICY.title} before training, five prompts",
        tasks=tuple(task(prompt) for prompt in data.PROMPTS),
        entries=(Entry(published.BASE, (POLICY.init,)),),
        published=published.prompts(),
        compute=Compute(dtype="bfloat16"),
    ),
    *(stage for runs in trained.values() for seeds in runs.values() for stage in seeds),
    *(
        suites.table(
            f"figure18-{data.slug(prompt)}",
            POLICY,
            tuple(suites.entry(reward, *seeds) for reward, seeds in runs.items()),
            judged=(task(prompt),),
        )
        for prompt, runs in trained.items()
    ),
)
