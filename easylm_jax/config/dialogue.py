"""Stages of self-directed dialogues and their revisions (SDSD, arXiv 2407.18421; spec sdsd)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from easylm_jax.config.base import ModelUse, models_of
from easylm_jax.config.bounds import Bounds, Count, NonNegative, Positive
from easylm_jax.config.data import Source
from easylm_jax.config.writing import Server, Speaks
from models.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topics(Speaks):
    """Domains with sub-topics for `Dialogues`, which a model lists for broad fields at several temperatures.

    Writes `domains.jsonl` (kept), `dropped.jsonl` (with reasons) and `stats.json`.
    """

    fields: Source
    """Rows with `text`: broad fields, from which domains are listed."""
    count: Count = 801
    """Domains that are kept, at most."""
    each: Count = 30
    """Domains that are asked for of each field and temperature."""
    subareas: Count = 20
    """Sub-topics of a domain; a domain for which fewer are listed is dropped."""
    temperatures: tuple[NonNegative, ...] = (0.7, 1.0)
    """Sampling temperatures of the lists of domains; sub-topics are listed at the first."""
    tokens: Count = 600
    """New tokens of a list, at most."""
    near: Positive = 0.7
    """Jaccard similarity of the character 4-grams of two domains from which on the later is dropped."""
    noun_share: Positive = 0.01
    """Share of kept domains that one head noun (their last word) may have (at least one domain)."""

    def __post_init__(self):
        super().__post_init__()
        if not self.temperatures or self.near > 1 or self.noun_share > 1:
            raise UserError(f"stage {self.name}: give a temperature; near and noun_share are shares of at most 1")

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (self.fields,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogues(Speaks):
    """Self-directed dialogues: plans a conversation from topic, goal, persona and principles, and plays both sides.

    Writes `dialogues.jsonl` (kept), `dropped.jsonl` (with reasons), `sft.jsonl`, `released.jsonl` (the published
    schema), `stats.json`, `tables.md` and `reading.md`.
    """

    principles: Source
    """Rows with `pid` and `text` (at most 40 words), all different."""
    goals: Source
    """Rows with `gid` and `text`."""
    personas: Source
    """Rows with `text`: who the user is."""
    domains: Source
    """Rows with `domain` and `subareas`, a list."""
    count: Count
    """Dialogues that are planned."""
    user: str | None = None
    """Another model for the user's side; None: the same."""
    user_server: Server | None = None
    """A server for the user's side; None: as `user` says."""
    talk: Literal["blind", "informed", "script"] = "blind"
    """Whether the agent sees the conversation alone, or also the plan. "script": one call writes the whole dialogue, in
    lines of USER and AGENT, as the published rows seem to be written."""
    violate: NonNegative = 0.5
    """Share of plans that aim at breaking a principle in the last turn."""
    max_messages: Count = 12
    """Messages of a dialogue, at most."""
    user_tokens: Count = 256
    """New tokens of a turn of the user, at most."""
    agent_tokens: Count = 512
    """New tokens of a turn of the agent, at most."""
    script_tokens: Count = 2048
    """New tokens of a dialogue that is written in one call, at most."""
    plan_tokens: Count = 400
    """New tokens of a plan, at most."""
    judge_tokens: Count = 300
    """New tokens of a critique that judges violations, at most."""
    plan_temperature: NonNegative = 0.9
    """Sampling temperature of plans."""
    user_temperature: NonNegative = 0.8
    """Sampling temperature of the user's side."""
    agent_temperature: NonNegative = 0.7
    """Sampling temperature of the agent's side."""
    top_p: Positive = 0.95
    """Tokens with this share of probability are sampled from."""
    reuse: bool = True
    """Whether a turn reuses the keys and values of the turns before it; off only to measure what that saves."""
    domain_share: Positive = 0.005
    """Share of kept dialogues that one domain may have (at least one dialogue)."""
    goal_share: Positive = 0.05
    """Share of kept dialogues that one goal may have (at least one dialogue)."""
    rules: str = ""
    """Further rules of `easylm data filter` for dialogues, such as "language(name=en)" (docs/curation.md)."""
    principle_ratio: Annotated[float, Bounds(low=1)] = 3.0
    """How often the most frequent principle of kept dialogues may occur, as a multiple of the rarest one's count."""
    near: Positive = 0.8
    """Jaccard similarity of word 5-grams from which on two dialogues are one; the longer stays."""
    against: tuple[Source, ...] = ()
    """Test rows; a dialogue that shares 13 words in a row with one is dropped."""
    moderator: str | None = None
    """A moderator, which labels the last exchange of each dialogue too; None: that column of the tables is missing."""
    compare: tuple[Source, ...] = ()
    """Conversations (`messages`) of other sets, whose length and diversity stand beside those of the dialogues."""

    def __post_init__(self):
        super().__post_init__()
        if self.user is not None and self.user_server is not None:
            raise UserError(f"stage {self.name}: the user's side is a model (user) or a server (user_server)")
        if not 2 <= self.max_messages <= 12:
            raise UserError(f"stage {self.name}: max_messages must be from 2 to 12, not {self.max_messages}")
        if self.violate > 1 or self.top_p > 1 or self.near > 1:
            raise UserError(f"stage {self.name}: violate, top_p and near are shares of at most 1")

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (self.principles, self.goals, self.personas, self.domains, *self.against, *self.compare)

    @property
    def _inits(self) -> tuple[str | None, ...]:
        return (self.init, self.user)

    @property
    def _others(self) -> tuple[str | None, ...]:
        return (self.moderator,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revisions(Speaks):
    """Critique and revision of the last turn of dialogues that violate a principle, as preference pairs.

    Writes `revisions.jsonl` (all, with the reason where one was not accepted), `pairs.jsonl` (chosen: the revision),
    `released.jsonl` (the published schema), `stats.json` and `tables.md`.
    """

    dialogues: Source
    """Dialogues as `Dialogues` writes them."""
    controls: NonNegative = 0.1
    """Share of dialogues without a violation that are revised too, to measure false revisions; they give no pair."""
    rounds: Count = 2
    """Revisions of one turn, at most, while the judge still finds a violation."""
    critique_tokens: Count = 300
    """New tokens of a critique, at most."""
    revision_tokens: Count = 512
    """New tokens of a revision, at most."""
    temperature: NonNegative = 0.7
    """Sampling temperature of revisions; critiques are greedy."""
    overlap: NonNegative = 0.1
    """Share of its words that a revision takes from the user's last turn and the original at least."""
    moderator: str | None = None
    """A moderator: a revision that it calls harmful is not used, and rates of harm and refusal are in the tables."""
    reward_model: str | None = None
    """A reward model, whose margin of the revision over the original is in the tables; None: no margin."""

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (self.dialogues,)

    @property
    def _others(self) -> tuple[str | None, ...]:
        return (self.moderator,)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().needs, *models_of(self.reward_model)]))

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        if self.reward_model is None:
            return super().model_uses
        return (*super().model_uses, ModelUse("reward_model", self.reward_model, "reward"))
