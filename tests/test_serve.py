"""`easylm serve`: what clients get is what the engine generates; bad requests, vanishing clients, keys, the end."""

import concurrent.futures
import functools
import gc
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import data_kit
import jax
import numpy as np
import pytest
from tiny_models import random_params

import models
from easylm_jax.cli.main import main
from easylm_jax.config import Server
from easylm_jax.data import load_tokenizer, templates
from easylm_jax.data.tokenizer import restrict_vocab
from easylm_jax.decode import Engine
from easylm_jax.decode.endpoint import Client, request
from easylm_jax.decode.server import Served, application
from easylm_jax.decode.stream import Stream
from models.config import DecoderConfig

uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
CONFIG = DecoderConfig(
    "olmo2", layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=424, context=96, qk_norm=True
)  # fmt: skip


class Running:
    """The application in a thread, and the engine beside it."""

    def __init__(self, folder, **options):
        self.tokenizer = load_tokenizer(data_kit.sentencepiece(folder))
        self.model = restrict_vocab(models.build(CONFIG), self.tokenizer)
        self.params = random_params(self.model)
        self.ends = templates.end_tokens("tulu", self.tokenizer)
        self.engine = Engine(self.model, slots=8, block=4)
        self.detokenize = functools.partial(self.tokenizer.decode, skip_special=True)
        self.stream = Stream(self.engine, self.params, slots=8, eos_ids=self.ends, detokenize=self.detokenize, most=100)
        served = Served("tiny", self.stream, self.tokenizer, "tulu", False, **options)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(application(served), log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def close(self):
        self.server.should_exit = True
        self.thread.join()
        self.stream.close()
        self.listener.close()

    def ask(self, path, body=None, headers=None, method=None):
        """(status, reply) of one request; `body` is an object, or bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, raw, headers or {})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def completion(self, **body):
        status, reply = self.ask("/v1/completions", body)
        assert status == 200, reply
        return reply["choices"]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = Running(tmp_path_factory.mktemp("tokenizer"))
    yield server
    server.close()


def prompt(seed, length=6):
    return np.random.default_rng(seed).integers(300, 420, length).tolist()


def test_greedy_completions_are_those_of_the_engine_with_its_logprobs(running):
    prompts = [prompt(i, 3 + 4 * i) for i in range(5)]
    whole = running.engine.generate(
        running.params, prompts, max_new_tokens=12, temperature=0, eos_ids=running.ends, scores=True
    )
    choices = running.completion(prompt=prompts, max_tokens=12, temperature=0, logprobs=1)
    for row, choice in enumerate(choices):
        length = whole.lengths[row]
        assert choice["token_ids"] == whole.tokens[row, :length].tolist()
        assert choice["finish_reason"] == ("stop" if whole.ended[row] else "length")
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], whole.logprobs[row, :length], atol=1e-4)


def test_chat_renders_the_template_and_reports_what_it_used(running):
    messages = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": [{"type": "text", "text": "a dog"}]},
    ]
    plain = [{"role": "system", "content": "short"}, {"role": "user", "content": "a dog"}]
    ids = templates.encode_prompt("tulu", plain, running.tokenizer)
    body = {"messages": messages, "max_tokens": 7, "temperature": 0, "logprobs": True, "n": 2}
    status, reply = running.ask("/v1/chat/completions", body)
    assert status == 200 and reply["model"] == "tiny" and reply["object"] == "chat.completion"
    (expected,) = running.completion(prompt=ids, max_tokens=7, temperature=0)
    for choice in reply["choices"]:
        assert choice["token_ids"] == expected["token_ids"]
        assert choice["message"] == {"role": "assistant", "content": running.detokenize(choice["token_ids"])}
        assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    new = sum(len(choice["token_ids"]) for choice in reply["choices"])
    assert reply["usage"] == {"prompt_tokens": len(ids), "completion_tokens": new, "total_tokens": len(ids) + new}
    assert running.ask("/v1/models")[1]["data"][0]["id"] == "tiny" and running.ask("/health") == (200, {"status": "ok"})


def test_sampled_responses_depend_on_their_seed_and_not_on_the_company(running):
    body = {"max_tokens": 10, "temperature": 0.9, "top_p": 0.95, "top_k": 50, "n": 2, "logprobs": 1}
    alone = running.completion(prompt=prompt(1), seed=5, **body)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(running.completion, prompt=prompt(i), seed=5, **body) for i in range(6)]
    together = [future.result() for future in futures]
    assert [c["token_ids"] for c in together[1]] == [c["token_ids"] for c in alone]
    assert (
        alone[0]["token_ids"]
        != alone[1]["token_ids"]
        != running.completion(prompt=prompt(1), seed=6, **body)[0]["token_ids"]
    )


def test_stop_texts_end_a_response_and_are_not_in_it(running):
    (whole,) = running.completion(prompt=prompt(2), max_tokens=12, temperature=0)
    stop = whole["text"][3:5]
    (cut,) = running.completion(prompt=prompt(2), max_tokens=12, temperature=0, stop=[stop])
    assert cut["finish_reason"] == "stop" and cut["text"] == whole["text"][: whole["text"].find(stop)]


BAD = [
    ("/v1/completions", b"{", "not JSON"), ("/v1/completions", b"[]", "not a JSON object"),
    ("/v1/completions", {}, "prompt must be"), ("/v1/completions", {"prompt": [[1], "a", 3]}, "prompt must be"),
    ("/v1/completions", {"prompt": [99999]}, "token id outside"),
    ("/v1/completions", {"prompt": ""}, "prompt is empty"),
    ("/v1/completions", {"prompt": [5] * 96}, "96 tokens"), ("/v1/completions", {"prompt": [5], "n": 0}, "n must be"),
    ("/v1/completions", {"prompt": [5], "max_tokens": 96}, "exceeds the maximum length"),
    ("/v1/completions", {"prompt": [5], "temperature": "hot"}, "temperature must be a number"),
    ("/v1/completions", {"prompt": [5], "top_p": 0}, "top_p must be above 0"),
    ("/v1/completions", {"prompt": [5], "stop": [""]}, "stop must be"),
    ("/v1/completions", {"prompt": [5], "seed": -1}, "seed must be"),
    ("/v1/completions", {"prompt": [5], "stream": True}, "stream is not supported"),
    ("/v1/completions", b'{"prompt": "\\ud800"}', "not JSON"),
    ("/v1/chat/completions", {"messages": []}, "messages must be"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0] must have"),
    ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "the role 'robot'"),
    ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, "must end with a user turn"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3}, "top_logprobs"),
]  # fmt: skip


def test_bad_requests_are_one_line_and_the_server_goes_on(running):
    for path, body, says in BAD:
        status, reply = running.ask(path, body)
        message = reply["error"]["message"]
        assert status == 400 and says in message and "\n" not in message, (body, status, reply)
    assert running.ask("/v1/nothing")[0] == 404 and running.ask("/v1/completions")[0] == 405
    assert running.ask("/v1/completions", b"x" * (9 << 20))[0] == 413
    assert running.completion(prompt=prompt(3), max_tokens=2)


def vanish(running, seed):
    """Asks, and closes the connection before the answer."""
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        raw = json.dumps({"prompt": prompt(seed), "max_tokens": 80, "temperature": seed % 2}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
        client.sendall(head.encode() + raw[: seed % 3 and len(raw)])
        time.sleep(random.Random(seed).random() / 10)


def test_sixty_four_clients_half_of_which_vanish_are_all_answered(running):
    before = jax.live_arrays()

    def one(seed):
        if seed % 2:
            return vanish(running, seed)
        return running.completion(prompt=prompt(seed), max_tokens=4 + 60 * (seed % 8 == 0), temperature=0)

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, range(64)))
    lanes = running.stream._lanes.values()
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        again = list(pool.map(one, range(64)))
    assert [a and a[0]["token_ids"] for a in again] == [a and a[0]["token_ids"] for a in answers]
    deadline = time.monotonic() + 60
    while any(lane.active or lane.waiting for lane in lanes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(lane.active or lane.waiting for lane in lanes)  # nobody's work is left
    # Memory is that of the slots, however many clients there were: the parameters that decoding reads, and for each
    # lane the keys and values of every slot at the longest length. What other tests hold was there before.
    size = running.engine.bucket(running.model.config.context + running.engine.block)
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(
        jax.eval_shape(lambda: running.engine.new_cache(8, size))))  # fmt: skip
    params = sum(array.nbytes for array in jax.tree.leaves(running.params))
    held = {id(array) for array in before}
    gc.collect()
    new = sum(array.nbytes for array in jax.live_arrays() if id(array) not in held)
    assert new <= 2 * params + len(lanes) * cache
    for seed in range(0, 64, 2):
        (expected,) = running.completion(prompt=prompt(seed), max_tokens=4, temperature=0)
        assert answers[seed][0]["token_ids"][:4] == expected["token_ids"]


def test_the_openai_client_gets_what_the_engine_generates(running):
    openai = pytest.importorskip("openai", reason="the client `openai` is not installed")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="none", max_retries=0)
    asked = [[{"role": "user", "content": f"cats and {n} dogs"}] for n in range(3)]
    prompts = [templates.encode_prompt("tulu", messages, running.tokenizer) for messages in asked]
    whole = running.engine.generate(
        running.params, prompts, max_new_tokens=12, temperature=0, eos_ids=running.ends, scores=True
    )
    for row, messages in enumerate(asked):
        length = whole.lengths[row]
        reply = client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=12, logprobs=True
        )  # fmt: skip
        (choice,) = reply.choices
        assert choice.token_ids == whole.tokens[row, :length].tolist()
        assert choice.message.content == running.detokenize(choice.token_ids)
        assert choice.finish_reason == ("stop" if whole.ended[row] else "length")
        logprobs = [token.logprob for token in choice.logprobs.content]
        np.testing.assert_allclose(logprobs, whole.logprobs[row, :length], atol=1e-4)
        plain = client.completions.create(model="tiny", prompt=prompts[row], temperature=0, max_tokens=12, logprobs=1)
        assert plain.choices[0].token_ids == choice.token_ids and plain.usage.completion_tokens == length
        np.testing.assert_allclose(plain.choices[0].logprobs.token_logprobs, whole.logprobs[row, :length], atol=1e-4)
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.BadRequestError, match="temperature must be"):
        client.chat.completions.create(model="tiny", messages=asked[0], temperature=-1)
    client.close()


def test_our_client_speaks_to_our_server_with_its_key(tmp_path, monkeypatch):
    server = Running(tmp_path, key="sesame")
    try:
        assert server.ask("/v1/models")[0] == 401 and server.ask("/health")[0] == 200
        assert server.ask("/v1/models", headers={"Authorization": "Bearer sesame"})[0] == 200
        monkeypatch.setenv("SERVER_KEY", "sesame")
        client = Client(Server(url=f"http://127.0.0.1:{server.port}/v1", model="tiny", key="SERVER_KEY"))
        bodies = {
            str(i): request([{"role": "user", "content": f"cats {i}"}], max_tokens=5, logprobs=True) for i in range(4)
        }
        answers = dict(client.ask_all(bodies))
        assert len(answers) == 4 and all(a.failed is None and len(a.logprobs) == a.tokens_out for a in answers.values())
        bad = client.ask(request([{"role": "user", "content": "x"}], temperature=-1))
        assert bad.failed.startswith("refused: status 400: temperature must be")
        client.close()
    finally:
        server.close()


def test_the_command_listens_locally_answers_what_it_has_and_ends_with_0(tmp_path):
    tokenizer = load_tokenizer(data_kit.sentencepiece(tmp_path))
    model = models.build(CONFIG)
    models.save_hf(model, random_params(model), tmp_path / "model")
    command = [sys.executable, "-m", "easylm_jax", "serve", str(tmp_path / "model"), "--port", "0", "--tokenizer",
               tokenizer.spec, "--template", "tulu"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               cwd=Path(__file__).resolve().parent.parent, env=dict(os.environ))  # fmt: skip
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/v1", process.stdout.readline())[1])
        client = Client(Server(url=f"http://127.0.0.1:{port}/v1", model="model", attempts=8))
        body = request([{"role": "user", "content": "cats"}], max_tokens=60, temperature=0)
        assert client.ask(body).failed is None
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            last = pool.submit(client.ask, body)
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert last.result().failed is None
        client.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_what_cannot_be_served_is_one_line(tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path), "--port", port]) == 2
    assert "choose another --port" in capsys.readouterr().err
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert main(["serve", str(tmp_path), "--port", "0", "--key", "NO_SUCH_KEY"]) == 2
    assert "NO_SUCH_KEY, which should hold the key, is not set" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none"), "--port", "0"]) == 2
