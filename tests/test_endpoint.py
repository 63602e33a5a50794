"""The client for servers of chat completions, against a server that fails in every way."""

import collections
import itertools
import json

import pytest
from faulty_server import faulty_server

from easylm_jax.config import Server
from easylm_jax.decode.endpoint import Answer, Client, read_journal, request
from models import reading
from models.errors import UserError

FAULTS = ("slow", "drip", "busy", "broken", "garbage", "prose", "cut", "hangup")


@pytest.fixture(scope="module")
def server():
    with faulty_server() as running:
        yield running


@pytest.fixture
def client(server):
    made = []

    def make(**options):
        sleep = options.pop("sleep", lambda _: None)
        made.append(Client(Server(url=server.url, model="m", **{"timeout": 0.3, "concurrency": 4, **options}), sleep))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ask(text):
    return request([{"role": "user", "content": text}])


def count(server, prefix):
    return collections.Counter(name for name, _, _ in server.asked if name.startswith(prefix))


def test_every_fault_is_counted_and_every_request_is_answered_once(server, client, tmp_path):
    faults = [*itertools.permutations(FAULTS[2:], 2)][:24] + [("slow",), ("drip",), ("slow", "drip"), ()]
    requests = {f"a{i}": ask(" ".join((f"a{i}", *each))) for i, each in enumerate(faults)}
    asking = client(price_in=2.0, price_out=4.0)
    answers = list(asking.ask_all(requests, tmp_path / "journal.jsonl"))
    assert sorted(name for name, _ in answers) == sorted(requests)
    assert all(answer.text == f"echo {name}" and answer.failed is None for name, answer in answers)
    assert count(server, "a") == {f"a{i}": len(each) + 1 for i, each in enumerate(faults)}
    expected = collections.Counter(fault for each in faults for fault in each)
    ledger = asking.ledger.summary()
    assert ledger["timed_out"] == expected["slow"] + expected["drip"]
    assert ledger["garbage"] == expected["garbage"] + expected["prose"]
    assert ledger["rate_limited"] == expected["busy"] and ledger["server_error"] == expected["broken"]
    assert ledger["closed"] == expected["cut"] + expected["hangup"]
    assert ledger["requests"] == ledger["answered"] == len(requests) and "failed" not in ledger
    assert (
        ledger["cost"] == pytest.approx((2 * ledger["tokens_in"] + 4 * ledger["tokens_out"]) / 1e6) and server.most <= 8
    )
    lines = list(reading.read_lines(tmp_path / "journal.jsonl"))
    assert sorted(line["id"] for line in lines) == sorted(requests)


def test_what_the_journal_has_is_not_asked_again(server, client, tmp_path):
    journal = tmp_path / "journal.jsonl"
    requests = {f"b{i}": ask(f"b{i}") for i in range(6)}
    first = dict(client().ask_all({name: requests[name] for name in ("b0", "b1", "b2")}, journal))
    assert read_journal(journal) == first
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-7])  # a process that was killed while it wrote
    assert len(read_journal(journal)) == 2
    answers = dict(client().ask_all(requests, journal))
    assert len(answers) == 6 and sorted(count(server, "b").values()) == [1, 1, 1, 1, 1, 2]
    assert len(list(reading.read_lines(journal))) == 6


def test_a_caller_that_leaves_early_keeps_what_was_answered(server, client, tmp_path):
    requests = {f"c{i}": ask(f"c{i}") for i in range(40)}
    asking = client().ask_all(requests, tmp_path / "j.jsonl")
    for _ in range(3):
        next(asking)
    asking.close()
    kept = read_journal(tmp_path / "j.jsonl")
    assert 3 <= len(kept) < 40
    rest = dict(client().ask_all(requests, tmp_path / "j.jsonl"))
    assert len(rest) == 40 and {name: rest[name] for name in kept} == kept


def test_a_request_that_never_succeeds_is_one_failed_answer(server, client):
    asking = client(attempts=3)
    answers = dict(asking.ask_all({"d": ask("d broken garbage cut broken"), "e": ask("e bad"), "f": ask("f")}))
    assert answers["d"].failed.startswith("closed: ") and answers["f"] == Answer("echo f", "stop", 1, 2)
    assert answers["e"].failed == "refused: status 400: no, None" and count(server, "e")["e"] == 1
    assert asking.ledger.summary()["failed"] == 2


def test_the_key_is_sent_and_never_shown(server, client, monkeypatch, capsys):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    asking = client(key="TEST_KEY")
    answer = asking.ask(ask("g bad"))
    assert server.asked[-1][1] == "Bearer sk-secret" and answer.failed == "refused: status 400: no, Bearer …"
    with pytest.raises(UserError, match=r"status 401: bad key Bearer … \(the key is in TEST_KEY\)"):
        list(asking.ask_all({"h": ask("h forbidden")}))
    assert "sk-secret" not in repr(vars(asking)) + repr(asking.ledger.summary()) + "".join(capsys.readouterr())
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(UserError, match="TEST_KEY, which should hold the key, is not set"):
        client(key="TEST_KEY")


def test_waits_grow_and_follow_the_server(server, client):
    waits = []
    client(attempts=4, sleep=waits.append).ask(ask("i broken broken broken"))
    assert len(waits) == 3 and all(0.25 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits))
    waits.clear()
    limited = client(per_minute=600, sleep=waits.append)
    assert [limited.ask(ask(f"i{i}")).failed for i in range(3)] == [None] * 3
    assert len(waits) == 2 and 0.05 < waits[0] <= 0.1 < waits[1] <= 0.2  # the clock of a test does not wait


def test_nothing_that_listens_is_a_failed_answer():
    gone = Client(Server(url="http://127.0.0.1:9/v1", model="m", attempts=2), sleep=lambda _: None)
    assert gone.ask(ask("x")).failed.startswith("unreachable: nothing listens at http://127.0.0.1:9/v1")


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:80", "http://me:word@x/v1", "https://x/v1?key=3"])
def test_an_address_that_is_none_is_one_line(url):
    with pytest.raises(UserError, match="server: "):
        Server(url=url, model="m")


def test_a_body_is_what_the_protocol_says(server, client):
    client().ask(request([{"role": "user", "content": "k"}], temperature=0, max_tokens=5))
    assert server.asked[-1][2] == json.loads(
        '{"model": "m", "messages": [{"role": "user", "content": "k"}], "temperature": 0, "max_tokens": 5}'
    )
