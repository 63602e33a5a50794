"""The objectives' formulas again, one response or token at a time in Python's float64, for tests to compare with."""

from __future__ import annotations

import math

import jax
import numpy as np


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def gae(rewards, values, mask, gamma, lam):
    """As a sum over the future: A_t = Σ_k (γλ)^k δ_{t+k}, over the masked tokens of each row."""
    advantages, returns = np.zeros(np.shape(rewards)), np.zeros(np.shape(rewards))
    for b in range(len(rewards)):
        at = [t for t in range(len(mask[b])) if mask[b][t] > 0]
        v = [values[b][t] for t in at] + [0.0]
        delta = [rewards[b][t] + gamma * v[i + 1] - v[i] for i, t in enumerate(at)]
        for i, t in enumerate(at):
            advantages[b, t] = sum((gamma * lam) ** k * d for k, d in enumerate(delta[i:]))
            returns[b, t] = advantages[b, t] + v[i]
    return advantages, returns


def preference(kind, c, r, rc, rr, nc, nr, beta, smoothing=0.0, gamma=0.0):
    """One pair's loss."""

    def log_odds(mean):
        return mean - math.log(1.0 - math.exp(mean))

    if kind == "ipo":
        return ((c - rc) / nc - (r - rr) / nr - 1 / (2 * beta)) ** 2
    if kind == "orpo":
        return -c / nc - beta * log_sigmoid(log_odds(c / nc) - log_odds(r / nr))
    z = {
        "dpo": beta * ((c - r) - (rc - rr)),
        "wpo": beta * ((c - r) - (rc - rr)),
        "dpo_norm": beta * ((c / nc - r / nr) - (rc / nc - rr / nr)),
        "simpo": beta * (c / nc - r / nr) - gamma,
    }[kind]
    loss = -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)
    return loss * min(1.0, math.exp(c / nc + r / nr)) if kind == "wpo" else loss


def policy_token(logprob, old, advantage, low, high):
    """One token's clipped loss, and its derivative with respect to the log-probability."""
    ratio = math.exp(logprob - old)
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high))
    moves = not (advantage > 0 and ratio > 1 + high or advantage < 0 and ratio < 1 - low)
    return loss, -advantage * ratio * moves


def derivative(f, x, step=1e-6):
    """Central differences of a scalar function in every element of x."""
    x = np.asarray(x, np.float64)
    slope = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        slope[i] = (float(f(up)) - float(f(down))) / (2 * step)
    return slope


def assert_gradient(f, x, rtol=1e-6, atol=1e-8):
    """jax.grad of f equals central differences, both in float64."""
    with jax.enable_x64(True):
        x = np.asarray(x, np.float64)
        np.testing.assert_allclose(jax.grad(f)(x), derivative(f, x), rtol=rtol, atol=atol)
