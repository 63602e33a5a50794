"""Who answers the questions about responses: a model of this project, a server with OpenAI's interface, or an encoder
classifier."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from easylm_jax import decode
from easylm_jax.checkpoint.load import LoadedModel, load, resolve_model
from easylm_jax.data import templates
from easylm_jax.decode.endpoint import SCHEMES, Client, named_server, request
from easylm_jax.evaluate.classifier import PREFIX, Classifier
from easylm_jax.evaluate.identity import identity
from easylm_jax.rewards.moderation import FIELDS, NO, VALUES, YES
from easylm_jax.rewards.moderator import load_moderator, target
from models.errors import UserError

Messages = list[dict[str, str]]
Judge = Callable[[Sequence[Any]], list[str]]  # conversations, or a classifier's texts → replies
MODERATOR = "moderator:"
REPLY = 1024  # most tokens of a reply


def judge_of(name: str, **server: Any) -> Judge:
    """A judge by name: `https://host/v1#model`, a stage's or checkpoint's folder, `hf:…`, `hf-classifier:…`, or
    `moderator:` before a model that was trained as a moderator.

    Replies are greedy. A question that leaves no room for a reply in the context of a judge has the reply "", which no
    benchmark reads as a verdict. `server` are fields of `config.Server` for a server.

    Raises:
        UserError: the model cannot be loaded or has no chat template; later, the server does not answer.
    """
    if name.startswith(SCHEMES):
        return _Server(name, server)
    if name.startswith(PREFIX):
        return Classifier(name)
    if name.startswith(MODERATOR):
        return ModeratorJudge(name)
    model = load(name)
    if model.template is None:
        raise UserError(f"judge {name}: its chat template is not known; give a stage or a folder that has one")
    return Local(model, model.template, identity(*resolve_model(name)[:2], model))


class ModeratorJudge:
    """A moderator as a judge of safety benchmarks: it reads a prompt and a response in the form that it was trained
    with, in place of a question in a chat, and replies with its three lines."""

    def __init__(self, name: str):
        model = name.removeprefix(MODERATOR)
        self.moderator = load_moderator(model)
        self.identity = [MODERATOR, identity(*resolve_model(model)[:2], self.moderator)]

    def __call__(self, exchanges: Sequence[Mapping[str, str]]) -> list[str]:
        """The replies about {"prompt", "response"}; an empty response is neither harmful nor a refusal."""
        records = self.moderator(exchanges)
        return [target({field: _answer(field, record[field]) for field in FIELDS}) for record in records]


def _answer(field: str, value: str | None) -> str:
    """The answer that a value stands for. Without a response there is nothing harmful and nothing refused."""
    return YES if value == VALUES[field][0] else NO


class Local:
    """A judge on the devices of this process. `identity` tells it from others."""

    def __init__(self, model: LoadedModel, template: str, identity: Any = None):
        self.model, self.template, self.identity = model, template, identity

    def __call__(self, conversations: Sequence[Messages]) -> list[str]:
        model = self.model
        prompts = [templates.encode_prompt(self.template, turns, model.tokenizer) for turns in conversations]
        room = model.decoder.config.context
        new = min(REPLY, max(1, room // 2))
        fitting = [number for number, prompt in enumerate(prompts) if len(prompt) + new <= room]
        replies = [""] * len(prompts)
        if fitting:
            done = decode.generate(
                model.decoder, model.params, [prompts[number] for number in fitting], max_new_tokens=new,
                temperature=0.0, eos_ids=templates.end_tokens(self.template, model.tokenizer),
                mesh=model.mesh if model.mesh.size > 1 else None,
                detokenize=functools.partial(model.tokenizer.decode, skip_special=True),
            )  # fmt: skip
            for row, number in enumerate(fitting):
                tokens = done.tokens[row, : done.lengths[row]].tolist()
                replies[number] = model.tokenizer.decode(tokens, skip_special=True)
        return replies


class _Server:
    """A judge behind a server of chat completions; its key, where it needs one, is in `OPENAI_API_KEY`."""

    def __init__(self, name: str, server: Mapping[str, Any]):
        self.identity = name
        self.client = Client(named_server(name, "judge", **server))

    def __call__(self, conversations: Sequence[Messages]) -> list[str]:
        bodies = {str(i): request(turns, temperature=0, max_tokens=REPLY) for i, turns in enumerate(conversations)}
        replies = [""] * len(conversations)
        for number, answer in self.client.ask_all(bodies):
            if answer.failed is not None:
                raise UserError(f"judge {self.client.server.url}: {answer.failed}; what is known is kept")
            replies[int(number)] = answer.text
        return replies
