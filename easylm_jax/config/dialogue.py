"""Stages of self-directed dialogues and their revisions (SDSD, arXiv 2407.18421; spec sdsd)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from easylm_jax.config.base import ModelUse, Stage, models_of, stages_of
from easylm_jax.config.bounds import Count, NonNegative, Positive
from easylm_jax.config.data import Source
from models.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server that speaks OpenAI's chat completions (`runtime.endpoint`)."""

    url: str
    """Its address up to and with `/v1`."""
    model: str
    """The model that it is asked for."""
    key: str | None = None
    """The environment variable that holds the key; None for a server without keys."""
    concurrency: Count = 8
    """Requests at once, at most."""
    timeout: Positive = 120.0
    """Seconds for one attempt."""
    attempts: Count = 6
    """Attempts at one request, at most."""
    per_minute: Positive | None = None
    """Requests in a minute, at most; None for no limit of ours."""
    price_in: NonNegative = 0.0
    """Price of a million prompt tokens, for the ledger."""
    price_out: NonNegative = 0.0
    """Price of a million new tokens, for the ledger."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speaks(Stage):
    """A stage in which models write, by turns or in answer to questions: the base of `Dialogues` and `Revisions`."""

    family: ClassVar[str] = "synthesize"
    generates: ClassVar[bool] = True

    init: str | None = None
    """The model that writes: a stage, `hf:<name>` or `run:<folder>`; None where a server does."""
    server: Server | None = None
    """The server that writes, where no model does."""
    chat_template: str | None = None
    """Chat template of the model; None: its own."""
    prompts: Literal["full", "short"] = "full"
    """The prompts, by name (`config/dialogue_prompts.py`)."""
    slots: Count = 64
    """Dialogues or questions in flight, each with its keys and values in memory."""
    batch: Count = 256
    """Dialogues of a file of the stage's work: what a stopped stage repeats at most."""
    limit: Count | None = None
    """Rows in all; None for all of them."""

    def __post_init__(self):
        super().__post_init__()
        if (self.init is None) == (self.server is None):
            raise UserError(f"stage {self.name}: a model (init) or a server writes; give one of the two")

    @property
    def compiles(self) -> bool:
        return False

    @property
    def _sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def _inits(self) -> tuple[str | None, ...]:
        return (self.init,)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*stages_of(self._sources), *models_of(*self._inits)]))

    @property
    def model_uses(self) -> tuple[ModelUse, ...]:
        return tuple(ModelUse("init", name, "language") for name in self._inits if name is not None)

    @property
    def models(self) -> dict[str, str | None]:
        return {"model": self.init}


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
    talk: Literal["blind", "informed"] = "blind"
    """Whether the agent sees the conversation alone, or also the plan."""
    violate: NonNegative = 0.5
    """Share of plans that aim at breaking a principle in the last turn."""
    max_messages: Count = 12
    """Messages of a dialogue, at most."""
    user_tokens: Count = 256
    """New tokens of a turn of the user, at most."""
    agent_tokens: Count = 512
    """New tokens of a turn of the agent, at most."""
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
    near: Positive = 0.8
    """Jaccard similarity of word 5-grams from which on two dialogues are one; the longer stays."""
    against: tuple[Source, ...] = ()
    """Test rows; a dialogue that shares 13 words in a row with one is dropped."""

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
        return (self.principles, self.goals, self.personas, self.domains, *self.against)

    @property
    def _inits(self) -> tuple[str | None, ...]:
        return (self.init, self.user)


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
    """Share of the words of the user's last turn and the original that a revision shares at least."""

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (self.dialogues,)
