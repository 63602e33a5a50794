"""A client for servers that speak OpenAI's chat completions: many requests at once, retries, limits, a ledger.

    client = Client(Server(url="https://api.example.com/v1", model="judge", key="JUDGE_KEY"))
    for name, answer in client.ask_all({"row-1": request(messages, temperature=0)}, journal):
        ...

The key is the value of an environment variable. It is read when a request is sent, kept in no object, and replaced in
every message of a server that repeats it. Answers are appended to a journal as they come, so that a run that was
stopped asks nothing twice.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import http.client
import json
import math
import os
import random
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NotRequired, TypedDict

from easylm_jax.config.writing import Server
from models import reading
from models.errors import UserError

_MAX_BYTES = 64 << 20  # of an answer
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds before the second attempt, and at most between two
_SAID = 200  # characters of a server's message that are shown


KEY = "OPENAI_API_KEY"  # of servers that are named in one text
SCHEMES = ("http://", "https://")


def named_server(name: str, what: str, **fields: Any) -> Server:
    """The server that `https://host/v1#model` names; its key, where it needs one, is in `OPENAI_API_KEY`.

    Args:
        name: the address, and behind a # the model.
        what: whose it is, for the message of an error.
        fields: further fields of `Server`.

    Raises:
        UserError: no model is named, or the address is none.
    """
    address, _, model = name.partition("#")
    if not model:
        raise UserError(f"{what} {name}: name its model behind a #, as https://host/v1#model")
    return Server(url=address, model=model, key=KEY if os.environ.get(KEY) else None, **fields)


class Answer(NamedTuple):
    """A finished request: its text, why it ended, tokens in and out, and log-probabilities if asked for; or `failed`,
    the reason why no attempt was answered."""

    text: str
    finish: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    logprobs: list[float] | None = None
    failed: str | None = None


class _Message(TypedDict):
    content: str | None


class _Token(TypedDict):
    logprob: float


class _Logprobs(TypedDict):
    content: NotRequired[list[_Token] | None]


class _Choice(TypedDict):
    message: _Message
    finish_reason: NotRequired[str | None]
    logprobs: NotRequired[_Logprobs | None]


class _Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: NotRequired[int]


class _Reply(TypedDict):
    choices: list[_Choice]
    usage: NotRequired[_Usage | None]


class _Line(TypedDict):
    id: str
    answer: list[Any]


class Ledger:
    """Counts of requests, attempts and their faults, tokens and cost; safe to change from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._cost = 0.0

    def add(self, cost: float = 0.0, **counts: int) -> None:
        """Adds to counts."""
        with self._lock:
            self._counts.update(counts)
            self._cost += cost

    def summary(self) -> dict[str, Any]:
        """The counts by name, and the cost."""
        with self._lock:
            return {**dict(sorted(self._counts.items())), "cost": self._cost}


def request(messages: Sequence[Mapping[str, str]], **sampling: Any) -> dict[str, Any]:
    """The body of a request; `sampling` are the protocol's fields, such as temperature, max_tokens, stop and seed."""
    return {"messages": [dict(message) for message in messages], **sampling}


class _Fault(Exception):
    """An attempt that failed: a name for the ledger, what to say, and the seconds that the server asks to wait."""

    def __init__(self, name: str, said: str, wait: float | None = None, final: bool = False):
        super().__init__(said)
        self.name, self.said, self.wait, self.final = name, said, wait, final


class Client:
    """Asks one server; its ledger counts everything that was asked through it.

    Args:
        server: where and how.
        sleep: waits for so many seconds; by default until then, or until a run of `ask_all` is left.
    """

    def __init__(self, server: Server, sleep: Callable[[float], Any] | None = None):
        self.server, self.ledger = server, Ledger()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque()
        self._sleep = self._stopped.wait if sleep is None else sleep
        self._next = 0.0  # when the next request may be sent, by the monotonic clock
        if server.key is not None and not os.environ.get(server.key):
            raise UserError(f"server: the environment variable {server.key}, which should hold the key, is not set")

    def close(self) -> None:
        """Closes the connections that are kept for further requests."""
        while self._idle:
            self._idle.pop().close()

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """The answer to one request, after as many attempts as it takes.

        Raises:
            UserError: the server refuses the key or does not know the model or address.
        """
        wait, fault = 0.0, _Fault("none", "")
        self.ledger.add(requests=1)
        for attempt in range(self.server.attempts):
            if attempt:
                backoff = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                self._sleep(max(backoff, wait))
            self._await_turn()
            try:
                answer = self._attempt(body)
            except _Fault as found:
                fault = found
                self.ledger.add(**{found.name: 1})
                if found.final or self._stopped.is_set():
                    break
                wait = found.wait or 0.0
                continue
            price = answer.tokens_in * self.server.price_in + answer.tokens_out * self.server.price_out
            self.ledger.add(price / 1e6, answered=1, tokens_in=answer.tokens_in, tokens_out=answer.tokens_out)
            return answer
        self.ledger.add(failed=1)
        return Answer("", failed=f"{fault.name}: {fault.said}")

    def ask_all(
        self,
        requests: Mapping[str, Mapping[str, Any]],
        journal: Path | None = None,
        known: Mapping[str, Answer] | None = None,
    ) -> Iterator[tuple[str, Answer]]:
        """(name, answer) of every request, as answers come; those of the journal first.

        Args:
            requests: bodies by name.
            journal: a JSONL file that answers are appended to; requests that it answers are not sent. Requests that
                failed are not in it, so that another run tries them again.
            known: the answers of the journal, of a caller that has read it; None reads it.
        """
        done = known if known is not None else {} if journal is None else read_journal(journal)
        for name in requests:
            if name in done:
                yield name, done[name]
        left = iter([(name, body) for name, body in requests.items() if name not in done])
        pool = concurrent.futures.ThreadPoolExecutor(self.server.concurrency, thread_name_prefix="endpoint")
        running: dict[concurrent.futures.Future[Answer], str] = {}
        try:
            with _appending(journal) as append:
                try:
                    yield from self._answers(left, pool, running, append)
                finally:  # what is being answered while an error or the caller ends this is kept too
                    self._stopped.set()
                    for future, name in running.items():
                        if not future.cancel() and future.exception() is None and future.result().failed is None:
                            append(name, future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._stopped.clear()
            self.close()

    def _answers(
        self, left: Iterator[tuple[str, Mapping[str, Any]]], pool: concurrent.futures.Executor,
        running: dict[concurrent.futures.Future[Answer], str], append: Callable[[str, Answer], None],
    ) -> Iterator[tuple[str, Answer]]:  # fmt: skip
        while True:
            for name, body in left:
                running[pool.submit(self.ask, body)] = name
                if len(running) >= 2 * self.server.concurrency:
                    break
            if not running:
                return
            for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                name, answer = running.pop(future), future.result()
                if answer.failed is None:
                    append(name, answer)
                yield name, answer

    def _await_turn(self) -> None:
        """Waits until the limit of requests in a minute, and a server's `Retry-After`, allow another."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            if self.server.per_minute is not None:
                self._next = at + 60 / self.server.per_minute
        if at > now:
            self._sleep(at - now)

    def _attempt(self, body: Mapping[str, Any]) -> Answer:
        deadline = time.monotonic() + self.server.timeout
        try:
            connection = self._idle.pop()  # kept again only after a whole answer
        except IndexError:
            connection = self._connection()
        try:
            status, headers, raw = self._exchange(
                connection, json.dumps({"model": self.server.model, **body}), deadline
            )
        except TimeoutError:
            connection.close()
            raise _Fault("timed_out", f"no answer in {self.server.timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise UserError(f"server: {self.server.url}: {error.verify_message}") from None
        except ConnectionRefusedError:
            connection.close()
            raise _Fault("unreachable", f"nothing listens at {self.server.url}") from None
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise _Fault("closed", f"the connection ended: {type(error).__name__}") from None
        if status == 200:
            try:
                answer = self._parse(raw)
            except _Fault:
                connection.close()
                raise
            self._idle.append(connection)
            return answer
        connection.close()
        raise self._refusal(status, headers, raw)

    def _connection(self) -> http.client.HTTPConnection:
        parts = urllib.parse.urlsplit(self.server.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(str(parts.hostname), parts.port, timeout=self.server.timeout)

    def _exchange(
        self, connection: http.client.HTTPConnection, body: str, deadline: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Sends a request and reads the whole reply, within the deadline even if bytes come one by one."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.server.key is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.server.key, '')}"
        path = urllib.parse.urlsplit(self.server.url).path.rstrip("/") + "/chat/completions"
        connection.timeout = max(0.001, deadline - time.monotonic())
        connection.request("POST", path, body.encode(), headers)
        raw, sock = bytearray(), connection.sock
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        with contextlib.closing(connection.getresponse()) as reply:
            while chunk := reply.read1(1 << 16):
                raw += chunk
                if len(raw) > _MAX_BYTES:
                    raise http.client.HTTPException("an answer of more than 64 MB")
                if time.monotonic() >= deadline:
                    raise TimeoutError
                sock.settimeout(max(0.001, deadline - time.monotonic()))
        expected = reply.headers.get("Content-Length", "")
        if expected.isdecimal() and len(raw) < int(expected):
            raise http.client.IncompleteRead(bytes(raw))
        return reply.status, reply.headers, bytes(raw)

    def _parse(self, raw: bytes) -> Answer:
        try:
            reply = reading.parse_json(raw, _Reply, self.server.url)
        except reading.Damaged as error:
            raise _Fault("garbage", self._shown(error.why)) from None
        if not reply["choices"]:
            raise _Fault("garbage", "an answer without choices")
        choice, usage = reply["choices"][0], reply.get("usage") or {"prompt_tokens": 0}
        content = (choice.get("logprobs") or {}).get("content")
        return Answer(
            choice["message"]["content"] or "", choice.get("finish_reason"), usage["prompt_tokens"],
            usage.get("completion_tokens", 0), None if content is None else [token["logprob"] for token in content],
        )  # fmt: skip

    def _refusal(self, status: int, headers: http.client.HTTPMessage, raw: bytes) -> Exception:
        said = f"status {status}: {self._shown(_error_message(raw))}"
        if status in (401, 403, 404):
            where = "" if self.server.key is None else f" (the key is in {self.server.key})"
            return UserError(f"server: {self.server.url} refuses model {self.server.model!r}, {said}{where}")
        wait = _seconds(headers.get("Retry-After"))
        if status == 429:
            with self._lock:  # all threads wait, not only this one
                self._next = max(self._next, time.monotonic() + (wait or 0.0))
            return _Fault("rate_limited", said, wait)
        if status in (408, 409, 425) or status >= 500:
            return _Fault("server_error", said, wait)
        return _Fault("refused", said, final=True)

    def _shown(self, text: str) -> str:
        """A server's text on one line, shortened, without the key."""
        key = os.environ.get(self.server.key, "") if self.server.key else ""
        text = " ".join((text.replace(key, "…") if key else text).split())
        return text if len(text) <= _SAID else text[: _SAID - 1] + "…"


def _error_message(raw: bytes) -> str:
    """What a server says of a refusal: the protocol's `error.message`, or the text."""
    text = raw[:10_000].decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return min(value, 10 * _LONGEST_WAIT) if math.isfinite(value) and value >= 0 else None


def read_journal(path: Path) -> dict[str, Answer]:
    """The answers of a journal by name; of a last line that a killed process cut, nothing."""
    if not path.is_file():
        return {}
    mend = "delete the line, whose request is then sent again"
    lines = reading.read_lines(path, _Line, mend=mend, last_may_be_cut=True)
    return {line["id"]: Answer(*line["answer"]) for line in lines}


def _end_of_lines(file: BinaryIO) -> int:
    """The bytes up to and with the last line end of a file."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - (1 << 16))
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


class _appending:
    """Appends answers to a journal, each on the disk before the next; a cut last line is removed first."""

    def __init__(self, path: Path | None):
        self._path = path

    def __enter__(self) -> Callable[[str, Answer], None]:
        if self._path is None:
            return lambda name, answer: None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "ab+")  # noqa: SIM115 - closed in __exit__
        self._file.truncate(_end_of_lines(self._file))

        def append(name: str, answer: Answer) -> None:
            line: _Line = {"id": name, "answer": list(answer)}
            self._file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())

        return append

    def __exit__(self, *_: Any) -> None:
        if self._path is not None:
            self._file.close()
