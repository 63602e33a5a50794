"""Losses and objectives: pure functions. An objective maps parameters and a batch to sums (`objectives.base.Loss`)."""

from __future__ import annotations

from collections.abc import Callable

from easylm_jax.objectives.base import Objective
from easylm_jax.objectives.estimators import (
    adaptive_kl,
    explained_variance,
    gae,
    group_advantages,
    kl_estimate,
    whiten,
)
from easylm_jax.objectives.language_modelling import language_modelling
from easylm_jax.objectives.policy_gradient import (
    final_scores,
    grpo_loss,
    importance_weights,
    ppo_loss,
    token_rewards,
    value_loss,
)
from easylm_jax.objectives.preference import kto_loss, preference_loss, preference_optimization, sequence_logprobs
from easylm_jax.objectives.reinforcement import (
    policy_optimization,
    target_scores,
    token_values,
    value_regression,
)
from easylm_jax.objectives.reward_model import (
    calibration,
    pair_scores,
    reward_model_loss,
    reward_modelling,
    score_responses,
)

# What `Pretrain` and `SFT` minimise, by name. A new objective is a function of a model and `dropout`, with options of
# its own, and a line here: the function, or its "module:function".
OBJECTIVES: dict[str, Callable[..., Objective] | str] = {
    "language_modelling": language_modelling,
}

__all__ = [
    "OBJECTIVES",
    "adaptive_kl",
    "calibration",
    "explained_variance",
    "final_scores",
    "gae",
    "group_advantages",
    "grpo_loss",
    "importance_weights",
    "kl_estimate",
    "kto_loss",
    "language_modelling",
    "pair_scores",
    "policy_optimization",
    "ppo_loss",
    "preference_loss",
    "preference_optimization",
    "reward_model_loss",
    "reward_modelling",
    "score_responses",
    "sequence_logprobs",
    "target_scores",
    "token_rewards",
    "token_values",
    "value_loss",
    "value_regression",
    "whiten",
]
