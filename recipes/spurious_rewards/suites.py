"""The evaluations of Spurious Rewards (arXiv 2506.10947, Section 2): MATH-500, AMC, AIME.

MATH-500 is decoded greedily; the others are the mean over 8 responses at temperature 0.6. A further column of each is
the share of responses that contain "python". Answers are extracted without the tags of base models, as in the paper's
stand-alone evaluation. Greedy scores vary with hardware and batch size; the standard error on 500 problems is about 2
points, on 30 about 6.
"""

from __future__ import annotations

from easylm_jax.config import Compute, Entry, Evaluate, Published, Recipe, Stage, Task
from easylm_jax.evaluate import tasks
from recipes.spurious_rewards import published, stages
from recipes.spurious_rewards.data import POLICIES, Policy

ALL = (tasks.math500, tasks.amc, tasks.aime2024, tasks.aime2025)


def asked(policy: Policy, benchmarks=ALL) -> tuple[Task, ...]:
    """The benchmarks in the policy's chat template. OLMo 2 7B has a large cache (no grouped queries)."""
    slots = 256 if policy.key.startswith("olmo2-7b") else 512
    return tuple(
        tasks.with_sampling(task(policy.init, policy.template), stop_strings=policy.stops, slots=slots)
        for task in benchmarks
    )


def table(
    name: str,
    policy: Policy,
    entries: tuple[Entry, ...],
    figures: tuple[Published, ...] = (),
    judged: tuple[Task, ...] | None = None,
) -> Evaluate:
    """Evaluates the policy before training and `entries`. The score is that of the first benchmark, since no table of
    the paper averages several."""
    base = Entry(published.BASE, (policy.init,))
    tasks = asked(policy) if judged is None else judged
    return Evaluate(
        f"{name}-{policy.key}",
        title=f"Spurious Rewards, {name.replace('-', ' ')}: {policy.title}",
        tasks=tasks,
        entries=(base, *entries),
        published=figures,
        compute=Compute(dtype="bfloat16"),
        average=(tasks[0].name,),
    )


def entry(name: str, *runs: Stage) -> Entry:
    """A row: one reward with a run for each seed, compared with the untrained policy."""
    return Entry(name, tuple(run.name for run in runs), over=published.BASE)


def grid(
    name: str,
    keys: tuple[str, ...],
    rewards: tuple[str, ...],
    *,
    steps: int = stages.STEPS,
    figures: dict[str, tuple[Published, ...]] | None = None,
) -> Recipe:
    """Every policy with every reward and each of the seeds, and a table for each policy."""
    made: dict[str, Stage] = {}
    for policy in (POLICIES[key] for key in keys):
        runs = {reward: stages.seeded(stages.run(policy, reward, steps=steps)) for reward in rewards}
        rows = tuple(entry(reward, *seeds) for reward, seeds in runs.items())
        one = table(name, policy, rows, (figures or {}).get(policy.key, ()))
        trained = (run for seeds in runs.values() for run in seeds)
        made |= {stage.name: stage for stage in (*stages.before(policy, rewards), *trained, one)}
    return stages.recipe(*made.values())
