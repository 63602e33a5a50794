"""Stages that generate data for later stages: best-of-N sampling and labels by majority vote."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from easylm_jax.config.base import ModelUse, Stage, models_of, stages_of_data
from easylm_jax.config.bounds import Count
from easylm_jax.config.data import DataSpec
from easylm_jax.config.expression import Expression
from easylm_jax.config.reward import Reward, SampledResponses, Sampling
from models.config import Compute
from models.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(SampledResponses, Stage):
    """Generates responses to prompts, for later stages to train on: the base of `BestOfN` and `MajorityVote`."""

    family: ClassVar[str] = "synthesize"
    generates: ClassVar[bool] = True

    init: str
    """The model that responds: a stage, `hf:<name>` or `run:<folder>`."""
    data: DataSpec
    """The prompts (kind "prompts")."""
    sampling: Sampling
    """How responses are sampled."""
    samples: Count
    """Responses to each prompt."""
    batch: Count = 64
    """Prompts that are responded to at a time."""
    limit: Count | None = None
    """Prompts in all; None for all of them."""
    compute: Compute = Compute()
    """How the model is computed."""

    def __post_init__(self):
        super().__post_init__()
        if self.data.kind != "prompts":
            raise UserError(f"stage {self.name}: data must be prompts (kind 'prompts'), not {self.data.kind!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*stages_of_data([self.data]), *models_of(self.init)]))

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        return (ModelUse("init", self.init, "language", *self._asked),)

    @property
    def _asked(self) -> tuple[tuple[DataSpec, ...], int, str]:
        """What every model that reads the responses is asked for: `ModelUse.data`, `tokens` and `tokens_field`."""
        return (self.data,), self.sampling.least_context, "sampling.max_new_tokens"

    @property
    def models(self) -> dict[str, str | None]:
        return {"model": self.init}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN(Generate):
    """Best-of-N: samples `samples` responses to every prompt and keeps the one with the highest reward.

    Writes `best.jsonl` (conversations for SFT, as in rejection sampling), `pairs.jsonl` (for DPO or a reward model) and
    `answers.jsonl` (every response with its score). Later stages read them as `Source("stage:<name>/best.jsonl")`.
    """

    reward: Reward
    """How responses are scored."""
    samples: Count = 4
    """Responses to each prompt, the N of best-of-N."""
    pairs: Count = 1
    """The most pairs of a prompt: the best response with the worst, the second best with the second worst, and so on,
    as long as their scores differ."""

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().needs, *models_of(*self.reward.models, self.reward.moderator)]))

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        return (*super().model_uses, *self.reward.model_uses(*self._asked))


_VARIANTS = re.compile(r"least-voted|shuffled|truths|unsolved|rank-\d{1,3}|code-at-most-\d{1,3}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MajorityVote(Generate):
    """Labels prompts with the most frequent answer among `samples` responses (spec spurious_rewards §4.2).

    Writes `labelled.jsonl` (every prompt with its pseudo-label, and the label of the record in `truth`),
    `incorrect.jsonl` (prompts with a wrong pseudo-label), `votes.jsonl` (all answers with counts), and a file for each
    of `variants`.
    """

    samples: Count = 64
    """Responses to each prompt, which are counted by their final answer."""
    check: str
    """The verifier (an expression) that decides by the record's own label whether a response is correct."""
    extract: str = "easylm_jax.rewards.spurious:answer_of"
    """A function `"module:function"` from a response to its final answer as text."""
    label: str = "answer"
    """The column that the most frequent answer is written to."""
    variants: tuple[str, ...] = ()
    """Further files with other labels, as `majority_vote.labelled` lists them, such as "shuffled"."""

    def __post_init__(self):
        super().__post_init__()
        Expression(self.check)
        for variant in self.variants:
            if not _VARIANTS.fullmatch(variant):
                raise UserError(
                    f"stage {self.name}: no labels {variant!r}; there are least-voted, shuffled, truths, unsolved, "
                    "rank-K and code-at-most-X"
                )
