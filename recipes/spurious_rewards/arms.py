"""The rewards of Spurious Rewards (arXiv 2506.10947, Section 2 and Sections 4 and 5): an expression and its labels."""

from __future__ import annotations

import dataclasses

from models.errors import UserError
from recipes.spurious_rewards.data import Policy


@dataclasses.dataclass(frozen=True)
class Arm:
    """A reward of the paper, and the labels that training uses.

    `labels`: "truth" (problems with their own labels), "labelled" or "incorrect" (pseudo-labels of the majority vote),
    "one" (a single problem) or "test" (the problems of the test set, whose labels the reward does not use).
    """

    name: str
    reward: str
    labels: str = "truth"


# {math}, {box}, {extract}: verifiers for the answer format of the policy.
_ARMS = (
    Arm("ground truth", "{math}"),
    Arm("majority vote", "{math}", "labelled"),
    Arm("format", "{box}"),
    Arm("incorrect", "{math}", "incorrect"),
    *(Arm(f"random {share}", f"random({share})") for share in (0.5, 0.7, 0.3, 0.001, 0)),
    Arm("one-shot", "{math}", "one"),
    Arm("TTRL", "ttrl({extract})", "test"),
    Arm("python", "python"),
    Arm("no python", "not python"),
    Arm("ground truth without python", "{math} and not python"),
    Arm("format without python", "{box} and not python"),
    Arm("incorrect without python", "{math} and not python", "incorrect"),
    Arm("no repetition", "no_repetition"),
    Arm("inverse ground truth", "not {math}"),
    Arm("inverse format", "not {box}"),
)
ARMS = {arm.name: arm for arm in _ARMS}
MAIN = ("ground truth", "majority vote", "format", "incorrect", "random 0.5")  # in the order of the paper's legends


def arm(name: str) -> Arm:
    """The arm called `name`."""
    if name not in ARMS:
        raise UserError(f"no reward {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]


def reward(which: Arm, policy: Policy) -> str:
    """The reward expression of an arm for a policy: base models answer between tags, others in a box."""
    own = {
        "math": math_of(policy),
        "box": "boxed_format(style='r1')" if policy.r1 else "boxed_format",
        "extract": "'easylm_jax.rewards.spurious:r1_answer_of'" if policy.r1 else "",
    }
    return which.reward.format(**own)


def math_of(policy: Policy) -> str:
    """The paper's grader for a policy in training; evaluations always use the grader without tags (Section 2)."""
    return "math(style='spurious_r1')" if policy.r1 else "math(style='spurious')"
