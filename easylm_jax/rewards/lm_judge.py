"""A language model as the judge of responses, run by the project's own engine (spec tulu3 §6.1, LM judges).

conversation, response, record → questions (`rewards.judge`) → chat template → engine → replies → scores [B]
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from easylm_jax.checkpoint import load as checkpoint_load
from easylm_jax.config import JudgeModel, Sampling, chat_templates
from easylm_jax.data import templates
from easylm_jax.data.tokenizer import Tokenizer, restrict_vocab
from easylm_jax.decode import ScoredCompletions, engine_for, rollout
from easylm_jax.rewards.judge_prompts import Asked, Messages, ask
from easylm_jax.runtime import sharding
from models.errors import UserError
from models.model import Model

PyTree = Any


class LMJudge:
    """Scores responses by what a model replies to questions about them; its vocabulary need not be the policy's.

    Args:
        model, params: the judge, its parameters on `mesh`.
        template: a name of `config.judge_templates.TEMPLATES`; None: each record names its own (`dataset`).
        chat_template: how the judge is spoken to.
        sampling: of its replies; temperature 0 is greedy.
        mesh: left out, the judge runs on one device.
        seed: of the sampling.
    """

    def __init__(
        self, model: Model, params: PyTree, tokenizer: Tokenizer, *, template: str | None, chat_template: str,
        sampling: Sampling, mesh: jax.sharding.Mesh | None = None, seed: int = 0,
    ):  # fmt: skip
        if sampling.max_new_tokens >= model.config.context:
            raise UserError(
                f"judge: replies of {sampling.max_new_tokens} tokens leave no room for a question in its context of "
                f"{model.config.context}; lower sampling.max_new_tokens"
            )
        self.params, self.tokenizer, self.template, self.sampling = params, tokenizer, template, sampling
        self.chat_template = chat_templates.get_template(chat_template)
        self.seed, self.room = seed, model.config.context - sampling.max_new_tokens
        self._ends = templates.end_tokens(self.chat_template, tokenizer)
        self._engine = engine_for(restrict_vocab(model, tokenizer), sampling.slots, mesh)

    def __call__(
        self, conversations: Sequence[Messages], responses: Sequence[str], records: Sequence[Mapping[str, Any]],
        number: int = 0,
    ) -> tuple[np.ndarray, dict[str, int]]:  # fmt: skip
        """The scores of a batch, float32 [B] from 0 to 1, and counts.

        A question that does not fit the context is not asked, and it and a reply that cannot be read count as 0; how
        many there were stands in "judge_too_long" and "judge_unread", all of them in "judge_questions".

        Args:
            conversations: what each response answers, up to the user's last turn.
            records: with the label that the template shows.
            number: of the rollout; replies that are drawn at random depend on it.

        Raises:
            UserError: a record has not what its template needs.
        """
        rows = zip(conversations, responses, records, strict=True)
        asked = [ask(self.template, conversation, response, record) for conversation, response, record in rows]
        replies = self._replies([text for one in asked for text in one.questions], number)
        scores, unread, at = np.zeros(len(asked), np.float32), 0, 0
        for row, one in enumerate(asked):
            mine = replies[at : at + len(one.questions)]
            at += len(mine)
            scores[row] = one.score(mine)
            unread += one.unread(mine)
        too_long = sum(reply is None for reply in replies)
        return scores, {"judge_questions": len(replies), "judge_too_long": too_long, "judge_unread": unread}

    def _replies(self, questions: Sequence[str], number: int) -> list[str | None]:
        """The judge's replies; None for a question that leaves it no room to reply."""
        turns = [[{"role": "user", "content": question}] for question in questions]
        rendered = [templates.generation_prompt(self.chat_template, one) for one in turns]
        prompts = [ids.tolist() for ids, _ in templates.tokenize(rendered, self.tokenizer)]
        fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= self.room]
        replies: list[str | None] = [None] * len(questions)
        if fitting:
            done = self._generated([prompts[index] for index in fitting], rollout.seed_of(self.seed, number))
            for row, index in enumerate(fitting):
                tokens = done.tokens[row, : done.lengths[row]].tolist()
                replies[index] = self.tokenizer.decode(tokens, skip_special=True)
        return replies

    def _generated(self, prompts: Sequence[Sequence[int]], seed: int) -> ScoredCompletions:
        sampling, greedy = self.sampling, self.sampling.temperature == 0
        done = self._engine.generate(
            self.params, prompts, max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature,
            top_k=None if greedy else sampling.top_k, top_p=None if greedy else sampling.top_p, eos_ids=self._ends,
            stop_strings=sampling.stop_strings, seed=seed, scores=True,
            detokenize=functools.partial(self.tokenizer.decode, skip_special=True),
        )  # fmt: skip
        assert isinstance(done, ScoredCompletions)
        return done


def load(judge: JudgeModel, mesh: jax.sharding.Mesh, seed: int = 0) -> LMJudge:
    """The judge that a recipe asks for, its parameters on `mesh`; `judge.model` is `hf:<name>` or `run:<folder>`.

    Raises:
        UserError: the model is a reward model, does not say its vocabulary or its chat template, or is not there.
    """
    source = checkpoint_load.load(judge.model.removeprefix("run:"), tokenizer=judge.tokenizer, mesh=mesh)
    sharding.check_heads(source.decoder.config, mesh)
    chat_template = judge.chat_template or source.template
    if chat_template is None:
        raise UserError(f"judge: {judge.model} does not say its chat template; give chat_template")
    return LMJudge(
        source.decoder, source.params, source.tokenizer, template=judge.template, chat_template=chat_template,
        sampling=judge.sampling, mesh=mesh, seed=seed,
    )  # fmt: skip


__all__ = ["Asked", "LMJudge", "load"]
