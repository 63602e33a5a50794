"""Sampling of responses and their rewards, for every stage that generates responses."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from easylm_jax.config.base import ModelUse
from easylm_jax.config.bounds import Bounds, Count, NonNegative, Positive
from easylm_jax.config.data import DataSpec
from easylm_jax.config.expression import Expression
from easylm_jax.config.fields import added_later
from easylm_jax.config.judge_templates import TEMPLATES
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are sampled; see `easylm_jax.decode.Engine.generate`."""

    max_new_tokens: Count
    """The most tokens of a response, its end token included."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: Count | None = None
    """Samples from the k most likely tokens only; None from all."""
    top_p: Annotated[float, Bounds(above=0, high=1)] | None = None
    """Samples from the most likely tokens whose probabilities add up to p; None from all."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a response too."""
    slots: Count = 64
    """Responses that are decoded at the same time. More need more memory."""

    @property
    def least_context(self) -> int:
        """The context that a model needs at least: a response and one token of a prompt."""
        return self.max_new_tokens + 1


class SampledResponses:
    """What stages share that sample `samples` responses to each of `batch` prompts in a step."""

    batch: int
    samples: int
    data: DataSpec
    sampling: Sampling

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
class JudgeModel:
    """A judge: a language model that is asked about each response and whose reply is parsed to a score from 0 to 1."""

    model: str
    """The language model that judges: a stage, `hf:<name>`, `run:<folder>`, or one behind a server with OpenAI's
    interface, `https://host/v1#model`, whose key is in `OPENAI_API_KEY`."""
    template: str | None = "general-quality"
    """The question that it is asked, one of `config.judge_templates.TEMPLATES`, such as "general-quality_ref"; with
    None the column `dataset` of a record names it."""
    chat_template: str | None = None
    """The judge's chat template, where its checkpoint does not name it."""
    tokenizer: str | None = None
    """The judge's tokenizer, where its checkpoint does not name it."""
    sampling: Sampling = Sampling(1024, temperature=0.0)
    """How its reply is sampled."""

    def __post_init__(self):
        if self.template is not None and self.template not in TEMPLATES:
            raise UserError(f"judge: no template {self.template!r}; there are {', '.join(TEMPLATES)}")
        if self.on_server:
            if not self.model.partition("#")[2]:
                raise UserError(f"judge {self.model}: name its model behind a #, as https://host/v1#model")
            if self.chat_template is not None or self.tokenizer is not None:
                raise UserError(f"judge {self.model}: the server has its own chat template and tokenizer")

    @property
    def on_server(self) -> bool:
        """Whether a server answers, so that there is nothing to load."""
        return self.model.startswith(("http://", "https://"))

    @property
    def loaded(self) -> str | None:
        """The model that is loaded; None where a server answers."""
        return None if self.on_server else self.model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward of a response: gain · score + bias. The score is that of a reward model, of verifiers, or of both."""

    model: str | None = None
    """A reward model: a stage, `hf:<name>` or `run:<folder>`. Without `verifier` its output is the score."""
    judge: JudgeModel | None = None
    """A language model that scores responses; `judge` in `verifier` is its score, from 0 to 1."""
    moderator: str | None = added_later(None)
    """A moderator: a stage, `hf:<name>` or `run:<folder>`; `moderator` in `verifier` is the probability that a response
    is harmless (docs/moderation.md)."""
    verifier: str | None = None
    """A reward expression, from `"gsm8k"` to `"10 * math if r1_format else 0"` (docs/rlvr.md). A verifier in it is a
    name of docs/verifiers.md or `"module:function"`, called as `function(response, record)` with the columns of the
    prompt's row."""
    missing_end: float | None = -10.0
    """The score of a response without an end token, in place of its own; None keeps its own. −10 is usual for PPO with
    a reward model, 0 for verifiers."""
    gain: float = 1.0
    """The reward is gain · score + bias."""
    bias: float = 0.0
    """The reward is gain · score + bias."""
    seconds: Positive = 10.0
    """A call of a verifier that takes longer is stopped and scores 0."""
    workers: Count | None = None
    """Processes that run verifiers; None for one less than the cores, at most 16."""

    def __post_init__(self):
        if self.model is None and self.verifier is None:
            raise UserError("reward: give a model, a verifier, or both")
        uses_judge = self.verifier is not None and Expression(self.verifier).uses_judge
        if uses_judge != (self.judge is not None):
            raise UserError(
                f"reward: {self.verifier!r} uses the score of a judge; name its model in reward.judge"
                if uses_judge
                else "reward: reward.judge is set but its score is not used; write `judge` into reward.verifier"
            )
        uses_moderator = self.verifier is not None and Expression(self.verifier).uses_moderator
        if uses_moderator != (self.moderator is not None):
            raise UserError(
                f"reward: {self.verifier!r} uses the score of a moderator; name it in reward.moderator"
                if uses_moderator
                else "reward: reward.moderator is set but not used; write `moderator` into reward.verifier"
            )
        if self.verifier is None:
            return
        uses_model = Expression(self.verifier).uses_model
        if uses_model and self.model is None:
            raise UserError(f"reward: {self.verifier!r} uses the score of a reward model; name it in reward.model")
        if self.model is not None and not uses_model:
            raise UserError(
                f"reward: the score of the reward model {self.model} is not used by {self.verifier!r}; write `model` "
                "into it, or leave reward.model out (to initialise the value model from it, set value)"
            )

    def model_uses(self, data: tuple[DataSpec, ...], tokens: int, tokens_field: str) -> tuple[ModelUse, ...]:
        """The reward model, which reads responses to prompts of `data`, and the judge, which has its own tokenizer."""
        uses = (
            [] if self.model is None else [ModelUse("reward.model", self.model, "reward", data, tokens, tokens_field)]
        )
        if self.judge is not None and self.judge.loaded is not None:
            uses.append(ModelUse("reward.judge.model", self.judge.loaded, "language"))
        if self.moderator is not None:
            uses.append(ModelUse("reward.moderator", self.moderator, "language"))
        return tuple(uses)

    @property
    def models(self) -> tuple[str | None, ...]:
        """The reward model and the judge that are loaded, each None where there is none."""
        return self.model, None if self.judge is None else self.judge.loaded
