"""LM judges: a language model that scores responses, run by the decode engine or behind a server (spec tulu3 §6.1).

conversation, response, record → questions (`judge_prompts`) → chat template → engine → replies → scores [B]
                                                             → requests (`decode.endpoint`)  ↗
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from easylm_jax.checkpoint import load as checkpoint_load
from easylm_jax.config import JudgeModel, Sampling
from easylm_jax.data import templates
from easylm_jax.data.tokenizer import Tokenizer, restrict_vocab
from easylm_jax.data.tokenizer_template import resolve
from easylm_jax.decode import ScoredCompletions, engine_for, rollout
from easylm_jax.decode.endpoint import Client, named_server, request
from easylm_jax.rewards.judge_prompts import JudgeQuestions, Messages, judge_questions
from easylm_jax.runtime import processes, sharding
from models.errors import UserError
from models.model import Model

PyTree = Any


class Judge:
    """Scores responses by a language model's replies to questions about them; where they come from is `_replies`.

    `template` is a name of `config.judge_templates.TEMPLATES`; None: each record names its own (`dataset`).
    """

    template: str | None

    def __call__(
        self, conversations: Sequence[Messages], responses: Sequence[str], records: Sequence[Mapping[str, Any]],
        step: int = 0,
    ) -> tuple[np.ndarray, dict[str, int]]:  # fmt: skip
        """The scores of a batch, float32 [B] from 0 to 1, and counts.

        A question that exceeds the context is skipped; it and a reply that cannot be parsed score 0. The counts are
        "judge_questions" (all), "judge_too_long" (skipped) and "judge_unread" (replies that could not be parsed).

        Args:
            conversations: the prompt of each response, up to the user's last turn.
            responses: the responses to score.
            records: the record of each prompt, with the label that the template shows.
            step: of the rollout; the sampling of the replies depends on it.

        Raises:
            UserError: a record lacks what its template needs.
        """
        rows = zip(conversations, responses, records, strict=True)
        questions = [judge_questions(self.template, *row) for row in rows]
        replies = self._replies([text for each in questions for text in each.texts], step)
        scores, unparsed, start = np.zeros(len(questions), np.float32), 0, 0
        for row, each in enumerate(questions):
            own = replies[start : start + len(each.texts)]
            start += len(own)
            scores[row] = each.score(own)
            unparsed += each.unparsed(own)
        too_long = sum(reply is None for reply in replies)
        return scores, {"judge_questions": len(replies), "judge_too_long": too_long, "judge_unread": unparsed}

    def _replies(self, questions: Sequence[str], step: int) -> list[str | None]:
        """The judge's replies; None for a question that leaves no room for a reply."""
        raise NotImplementedError


class LMJudge(Judge):
    """A judge on the devices; its tokenizer may differ from the policy's.

    Args:
        model: the judge.
        params: its parameters on `mesh`.
        tokenizer: of the judge.
        template: a name of `config.judge_templates.TEMPLATES`; None: each record names its own (`dataset`).
        chat_template: name of the chat template of the judge.
        sampling: of its replies; temperature 0 is greedy.
        mesh: the devices; None for one device.
        seed: of the sampling.

    Raises:
        UserError: `sampling.max_new_tokens` leaves no room for a question in the judge's context.
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
        self.chat_template = resolve(chat_template, tokenizer)
        self.seed, self.room = seed, model.config.context - sampling.max_new_tokens
        self._ends = templates.end_tokens(self.chat_template, tokenizer)
        self._engine = engine_for(restrict_vocab(model, tokenizer), sampling.slots, mesh)

    def _replies(self, questions: Sequence[str], step: int) -> list[str | None]:
        turns = [[{"role": "user", "content": question}] for question in questions]
        rendered = [templates.generation_prompt(self.chat_template, messages) for messages in turns]
        prompts = [ids.tolist() for ids, _ in templates.tokenize(rendered, self.tokenizer)]
        fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= self.room]
        replies: list[str | None] = [None] * len(questions)
        if fitting:
            completions = self._generate([prompts[index] for index in fitting], rollout.rollout_seed(self.seed, step))
            for row, index in enumerate(fitting):
                tokens = completions.tokens[row, : completions.lengths[row]].tolist()
                replies[index] = self.tokenizer.decode(tokens, skip_special=True)
        return replies

    def _generate(self, prompts: Sequence[Sequence[int]], seed: int) -> ScoredCompletions:
        sampling, greedy = self.sampling, self.sampling.temperature == 0
        completions = self._engine.generate(
            self.params, prompts, max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature,
            top_k=None if greedy else sampling.top_k, top_p=None if greedy else sampling.top_p, eos_ids=self._ends,
            stop_strings=sampling.stop_strings, seed=seed, scores=True,
            detokenize=functools.partial(self.tokenizer.decode, skip_special=True),
        )  # fmt: skip
        assert isinstance(completions, ScoredCompletions)
        return completions


class ServerJudge(Judge):
    """A judge behind a server with OpenAI's interface; the first process asks, and all get the same replies.

    Args:
        name: its address and model, `https://host/v1#model`.
        template: as of `Judge`.
        sampling: of its replies; `top_k` is not of the protocol and not sent.
        seed: of the sampling, sent with every request.
        server: further fields of `config.Server`.

    Raises:
        UserError: the address names no model; later, the server did not answer a question after all attempts.
    """

    def __init__(self, name: str, *, template: str | None, sampling: Sampling, seed: int = 0, **server: Any):
        self.template, self.sampling, self.seed = template, sampling, seed
        self.client = Client(named_server(name, "judge", **server))

    def _replies(self, questions: Sequence[str], step: int) -> list[str | None]:
        own = self._asked(questions, step) if processes.is_first_process() else []
        return json.loads(processes.gather_bytes(json.dumps(own).encode())[0])

    def _asked(self, questions: Sequence[str], step: int) -> list[str]:
        sampling = self.sampling
        fields: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens,
                                  "seed": rollout.rollout_seed(self.seed, step)}  # fmt: skip
        if sampling.top_p is not None:
            fields["top_p"] = sampling.top_p
        if sampling.stop_strings:
            fields["stop"] = list(sampling.stop_strings)
        bodies = {str(i): request([{"role": "user", "content": text}], **fields) for i, text in enumerate(questions)}
        replies = [""] * len(questions)
        for number, answer in self.client.ask_all(bodies):
            if answer.failed is not None:
                raise UserError(f"judge {self.client.server.url}: {answer.failed}")
            replies[int(number)] = answer.text
        return replies


def load(judge: JudgeModel, mesh: jax.sharding.Mesh, seed: int = 0) -> Judge:
    """The judge of a recipe, loaded onto `mesh`; `judge.model` is `hf:<name>`, `run:<folder>` or a server.

    Raises:
        UserError: the model does not exist, is a reward model, or has no tokenizer or chat template.
    """
    if judge.on_server:
        return ServerJudge(judge.model, template=judge.template, sampling=judge.sampling, seed=seed)
    source = checkpoint_load.load(judge.model.removeprefix("run:"), tokenizer=judge.tokenizer, mesh=mesh)
    sharding.check_heads(source.decoder.config, mesh)
    chat_template = judge.chat_template or source.template
    if chat_template is None:
        raise UserError(f"judge: {judge.model} has no chat template; set chat_template")
    return LMJudge(
        source.decoder, source.params, source.tokenizer, template=judge.template, chat_template=chat_template,
        sampling=judge.sampling, mesh=mesh, seed=seed,
    )  # fmt: skip


__all__ = ["Judge", "JudgeQuestions", "LMJudge", "ServerJudge", "load"]
