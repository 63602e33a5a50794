"""Stages of Tülu 3's preference pipeline (arXiv 2411.15124, §5; spec tulu3 §7.4, §7.5).

SelectPrompts → prompts → Respond → responses of a pool of models → Rate → ratings by aspect → Binarise → pairs, best
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from easylm_jax.config.base import Stage, stages_of
from easylm_jax.config.bounds import Count, NonNegative, Positive
from easylm_jax.config.data import Source
from easylm_jax.config.writing import Server, Speaks, Writes
from models.errors import UserError

ASPECTS = ("helpfulness", "instruction_following", "honesty", "truthfulness")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptPart:
    """A part of the prompts of preference data: where they come from, and how many."""

    name: str = dataclasses.field(kw_only=False)
    """What rows call it."""
    source: Source
    """Conversations or prompts; of a conversation, the turns up to the last answer."""
    count: Count | None = None
    """Prompts that are drawn at random, without repeats; None for all."""
    unused: bool = False
    """Whether prompts of `SelectPrompts.used` are left out."""
    instructions: tuple[Count, ...] = ()
    """How many verifiable instructions are appended: one of these numbers at random; empty for none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectPrompts(Stage):
    """Selects prompts for preference data: reused from fine-tuning, unused, and with verifiable instructions appended.

    Writes `prompts.jsonl` (`id`, `messages`, `part`, `reference`, an answer of the source if it has one, and for
    appended instructions `dataset` and `ground_truth`) and `stats.json`.
    """

    parts: tuple[PromptPart, ...]
    """The parts, in this order; a prompt that an earlier part has is not drawn again."""
    used: tuple[Source, ...] = ()
    """The data of fine-tuning, for parts of unused prompts."""
    suites: tuple[Literal["ifeval", "iftrain", "ifbench"], ...] = ("ifeval",)
    """The suites that instructions are drawn from."""
    against: tuple[Source, ...] = ()
    """Test rows; a prompt that half of the words of one lie in, 8 in a row, is left out (spec tulu3 §7.2)."""

    family: ClassVar[str] = "synthesize"

    def __post_init__(self):
        super().__post_init__()
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise UserError(f"stage {self.name}: give parts of different names, not {', '.join(names) or 'none'}")

    @property
    def compiles(self) -> bool:
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(stages_of((*(part.source for part in self.parts), *self.used, *self.against)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolModel:
    """A model of a pool, ours or a server's."""

    name: str = dataclasses.field(kw_only=False)
    """What rows call it."""
    init: str | None = None
    """The model: a stage, `hf:<name>` or `run:<folder>`; None where a server answers."""
    server: Server | None = None
    """The server, where no model of ours answers."""
    chat_template: str | None = None
    """Its chat template; None: its own."""
    on_policy: bool = False
    """Whether it is the model that will be trained, so that its responses are on-policy."""
    always: bool = False
    """Whether it answers every prompt; the other models are drawn."""
    samples: Count = 1
    """Its responses to a prompt."""

    def __post_init__(self):
        if (self.init is None) == (self.server is None):
            raise UserError(f"pool model {self.name}: a model (init) or a server answers; give one of the two")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Respond(Writes):
    """Responses to prompts by models that are drawn from a pool for each prompt.

    Writes `responses.jsonl` (each prompt with its responses in random order), `dropped.jsonl` (prompts to which a model
    gave no whole response) and `stats.json`.
    """

    prompts: Source
    """Prompts, such as those of `SelectPrompts`."""
    pool: tuple[PoolModel, ...]
    """The models."""
    each: Count = 4
    """Models that answer each prompt (Tülu 3: 4)."""
    max_new_tokens: Count = 2048
    """New tokens of a response, at most."""
    temperature: NonNegative = 1.0
    """Sampling temperature (Tülu 3: 1)."""
    top_p: Positive = 1.0
    """Tokens with this share of probability are sampled from (Tülu 3: 1)."""
    reference: bool = False
    """Whether the prompt's own answer (`reference`) is a candidate too, as in rejection sampling."""

    def __post_init__(self):
        super().__post_init__()
        names = [model.name for model in self.pool]
        fixed = sum(model.always for model in self.pool)
        if not names or len(set(names)) < len(names) or "reference" in names:
            raise UserError(f"stage {self.name}: pool models have different names, none of them 'reference'")
        if not fixed <= self.each <= len(names) or self.top_p > 1:
            raise UserError(
                f"stage {self.name}: each must be from {fixed} (models with always) to {len(names)} (the pool), and "
                "top_p at most 1"
            )

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (self.prompts,)

    @property
    def _inits(self) -> tuple[str | None, ...]:
        return tuple(model.init for model in self.pool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate(Speaks):
    """Ratings of responses by a judge: one question for each aspect, with all responses to a prompt in it.

    Writes `ratings.jsonl` (each response with a rating from 1 to 5 for each aspect, None where the judge gave none) and
    `stats.json`.
    """

    responses: Source
    """Responses as `Respond` writes them."""
    aspects: tuple[str, ...] = ASPECTS
    """The aspects (`config/preference_prompts.py`)."""
    max_new_tokens: Count = 1024
    """New tokens of a reply, at most."""
    unread: Literal["missing", "lowest"] = "missing"
    """What a rating is that cannot be read: "missing", or "lowest", which is 1 as in the published code."""

    def __post_init__(self):
        super().__post_init__()
        if not self.aspects or set(self.aspects) - set(ASPECTS):
            raise UserError(f"stage {self.name}: aspects are {', '.join(ASPECTS)}, not {', '.join(self.aspects)}")

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (self.responses,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binarise(Stage):
    """Preference pairs, and the best response for fine-tuning, from the ratings of one or several judges.

    Writes `pairs.jsonl`, `best.jsonl` (rejection sampling: conversations), `stats.json` and `tables.md`.
    """

    ratings: tuple[Source, ...]
    """Ratings as `Rate` writes them, of the same responses; several judges vote for the best (spec tulu3 §7.5)."""
    rejected: Literal["lower", "any"] = "lower"
    """"lower": a response of a lower mean at random, as in the paper. "any": any other response, as in the published
    code, whose pairs may be ties."""
    policy: Literal["any", "on", "off"] = "any"
    """"on" keeps pairs with a response of the on-policy model, "off" those without one."""
    on_share: NonNegative | None = None
    """Share of the pairs with an on-policy response; pairs of the other sort are left out until it holds. None: as they
    come."""
    count: Count | None = None
    """Pairs, at most, drawn at random; None for all."""
    parts: tuple[str, ...] = ()
    """The parts of the prompts that are used; empty for all."""

    family: ClassVar[str] = "synthesize"

    def __post_init__(self):
        super().__post_init__()
        if not self.ratings or (self.on_share is not None and (self.on_share > 1 or self.policy != "any")):
            raise UserError(f"stage {self.name}: give ratings; on_share is a share of at most 1, with policy 'any'")

    @property
    def compiles(self) -> bool:
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(stages_of(self.ratings))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PersonaPrompts(Speaks):
    """Prompts of a skill that fit a persona, and answers to them (Tülu 3, §4.2; spec tulu3 §7.3).

    Writes `sft.jsonl` (conversations), `dropped.jsonl` (with reasons), `stats.json`, and for the skill "instructions"
    `pairs.jsonl`: the answer over the answer to the prompt with one instruction taken out.
    """

    personas: Source
    """Rows with `persona` or `text`."""
    skill: Literal["math", "grade_school", "algebra", "code", "instructions"] = "math"
    """What the prompts ask for."""
    count: Count
    """Prompts; personas are used in turn."""
    answers: str | None = None
    """Another model for the answers; None: the same."""
    answer_server: Server | None = None
    """A server for the answers; None: as `answers` says."""
    instructions: tuple[Count, ...] = (1, 2, 3)
    """Numbers of instructions of a prompt of the skill "instructions", one of them at random."""
    max_new_tokens: Count = 1024
    """New tokens of a prompt or an answer, at most (Tülu 3: 1024)."""
    temperature: NonNegative = 0.7
    """Sampling temperature (Tülu 3: 0.7)."""

    def __post_init__(self):
        super().__post_init__()
        if self.answers is not None and self.answer_server is not None:
            raise UserError(f"stage {self.name}: answers are a model's (answers) or a server's (answer_server)")

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (self.personas,)

    @property
    def _inits(self) -> tuple[str | None, ...]:
        return (self.init, self.answers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfInstruct(Speaks):
    """Instructions that a model writes after examples of a growing pool, and its answers (arXiv 2212.10560, §2).

    Writes `sft.jsonl` (conversations), `dropped.jsonl` (instructions with reasons) and `stats.json`.
    """

    tasks: Source
    """Seed tasks: rows with `instruction`."""
    count: Count
    """Instructions that are kept, at most."""
    rounds: Count = 100
    """Rounds at most; a round asks for `batch` lists, and its examples are of the rounds before."""
    shots: Count = 8
    """Examples in a question, of which a quarter are the model's own once there are some (the paper: 8, 6 and 2)."""
    overlap: Positive = 0.7
    """ROUGE-L with an instruction of the pool from which on a new one is dropped (the paper: 0.7)."""
    max_new_tokens: Count = 1024
    """New tokens of a list or an answer, at most."""
    temperature: NonNegative = 0.7
    """Sampling temperature (the paper: 0.7 for instructions)."""

    @property
    def _sources(self) -> tuple[Source, ...]:
        return (self.tasks,)
