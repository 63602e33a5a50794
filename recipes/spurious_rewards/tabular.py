"""The clipping bias of random rewards for a policy that is a single softmax (arXiv 2506.10947, Section 5).

    python -m recipes.spurious_rewards.tabular

An action is a response of one token. A rollout is split into 8 mini-batches; the ratio is 1 only in the first. Without
clipping the expected gradient is 0 for any ratio, so that every logit is a martingale under gradient steps without
momentum: only clipping can change its mean.
"""

from __future__ import annotations

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.evaluate.statistics import Estimate, mean
from easylm_jax.objectives import group_advantages, grpo_loss

LOGITS = (0.0, -2.4, -2.8, -3.2, -3.6)  # the first action has probability 0.80
SAMPLES, GROUPS, UPDATES = 16, 16, 8
RATE = 1.0  # large enough that some ratios leave 1 ± 0.2 within a rollout, as those of a language model do


def gradient(logits: jax.Array, old: jax.Array, actions: jax.Array, advantages: jax.Array, clip: float) -> jax.Array:
    """∂ (GRPO's objective) / ∂ logits, averaged over responses: actions int [N], advantages [N]."""

    def loss(logits):
        logprobs = jax.nn.log_softmax(logits)[actions][:, None]
        before = jax.nn.log_softmax(old)[actions][:, None]
        total, count, _ = grpo_loss(
            logprobs, before, advantages, jnp.ones_like(logprobs), clip_low=clip, clip_high=clip
        )  # fmt: skip
        return -total / count

    return jax.grad(loss)(logits)


def coins(key: jax.Array, groups: int, share: float = 0.5) -> jax.Array:
    """Advantages [groups · SAMPLES] of rewards that are 1 with probability `share`."""
    rewards = jax.random.bernoulli(key, share, (groups, SAMPLES)).astype(jnp.float32)
    return group_advantages(rewards, "grpo").reshape(-1)


def train(key: jax.Array, rollouts: int, updates: int = UPDATES, clip: float = 0.2) -> jax.Array:
    """Logits [actions] after `rollouts` rollouts of GROUPS prompts with random rewards, each with `updates` updates."""

    def rollout(logits, key):
        draw, reward = jax.random.split(key)
        rows = GROUPS * SAMPLES
        actions = jax.random.categorical(draw, logits, shape=(rows,)).reshape(updates, -1)
        advantages = (
            coins(reward, GROUPS).reshape(SAMPLES * GROUPS // updates, updates).T
        )  # a group is spread over updates

        def step(new, part):
            return new + RATE * gradient(new, logits, *part, clip), None

        return jax.lax.scan(step, logits, (actions, advantages))[0], None

    return jax.lax.scan(rollout, jnp.array(LOGITS), jax.random.split(key, rollouts))[0]


@functools.partial(jax.jit, static_argnames=("rollouts", "updates"))
def _runs(keys: jax.Array, clip: float, rollouts: int, updates: int) -> jax.Array:
    return jax.vmap(lambda key: train(key, rollouts, updates, clip))(keys)


def drift(runs: int, rollouts: int, *, updates: int = UPDATES, clip: float = 0.2, seed: int = 0) -> Estimate:
    """Change of the most likely action's logit relative to the mean of the others, over independent runs."""
    keys = jax.random.split(jax.random.key(seed), runs)
    after = np.asarray(_runs(keys, clip, rollouts, updates), np.float64)
    margin = after[:, 0] - after[:, 1:].mean(axis=1)
    return mean(margin - (LOGITS[0] - np.mean(LOGITS[1:])))


def table(runs: int = 2_000, rollouts: int = 20) -> str:
    """The drift with and without clipping, with 95 % intervals, as Markdown."""
    ways = {
        "clip 0.2, 8 updates": {},
        "no clip, 8 updates": {"clip": math.inf},
        "clip 0.2, one update (the ratio is 1)": {"updates": 1},
    }
    lines = ["| | drift of the likeliest action's logit | 95 % |", "|---|---|---|"]
    for name, how in ways.items():
        found = drift(runs, rollouts, **how)
        low, high = found.interval
        lines.append(f"| {name} | {found.value:+.4f} | {low:+.4f} to {high:+.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
