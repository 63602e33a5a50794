"""Stages that have no steps show what they do, with counts and the time left, and one process speaks."""

import re

import pytest
import rl_kit

from easylm_jax.config import (
    DPO,
    BestOfN,
    DataSpec,
    Entry,
    Evaluate,
    MakeData,
    Reward,
    Sampling,
    Source,
    Task,
    Tokenizer,
)
from easylm_jax.data.build import stage_cache
from easylm_jax.runtime import processes
from easylm_jax.runtime.monitor import progress

PROMPTS = rl_kit.prompts(rl_kit.home(), seed=7)  # a cache of its own
PAIRS = DataSpec(
    (Source(f"{rl_kit.home()}/pairs.jsonl", limit=20),), "stage:tokenizer", 64, kind="preference", template="tulu",
    max_pairs_per_row=1,
)  # fmt: skip
SAMPLING = Sampling(rl_kit.NEW, slots=4)
STAGES = {
    "words": Tokenizer("words", sources=(Source(f"{rl_kit.home()}/rendered.jsonl"),), vocab_size=290),
    "files": MakeData("files", function="rl_kit:some_records", arguments={"count": 3}),
    "best": BestOfN(
        "best", init="sft", data=PROMPTS, reward=Reward(verifier=rl_kit.VERIFIER, missing_end=None), samples=2, batch=4,
        limit=12, sampling=SAMPLING,
    ),
    "dpo": DPO("dpo", init="sft", data=PAIRS, batch=4, steps=1, optimizer=rl_kit.RATE),
    "table": Evaluate(
        "table", title="t", tasks=(Task("words", PROMPTS, rl_kit.VERIFIER, SAMPLING, limit=12),),
        entries=(Entry("one", ("sft",)), Entry("two", ("pretrain",))), reference="sft", kl_prompts=4,
    ),
}  # fmt: skip
LINES = {
    "words": [r"words: training a vocabulary of 290", r"\[words\] training the vocabulary", r"words: trained in \w+"],
    "files": [r"\[files\] running rl_kit:some_records", "files: wrote a.jsonl"],
    "best": [
        r"\[best\] \d+/24 responses \| .*generating", r"\[best\] 24/24 responses \| took \w+",
    ],
    "dpo": [
        r"\[dpo\] \d+/20 rows \| .*reference log-probabilities", r"\[dpo\] 20/20 rows \| took \w+",
        r"\[dpo\] step 1/1 \| .*",
    ],
    "table": [
        r"\[table\] 0/\d\d responses \| sft: loading", r"\[table\] \d+/\d\d responses \| .*sft: generating for words",
        r"\[table\] \d+/\d\d responses \| .*sft: KL from sft",
        r"\[table\] \d+/\d\d responses \| .*pretrain: generating for words",
        r"\[table\] (\d\d)/\1 responses \| took \w+",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    with rl_kit.devices(1):
        yield rl_kit.experiment(tmp_path_factory.mktemp("progress"), *STAGES.values())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_without_steps_shows_what_it_does_and_how_far_it_is(name, ready, monkeypatch, capsys):
    monkeypatch.setattr(progress, "HEARTBEAT", 0.001)
    ready.run(ready.recipe.stage(name))
    told = capsys.readouterr().err.splitlines()
    for pattern in LINES[name]:
        assert any(re.fullmatch(pattern, line) or re.match(f"{pattern} for ", line) for line in told), (pattern, told)
    assert not set("\r\x1b") & set("".join(told))


def test_a_cache_shows_what_is_read(ready, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "HEARTBEAT", 0.001)
    (tmp_path / "lines.txt").write_text("one two three\n" * 5000)
    source = Source(f"{tmp_path}/lines.txt", text_unit="line")
    cache = stage_cache(ready, DataSpec((source,), "stage:tokenizer", 64), "pretrain")
    assert cache.manifest["sources"][0]["records"]["read"] == 5000
    told = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"\[pretrain: cache\] [\d,]+ records \| reading.*", line) for line in told), told
    assert any(re.fullmatch(r"\[pretrain: cache\] 5,000 records \| took \w+", line) for line in told), told


def test_work_of_a_moment_prints_no_progress(ready, capsys):
    """At the usual heartbeat of ten seconds; what is done is not done again."""
    (ready.folder("files") / "done.json").unlink(missing_ok=True)
    ready.run(ready.recipe.stage("files"))
    assert capsys.readouterr().err.splitlines() == ["files: wrote a.jsonl"]


def test_processes_but_the_first_are_silent(monkeypatch, capsys):
    monkeypatch.setattr(progress, "HEARTBEAT", 0.001)
    monkeypatch.setattr(processes, "is_first_process", lambda: False)
    with progress.counting("table", 10, "responses") as shown, shown.phase("generating"):
        shown.part()(5, 100)
    assert shown.line().startswith("[table] 5/10 responses") and capsys.readouterr() == ("", "")
