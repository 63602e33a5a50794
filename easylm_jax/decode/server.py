"""The web application of `easylm serve`: chat completions and completions in OpenAI's form, over a `Stream`.

    POST /v1/chat/completions   messages → choices with a message, and log-probabilities with `logprobs: true`
    POST /v1/completions        prompt (text, token ids, or a list of either) → choices with a text
    GET  /v1/models   GET /health

Every choice also has `token_ids`, the sampled tokens, end token included. What a request gets wrong is one line and a
status from 400 on. A client that goes away frees its row at the next block of tokens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import math
import random
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easylm_jax.config import chat_templates
from easylm_jax.data import templates
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode.stream import Full, Stream, Ticket
from models.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY = 8 << 20
_MAX_CHOICES = 64
_POLL_SECONDS = 0.2  # how often a waiting request looks whether its client is still there
_DEFAULT_COMPLETION = 16  # new tokens, as in OpenAI's interface


class Gone(Exception):
    """The client went away."""


class Refused(Exception):
    """A request that cannot be answered: its status and one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Served:
    """The model that is served.

    Attributes:
        name: as clients see it.
        stream: decodes.
        tokenizer: of the model.
        template: name of its chat template; None for a base model.
        add_bos: whether a plain prompt begins with BOS.
        key: what clients must send as bearer token; None for no key.
    """

    name: str
    stream: Stream
    tokenizer: Tokenizer
    template: str | None
    add_bos: bool
    key: str | None = dataclasses.field(default=None, repr=False)


def application(served: Served) -> Starlette:
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> Response:
        return await _answered(served, request, _models)

    async def chat(request: Request) -> Response:
        return await _answered(served, request, _chat)

    async def completions(request: Request) -> Response:
        return await _answered(served, request, _completions)

    async def unknown(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        return _error(status, f"{request.method} {request.url.path}: {getattr(error, 'detail', 'internal error')}")

    return Starlette(
        routes=[
            Route("/health", health), Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        exception_handlers={404: unknown, 405: unknown, 500: unknown},
    )  # fmt: skip


async def _answered(served: Served, request: Request, answer: Any) -> Response:
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response

    try:
        if served.key is not None:
            sent = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(sent.encode(), served.key.encode()):
                raise Refused(401, "send the server's key as `Authorization: Bearer KEY`")
        return JSONResponse(await answer(served, request))
    except Refused as error:
        return _error(error.status, str(error))
    except UserError as error:
        return _error(400, str(error))
    except Full:
        return _error(503, "as many requests wait as may; try again later", {"Retry-After": "1"})
    except (Gone, ClientDisconnect):
        return Response(status_code=499)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"error": {"message": " ".join(message.split()), "type": kind, "code": status}}
    return JSONResponse(content, status, headers)


async def _models(served: Served, request: Request) -> dict[str, Any]:
    context = served.stream.engine.max_length
    entry = {"id": served.name, "object": "model", "created": 0, "owned_by": "easylm_jax", "max_model_len": context}
    return {"object": "list", "data": [entry]}


async def _body(request: Request) -> dict[str, Any]:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise Refused(413, f"the request has more than {MAX_BODY:,} bytes")
    try:
        body = json.loads(bytes(raw))
        json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused(400, "the request is not a JSON object")
    for name in ("stream", "echo", "tools", "functions", "response_format", "suffix"):
        if body.get(name):
            raise Refused(400, f"{name} is not supported")
    return body


def _number(body: dict[str, Any], name: str, default: Any, low: float, high: float, whole: bool = False) -> Any:
    value = body.get(name)
    if value is None:
        return default
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not (math.isfinite(value) and low <= value <= high):
        what = "a whole number" if whole else "a number"
        raise Refused(400, f"{name} must be {what} from {low:g} to {high:g}, not {json.dumps(value)[:60]}")
    return value


def _tickets(
    served: Served, body: dict[str, Any], prompts: Sequence[Sequence[int]], default: int | None
) -> list[Ticket]:
    """A ticket for each choice of each prompt."""
    context = served.stream.engine.max_length
    limit = _number(body, "max_completion_tokens", None, 1, context, True)
    limit = limit or _number(body, "max_tokens", None, 1, context, True)
    top_p = _number(body, "top_p", 1, 0, 1)
    if not top_p:
        raise Refused(400, "top_p must be above 0")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 16 or not all(isinstance(text, str) and text for text in stop):
        raise Refused(400, "stop must be a text or a list of at most 16 texts")
    count = _number(body, "n", 1, 1, _MAX_CHOICES, True)
    seed = _number(body, "seed", None, 0, 2**62, True)
    seed = random.getrandbits(62) if seed is None else seed
    tickets = []
    for prompt in prompts:
        room = context - len(prompt)
        if room < 1:
            raise Refused(400, f"the prompt has {len(prompt)} tokens, and the model's context {context}")
        for choice in range(count):
            tickets.append(Ticket(
                tokens=list(prompt), limit=limit or min(room, default or room),
                temperature=_number(body, "temperature", 1.0, 0, 100),
                top_k=_number(body, "top_k", None, 1, 2**31 - 1, True), top_p=None if top_p == 1 else top_p,
                stop=tuple(stop), seed=(seed + choice * 0x9E3779B97F4A7C15) % 2**62,
            ))  # fmt: skip
            served.stream.check(tickets[-1])
    return tickets


async def _run(served: Served, request: Request, tickets: Sequence[Ticket]) -> None:
    """Waits for the responses; cancels them when the client goes away."""
    loop = asyncio.get_running_loop()
    left, everything = len(tickets), loop.create_future()

    def one_done() -> None:
        nonlocal left
        left -= 1
        if left == 0 and not everything.done():
            everything.set_result(None)

    def tell() -> None:  # in the decoding thread
        loop.call_soon_threadsafe(one_done)

    for ticket in tickets:
        ticket.done = tell
    try:
        for ticket in tickets:
            served.stream.submit(ticket)
        while not everything.done():
            await asyncio.wait({everything}, timeout=_POLL_SECONDS)
            if not everything.done() and await request.is_disconnected():
                raise Gone
    except BaseException:
        for ticket in tickets:
            ticket.cancelled = True
        raise
    failed = next((ticket.error for ticket in tickets if ticket.error), None)
    if failed:
        raise Refused(500, f"decoding failed: {failed}")


def _choice(served: Served, ticket: Ticket, index: int, before: Sequence[int]) -> tuple[dict[str, Any], str]:
    """What both kinds of choices have, and the text."""
    decode = served.tokenizer.decode
    # Decoded after the tokens before it, because many tokenizers drop a space at the start of a text.
    start, whole = decode(before, skip_special=True), decode([*before, *ticket.response], skip_special=True)
    text = whole[len(start) :] if whole.startswith(start) else decode(ticket.response, skip_special=True)
    cuts = [at for at in map(text.find, ticket.stop) if at >= 0]
    text = text[: min(cuts)] if cuts else text
    finish = "stop" if ticket.ended else "length"
    return {"index": index, "finish_reason": finish, "token_ids": ticket.response}, text


def _usage(tickets: Sequence[Ticket], prompts: Sequence[Sequence[int]]) -> dict[str, int]:
    before, new = sum(map(len, prompts)), sum(len(ticket.response) for ticket in tickets)
    return {"prompt_tokens": before, "completion_tokens": new, "total_tokens": before + new}


def _reply(served: Served, kind: str, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
    prefix = "chatcmpl" if kind == "chat.completion" else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": served.name,
            "choices": choices, "usage": usage}  # fmt: skip


async def _chat(served: Served, request: Request) -> dict[str, Any]:
    body = await _body(request)
    if served.template is None:
        raise Refused(400, "the model has no chat template; use /v1/completions, or serve it with --template")
    messages = _messages(body.get("messages"), served.template)
    if _number(body, "top_logprobs", 0, 0, 20, True):
        raise Refused(400, "top_logprobs is not supported; logprobs gives those of the sampled tokens")
    prompt = templates.encode_prompt(served.template, messages, served.tokenizer)
    tickets = _tickets(served, body, [prompt], None)
    await _run(served, request, tickets)
    choices = []
    for index, ticket in enumerate(tickets):
        choice, text = _choice(served, ticket, index, [])
        choice["message"] = {"role": "assistant", "content": text}
        choice["logprobs"] = None
        if body.get("logprobs"):
            pieces = [served.tokenizer.decode([token]) for token in ticket.response]
            choice["logprobs"] = {"content": [
                {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
                for piece, value in zip(pieces, ticket.logprobs, strict=True)
            ]}  # fmt: skip
        choices.append(choice)
    return _reply(served, "chat.completion", choices, _usage(tickets, [prompt]))


def _messages(value: Any, template: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise Refused(400, "messages must be a list of turns with a role and a content")
    roles = chat_templates.get_template(template).turns
    messages = []
    for number, turn in enumerate(value):
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str) or not isinstance(turn.get("role"), str):
            raise Refused(400, f"messages[{number}] must have a role and a content, both texts")
        if turn["role"] not in roles:
            raise Refused(400, f"messages[{number}] has the role {turn['role'][:40]!r}; there are {', '.join(roles)}")
        messages.append({"role": turn["role"], "content": content})
    if messages[-1]["role"] != "user":
        raise Refused(400, "messages must end with a user turn")
    return messages


async def _completions(served: Served, request: Request) -> dict[str, Any]:
    body = await _body(request)
    _number(body, "best_of", 1, 1, 1, True)
    _number(body, "logprobs", 0, 0, 1, True)  # those of the sampled tokens; no others are at hand
    prompts = [_prompt(served, prompt) for prompt in _prompts(body.get("prompt"))]
    tickets = _tickets(served, body, prompts, _DEFAULT_COMPLETION)
    await _run(served, request, tickets)
    count = len(tickets) // len(prompts)
    choices = []
    for index, ticket in enumerate(tickets):
        choice, text = _choice(served, ticket, index, prompts[index // count])
        choice |= {"text": text, "logprobs": None}
        if body.get("logprobs") is not None:
            pieces = [served.tokenizer.decode([token]) for token in ticket.response]
            ends = [0]
            for piece in pieces:
                ends.append(ends[-1] + len(piece))
            choice["logprobs"] = {"tokens": pieces, "token_logprobs": ticket.logprobs, "top_logprobs": None,
                                  "text_offset": ends[:-1]}  # fmt: skip
        choices.append(choice)
    return _reply(served, "text_completion", choices, _usage(tickets, prompts))


def _prompts(value: Any) -> list[Any]:
    """The prompts of a request: one, or a list of several."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and len(value) <= MAX_BODY:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return [value]
        if all(isinstance(item, (str, list)) for item in value) and len(value) <= _MAX_CHOICES:
            return value
    raise Refused(400, f"prompt must be a text, a list of token ids, or a list of at most {_MAX_CHOICES} of either")


def _prompt(served: Served, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        start = [served.tokenizer.bos_id] if served.add_bos and served.tokenizer.bos_id is not None else []
        ids = start + served.tokenizer.encode(prompt)
        if not ids:
            raise Refused(400, "the prompt is empty")
        return ids
    if not prompt or not all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        raise Refused(400, "prompt must be a text, or token ids")
    return prompt
