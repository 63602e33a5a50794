"""Stages that write answers for later stages to train on: the best of several, labels by vote."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from easylm_jax.config import fields
from easylm_jax.config.base import Stage, models_of, stages_of_data
from easylm_jax.config.data import DataSpec
from easylm_jax.config.expression import Expression
from easylm_jax.config.reward import Reward, Sampling
from models.config import Compute
from models.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Stage):
    """Answers to prompts, for later stages to train on: what best-of-N and votes share.

    `init` is the model that writes, `batch` the prompts that are answered at a time, `limit` how many in all.
    """

    family: ClassVar[str] = "synthesize"
    generates: ClassVar[bool] = True

    init: str
    data: DataSpec
    sampling: Sampling
    samples: int
    batch: int = 64
    limit: int | None = None
    compute: Compute = Compute()

    COUNTS: ClassVar[tuple[str, ...]] = ("samples", "batch")  # fields that are at least 1

    def __post_init__(self):
        fields.check_types(self, self.name)
        if self.data.kind != "prompts":
            raise UserError(f"stage {self.name}: data must be prompts (kind 'prompts'), not {self.data.kind!r}")
        if min(getattr(self, name) for name in self.COUNTS) < 1:
            *first, last = self.COUNTS
            raise UserError(f"stage {self.name}: {', '.join(first)} and {last} must be at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*stages_of_data([self.data]), *models_of(self.init)]))

    @property
    def models(self) -> dict[str, str | None]:
        return {"model": self.init}

    @property
    def responses_per_step(self) -> int:
        return self.batch * self.samples

    @property
    def tokens_per_step(self) -> int:
        return self.responses_per_step * (self.data.sequence_length + self.sampling.max_new_tokens)

    @property
    def work(self) -> str:
        lengths = f"{self.data.sequence_length:,} + {self.sampling.max_new_tokens:,} tokens"
        return f"{self.batch} × {self.samples} responses of {lengths}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN(Generate):
    """Answers every prompt `samples` times and keeps the best: rejection sampling, and pairs of best and worst.

    It writes `best.jsonl` (conversations, for SFT), `pairs.jsonl` (for DPO or a reward model) and `answers.jsonl`
    (every answer with its score), which later stages read as `Source("stage:<name>/best.jsonl")`. A prompt gives at
    most `pairs` pairs: its best answer with its worst, the next best with the next worst, each answer in one pair, as
    long as they differ in score.
    """

    reward: Reward
    samples: int = 4
    pairs: int = 1

    COUNTS: ClassVar[tuple[str, ...]] = ("samples", "pairs", "batch")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().needs, *models_of(*self.reward.models)]))


_VARIANTS = re.compile(r"least-voted|shuffled|truths|unsolved|rank-\d{1,3}|code-at-most-\d{1,3}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MajorityVote(Generate):
    """Labels prompts with the answer that a model gives most often of `samples` (spec spurious_rewards §4.2).

    It writes `labelled.jsonl` (every prompt with its pseudo-label in the column `label` and the record's own one in
    `truth`), `incorrect.jsonl` (those whose pseudo-label is wrong), `votes.jsonl` (all answers, counted), and a file
    for each of `variants`, which `majority_vote.labelled` lists. `extract` is a function `module:function` from a
    response to its answer as text, by which votes are counted; `check` is the verifier (an expression) that knows with
    the record's own label whether a response is right.
    """

    samples: int = 64
    check: str
    extract: str = "easylm_jax.rewards.spurious:answer_of"
    label: str = "answer"
    variants: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        Expression(self.check)
        for variant in self.variants:
            if not _VARIANTS.fullmatch(variant):
                raise UserError(
                    f"stage {self.name}: no labels {variant!r}; there are least-voted, shuffled, truths, unsolved, "
                    "rank-K and code-at-most-X"
                )
