"""Verifiers: functions that judge a response against the record of its prompt.

A verifier is `function(response, record) → float`. It is found by its name here, or as `"module:function"`.
"""

from easylm_jax.rewards.instructions import check_instruction
from easylm_jax.rewards.maths import check_math, gsm8k
from easylm_jax.rewards.registry import VERIFIERS, verifier
from easylm_jax.rewards.verdict import Verifier, verdict

__all__ = ["VERIFIERS", "Verifier", "check_instruction", "check_math", "gsm8k", "verdict", "verifier"]
