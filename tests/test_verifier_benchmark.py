"""The benchmark of verifiers runs, keeps its contract, and asks what it says it asks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_verifiers_end_in_a_json_line_with_rates_and_latencies():
    command = [
        sys.executable,
        str(BENCHMARKS / "verifiers.py"),
        "--responses",
        "20",
        "--repeats",
        "1",
        "--workers",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert set(line) == {"ours", "peer", "ratio", "unit", "load", "config"}
    assert line["ours"] > 0 and line["peer"] is None and line["unit"] == "responses/s"
    math = line["config"]["verifiers"]["math"]
    assert math["agreed"] == 1.0 and math["p50_ms"] <= math["p95_ms"] <= math["max_ms"]
    assert line["config"]["pool"]["1"] > 0


def test_the_corpus_is_a_function_of_its_seed_and_judged_as_it_was_made(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from verifier_corpus import corpus

    from easylm_jax.rewards import check_math

    rows = corpus(3, 300)
    assert rows == corpus(3, 300) != corpus(4, 300)
    assert 100 < sum(right for _, _, right in rows) < 200
    assert [check_math(response, gold) for response, gold, _ in rows] == [right for _, _, right in rows]


def test_a_peer_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common
    import verifiers

    monkeypatch.setattr(verifiers, "ROOT", tmp_path)
    monkeypatch.setattr(verifiers.sys, "executable", "/bin/false")
    with pytest.raises(common.BenchmarkError, match=r"setup_peers\.sh math_verify"):
        verifiers.peer_command()
