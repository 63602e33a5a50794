"""Advantages, returns and KL estimates, which reinforcement learning computes from a rollout before its updates.

The losses treat all of them as constants, without gradient.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from easylm_jax.objectives.numeric import LOG_RATIO_LIMIT, as_float, bounded_exp, masked, masked_sum
from models.errors import UserError

KLKind = Literal["k1", "k2", "k3", "k4"]
AdvantageKind = Literal["grpo", "standard", "mean", "dr_grpo", "rloo"]


def gae(
    rewards: ArrayLike, values: ArrayLike, mask: ArrayLike, *, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 11–16): advantages and returns, both [B, T].

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γ λ A_{t+1}, where t + 1 is the next token in the mask; returns are
    A_t + V_t. The value after the last token is 0, also for a truncated response (spec tulu25 §4.4 step 7).

    Args:
        rewards: [B, T], one for each response token.
        values: [B, T], the value before each token was chosen.
        mask: [B, T], 1 on response tokens. Values outside the mask are ignored; tokens that the policy did not sample
            (tool output within a response) are skipped.
        gamma: discount factor per token.
        lam: λ; 1 gives Monte Carlo returns, 0 one-step TD errors.
    """
    mask = jnp.asarray(mask) > 0
    rewards, values = masked(as_float(rewards), mask), masked(as_float(values), mask)

    def back(carry, xs):
        advantage, next_value = carry
        r, v, on = xs
        a = r + gamma * next_value - v + gamma * lam * advantage
        carry = jnp.where(on, a, advantage), jnp.where(on, v, next_value)
        return carry, jnp.where(on, a, 0.0)

    start = jnp.zeros_like(values[:, 0])
    _, advantages = jax.lax.scan(back, (start, start), (rewards.T, values.T, mask.T), reverse=True)
    advantages = advantages.T
    return advantages, masked(advantages + values, mask)


def kl_estimate(
    logprobs: ArrayLike, reference_logprobs: ArrayLike, kind: KLKind, *, old_logprobs: ArrayLike | None = None
) -> jax.Array:
    """An estimate of KL(policy ‖ reference) from each sampled token; any shape in, the same out.

    With d = logprobs − reference_logprobs (Schulman, "Approximating KL divergence", 2020; spec tulu3 §5.2–5.4):

    | kind | estimate | as a number | as a loss, sampled from the policy |
    |---|---|---|---|
    | k1 | d | unbiased, any sign | gradient has mean 0: use it in the reward |
    | k2 | d² / 2 | biased, ≥ 0 | the true gradient |
    | k3 | exp(−d) − 1 + d | unbiased, ≥ 0 | the gradient of KL(reference ‖ policy) |
    | k4 | ρ d, ρ = exp(logprobs − old_logprobs) | k1 corrected for the sampler | the true gradient |

    Args:
        logprobs: of the policy.
        reference_logprobs: of the frozen reference at the same tokens.
        kind: one of the above.
        old_logprobs: for k4, of the policy that sampled the tokens; by default the policy itself, so that ρ is 1 with
            a gradient.

    Equal inputs give exactly 0. In k3, d is clipped to ±40.
    """
    logprobs, reference = as_float(logprobs), as_float(reference_logprobs)
    d = logprobs - reference
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d * d
    if kind == "k3":
        d = jnp.clip(d, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return jnp.expm1(-d) + d
    if kind == "k4":
        old = logprobs if old_logprobs is None else as_float(old_logprobs)
        return bounded_exp(logprobs - jax.lax.stop_gradient(old)) * d
    raise UserError(f"kl: no estimator {kind!r}; choose k1, k2, k3 or k4")


def whiten(x: ArrayLike, mask: ArrayLike, *, shift_mean: bool = True, eps: float = 1e-6, ddof: int = 1) -> jax.Array:
    """(x − mean) / √(variance + eps) over all tokens of the mask; the shape of x, 0 outside the mask.

    Args:
        x: advantages or rewards, [B, T].
        mask: [B, T], 1 on the tokens that count.
        shift_mean: if False, the mean is added back, so that only the scale changes.
        eps: added to the variance; 1e-6 for Tülu 2.5 (spec tulu25 §4.4 step 8), 1e-8 for Tülu 3.
        ddof: 1 divides the sum of squares by n − 1. The variance of a single token is 0, not 0 / 0.
    """
    x, mask = as_float(x), jnp.asarray(mask)
    count = (mask > 0).sum().astype(x.dtype)
    mean = masked_sum(x, mask) / jnp.maximum(count, 1)
    variance = masked_sum((x - mean) ** 2, mask) / jnp.maximum(count - ddof, 1)
    white = (x - mean) / jnp.sqrt(variance + eps)
    return masked(white if shift_mean else white + mean, mask)


def group_advantages(rewards: ArrayLike, kind: AdvantageKind, *, eps: float = 1e-8) -> jax.Array:
    """Advantages of responses relative to the other responses to the same prompt; the shape of `rewards`.

    Args:
        rewards: [groups, samples], one for each response.
        kind: with μ the mean of the group and S its samples,
            "grpo": (r − μ) / (σ + eps), σ with S − 1 (DeepSeekMath 2024; spec tulu3 §5.3, spurious_rewards §6);
            "standard": the same with σ over S (spec tulu3 §5.4);
            "mean", "dr_grpo": r − μ (Dr. GRPO 2025, which also divides the loss by a constant: see `grpo_loss`);
            "rloo": r minus the mean of the other S − 1 (Ahmadian et al. 2024), which is (r − μ) S / (S − 1).
        eps: added to σ.

    The advantages of a zero-variance group, and of a group of one, are exactly 0.
    """
    rewards = as_float(rewards)
    samples = rewards.shape[-1]
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    others = max(samples - 1, 1)
    if kind in ("grpo", "standard"):
        squares = (centred**2).sum(axis=-1, keepdims=True)
        advantages = centred / (jnp.sqrt(squares / (others if kind == "grpo" else samples)) + eps)
    elif kind in ("mean", "dr_grpo"):
        advantages = centred
    elif kind == "rloo":
        advantages = centred * (samples / others)
    else:
        raise UserError(f"advantages: no kind {kind!r}; choose grpo, standard, mean, dr_grpo or rloo")
    # The mean of equal numbers may have a rounding error, which the division by σ ≈ 0 would amplify to order 1.
    equal = rewards.max(axis=-1, keepdims=True) == rewards.min(axis=-1, keepdims=True)
    return jnp.where(equal, jnp.zeros_like(advantages), advantages)


def adaptive_kl(
    beta: ArrayLike, observed: ArrayLike, *, target: float, rate: float = 0.1, limit: float = 0.2
) -> jax.Array:
    """The KL coefficient for the next rollout: β (1 + rate · clip(observed / target − 1, ±limit)).

    Ziegler et al. 2019, §2.2. `observed` and `target` are KL per response, in nats. A non-finite observation keeps β.
    """
    beta, observed = as_float(beta), as_float(observed)
    error = jnp.clip(observed / target - 1.0, -limit, limit)
    return jnp.where(jnp.isfinite(observed), beta * (1.0 + rate * error), beta)


def explained_variance(values: ArrayLike, returns: ArrayLike, mask: ArrayLike) -> jax.Array:
    """1 − Var(returns − values) / Var(returns) over the mask; 1 for a perfect value model, 0 for a constant one.

    It is 0 if the returns have no variance.
    """
    values, returns, mask = as_float(values), as_float(returns), jnp.asarray(mask)
    count = jnp.maximum((mask > 0).sum(), 1).astype(returns.dtype)

    def variance(x):
        return masked_sum((x - masked_sum(x, mask) / count) ** 2, mask) / count

    total = variance(returns)
    return jnp.where(total > 0, 1.0 - variance(returns - values) / jnp.where(total > 0, total, 1.0), 0.0)
