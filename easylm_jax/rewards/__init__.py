"""Rewards: verifiers, which score a response against the record of its prompt; reward models; LM judges.

A verifier is `function(response, record) → float`, named by its entry in `VERIFIERS` or as `"module:function"`.
"""

from easylm_jax.rewards.instructions import check_instruction
from easylm_jax.rewards.maths import check_math, gsm8k
from easylm_jax.rewards.registry import VERIFIERS, verifier
from easylm_jax.rewards.verdict import Explained, Verifier, call_verifier

__all__ = [
    "VERIFIERS",
    "Explained",
    "Verifier",
    "call_verifier",
    "check_instruction",
    "check_math",
    "gsm8k",
    "verifier",
]
