"""Verifiable instructions: IFBench's 58, IFTrain's 29 and IFEval's 25, each with arguments, a text and a verifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easylm_jax.rewards.instructions import (  # noqa: F401  (each registers its instructions)
    count,
    custom,
    format,
    ifeval,
    ifeval_format,
    iftrain,
    iftrain_layout,
    ratio,
    repeat,
    sentences,
    words,
)
from easylm_jax.rewards.instructions.base import REGISTRY, SUITES, VERSIONS, Instruction
from easylm_jax.rewards.instructions.scoring import find
from easylm_jax.rewards.instructions.tokens import use_nltk_data

__all__ = ["REGISTRY", "SUITES", "VERSIONS", "Instruction", "check_instruction", "find", "use_nltk_data"]


def check_instruction(
    constraint_id: str, response: Any, kwargs: Mapping[str, Any] | None = None, version: str = "r26"
) -> bool:
    """Whether `response` follows the instruction `constraint_id` with arguments `kwargs` (spec IFBench §2, §4).

    Nulls in `kwargs` are dropped, and floats that are whole numbers become ints. A response that is blank or not a text
    follows no instruction. `version` is "r26" (the published scores), "r25" (the paper's numbers) or "fixed" (for
    rewards).

    Raises:
        UserError: the id or version is unknown, an argument is missing, unknown or malformed, or NLTK lacks data. No
            response is an error.
    """
    return find(constraint_id).holds(response, kwargs, version)
