"""Spurious Rewards, Figures 11 to 13: random rewards with clipping, and without it in three ways (arXiv 2506.10947).

650 steps of Qwen2.5-Math-7B with each of the seeds. Clipping has no effect if the clipping range is infinite, or if a
rollout has a single update, so that the ratio is 1: with all 1,024 responses in one mini-batch, or with 8 problems per
rollout. The latter two have an eighth of the updates. With an infinite range the weight is the ratio itself; the flag
of the released code for "no old log-probabilities" trains another objective. Figure 12 is `token_probability` in
`metrics.jsonl`.
"""

import math

from recipes.spurious_rewards import data, published, stages, suites

POLICY = data.POLICIES["qwen2.5-math-7b"]
STEPS = 650
WAYS = {
    "clip": {},
    "no clip": {"clip_low": math.inf, "clip_high": math.inf},
    "one mini-batch": {"mini_batch": 1024, "accumulate": 16},
    "small rollout": {"batch": 8},
}

runs = {
    way: [
        stages.run(POLICY, "random 0.5", steps=STEPS, name_of_run=f"clipping-{data.slug(way)}-{seed}", seed=seed, **how)
        for seed in stages.SEEDS
    ]
    for way, how in WAYS.items()
}
recipe = stages.recipe(
    *(run for seeds in runs.values() for run in seeds),
    suites.table(
        "figure11",
        POLICY,
        tuple(suites.entry(f"random 0.5, {way}", *seeds) for way, seeds in runs.items()),
        published.clipping(),
    ),
)
