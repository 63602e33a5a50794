"""How responses are drawn and what one is worth: what every stage that writes answers is made of."""

from __future__ import annotations

import dataclasses

from easylm_jax.config.expression import Expression
from easylm_jax.config.judge_templates import TEMPLATES
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn; see `easylm_jax.decode.Engine.generate`. `slots` rows are decoded at once."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop_strings: tuple[str, ...] = ()
    slots: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeModel:
    """A language model that judges responses: it is asked about each, and its reply is read to a score from 0 to 1.

    `model` is a stage, `hf:<name>` or `run:<folder>`. `template` is one of `config.judge_templates.TEMPLATES`, such
    as "general-quality_ref"; left out, the record's `dataset` names it. `chat_template` and `tokenizer` are the judge's
    own, where the model does not say them. `sampling` is greedy unless it has a temperature.
    """

    model: str
    template: str | None = "general-quality"
    chat_template: str | None = None
    tokenizer: str | None = None
    sampling: Sampling = Sampling(1024, temperature=0.0)

    def __post_init__(self):
        if self.template is not None and self.template not in TEMPLATES:
            raise UserError(f"judge: no template {self.template!r}; there are {', '.join(TEMPLATES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """What a response is worth: gain · score + bias.

    `model` is a reward model (a stage, `hf:<name>` or `run:<folder>`); alone, its score is the score. `verifier` is an
    expression of verifiers (`easylm_jax.config.expression`), from `"gsm8k"` to `"10 * math if r1_format else 0"`, in
    which `model` stands for the reward model's score and `judge` for that of a language model that is asked about each
    response. A verifier is a name of `easylm_jax.rewards.VERIFIERS` or
    `"module:function"`, called as `function(response, record)` with the columns of the prompt's record, in one of
    `workers` processes (left out, as many as there are cores to spare); a call that takes more than `seconds` is ended
    and gives 0. A response that never ended has `missing_end` in place of its score (−10 for PPO, 0 for GRPO; None
    leaves its score).
    """

    model: str | None = None
    judge: JudgeModel | None = None
    verifier: str | None = None
    missing_end: float | None = -10.0
    gain: float = 1.0
    bias: float = 0.0
    seconds: float = 10.0
    workers: int | None = None

    def __post_init__(self):
        if self.model is None and self.verifier is None:
            raise UserError("reward: give a model, a verifier, or both")
        if not self.seconds > 0 or (self.workers is not None and self.workers < 1):
            raise UserError("reward: seconds must be above 0 and workers at least 1")
        uses_judge = self.verifier is not None and Expression(self.verifier).uses_judge
        if uses_judge != (self.judge is not None):
            raise UserError(
                f"reward: {self.verifier!r} has a judge's score in it; say which model judges (reward.judge)"
                if uses_judge
                else "reward: a judge is given whose score nothing uses; write `judge` into reward.verifier"
            )
        if self.verifier is None:
            return
        uses_model = Expression(self.verifier).uses_model
        if uses_model and self.model is None:
            raise UserError(
                f"reward: {self.verifier!r} has the score of a reward model in it; say which (reward.model)"
            )
        if self.model is not None and not uses_model:
            raise UserError(
                f"reward: {self.model} is a reward model whose score {self.verifier!r} does not use; write `model` "
                "into it, or leave reward.model out (a value model can start from it all the same: value)"
            )

    @property
    def models(self) -> tuple[str | None, ...]:
        """The models that score: a reward model, a judge."""
        return self.model, None if self.judge is None else self.judge.model
