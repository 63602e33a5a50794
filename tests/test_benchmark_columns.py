"""Benchmarks as columns of a stage's table and as metrics while a model is trained."""

import dataclasses
import json

import numpy as np
import pytest
import rl_kit

from easylm_jax.config import SFT, Ask, Benchmarks, DataSpec, Entry, Evaluate, OptimizerConfig, Published, Source
from easylm_jax.evaluate import harness, suites
from easylm_jax.evaluate.benchmark import Metric
from easylm_jax.evaluate.columns import contributions
from easylm_jax.evaluate.statistics import difference, grouped_mean, mean, ratio
from easylm_jax.report import html, read
from easylm_jax.runtime.monitor.metrics import read_metrics
from models.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1):
        yield


@pytest.fixture(scope="module")
def asks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    choices = [
        {"question": f"one {i}", "choices": {"text": ["two", "three"], "label": ["A", "B"]}, "answerKey": "AB"[i % 2]}
        for i in range(6)
    ]  # fmt: skip
    rl_kit.write(folder / "choices.jsonl", choices)
    rl_kit.write(folder / "texts.jsonl", [{"text": "one two three"}, {"text": "four five"}])
    return (Ask("arc_challenge:mc", str(folder / "choices.jsonl")), Ask("perplexity", str(folder / "texts.jsonl")))


def trained(asks, steps, every):
    """A stage that is asked benchmarks while it trains."""
    data = DataSpec(
        (Source(f"{rl_kit.home()}/chats.jsonl"),), "stage:tokenizer", 48, kind="chat", template="tulu",
        packing="best_fit",
    )  # fmt: skip
    return SFT(
        "more", init="sft", data=data, batch=8, steps=steps, epochs=40,
        optimizer=OptimizerConfig("1e-3", weight_decay=0.0), benchmarks=Benchmarks(asks, every=every),
    )  # fmt: skip


def test_contributions_have_the_mean_and_the_error_of_the_aggregate():
    rng = np.random.default_rng(0)
    values, groups = rng.random(12), [*"aaaaaaab", *"bbbb"]
    pairs = np.stack([rng.random(12), 1 + rng.random(12)], axis=1)
    for metric, given, expected in (
        (Metric("m", len), values, mean(values)),
        (Metric("m", len, "ratio"), pairs, ratio(pairs)),
    ):
        found = mean(contributions(metric, groups, list(given)))
        assert found == pytest.approx(expected)
    macro = contributions(Metric("m", len, "macro"), groups, list(values))
    assert macro.mean() == pytest.approx(grouped_mean(values, groups).value)
    largest = Metric("m", len, lambda scored: (max(one.value for one in scored), 0.0))
    assert contributions(largest, groups, list(values)).mean() == pytest.approx(values.max())


def test_a_benchmark_is_a_column_of_the_table(asks, tmp_path, monkeypatch):
    stage = Evaluate(
        "table", title="t", tasks=(), benchmarks=asks, average=("arc_challenge:mc",),
        entries=(Entry("base", ("pretrain",)), Entry("fine", ("sft",), over="base")),
    )  # fmt: skip
    it = rl_kit.experiment(tmp_path, stage)
    it.run(stage)
    table = json.loads((it.root / "table.json").read_text())
    assert [task["name"] for task in table["tasks"]] == ["arc_challenge:mc", "perplexity"]
    assert [task["prompts"] for task in table["tasks"]] == [6, 2]
    for row in table["rows"]:
        assert set(row["scores"]) == {"arc_challenge:mc", "perplexity", "perplexity perplexity"}
        assert row["score"] == row["scores"]["arc_challenge:mc"]["score"] and row["n"] == 6
        assert 0 < row["scores"]["perplexity"]["score"] < 20
    base, fine = table["rows"]
    assert fine["over"]["difference"] == pytest.approx(fine["score"] - base["score"])
    assert list((it.folder("table") / "models").glob("sft/perplexity-*.jsonl"))
    monkeypatch.setattr(harness, "ask_model", None)  # another average asks nothing again
    other = dataclasses.replace(stage, average=("perplexity",))
    assert other.averaged == ("perplexity",) and stage.columns == ("arc_challenge:mc", "perplexity")


def test_a_suite_gives_the_table_the_columns_of_its_paper(asks, tmp_path, monkeypatch):
    """A column is the better of two forms, each method's own; the score is the mean of the columns."""
    forms = suites.Column("ARC", ("arc_challenge:mc", "arc_challenge"), "max")
    own = suites.Suite("Own", "here", (forms, suites.one("Bits", "perplexity")))
    monkeypatch.setitem(suites.SUITES, "own", own)
    asked = (*asks, dataclasses.replace(asks[0], benchmark="arc_challenge"))
    stage = Evaluate(
        "table", title="t", tasks=(), benchmarks=asked, suite="own",
        entries=(Entry("base", ("pretrain",)), Entry("fine", ("sft",), over="base")),
        published=(Published("fine", "ARC", 79.8, "the paper"),),
    )  # fmt: skip
    it = rl_kit.experiment(tmp_path, stage)
    it.run(stage)
    table = json.loads((it.root / "table.json").read_text())
    assert table["suite"] == "Own" and table["average"] == ["ARC", "Bits"]
    best = {}
    for row in table["rows"]:
        each = {name: one["score"] for name, one in row["benchmarks"].items()}
        best[row["method"]] = max(("arc_challenge:mc", "arc_challenge"), key=each.__getitem__)
        assert list(row["scores"]) == ["ARC", "Bits"] and row["n"] == 6 + 2
        assert row["scores"]["ARC"] == row["benchmarks"][best[row["method"]]]
        assert row["scores"]["Bits"] == row["benchmarks"]["perplexity"]
        assert row["score"] == pytest.approx((row["scores"]["ARC"]["score"] + row["scores"]["Bits"]["score"]) / 2)
        errors = [one["stderr"] for one in row["scores"].values()]
        assert row["stderr"] == pytest.approx(np.hypot(*errors) / 2)
    base, fine = table["rows"]
    assert fine["over"]["difference"] == pytest.approx(fine["score"] - base["score"])
    scores = {
        method: json.loads((it.folder("table") / "models" / f"{name}.json").read_text())["tasks"]
        for method, name in (("base", "pretrain"), ("fine", "sft"))
    }
    gains = [
        difference(np.array(scores["fine"][a]["scores"]), np.array(scores["base"][b]["scores"]))
        for a, b in ((best["fine"], best["base"]), ("perplexity", "perplexity"))
    ]
    assert fine["over"]["stderr"] == pytest.approx(np.hypot(*(gain.stderr for gain in gains)) / 2)
    page = html.page(read.collect(it.root))
    assert "79.8" in page and "the mean of ARC and Bits" in page
    for changes, message in (
        ({"benchmarks": asks}, "suite own has arc_challenge, its benchmarks are suites.asks"),
        ({"suite": "bits-per-byte"}, "the columns of suite bits-per-byte have no average"),
        ({"suite": "owm"}, "did you mean 'own'"),
    ):
        with pytest.raises(UserError, match=message):
            it.run(dataclasses.replace(stage, name="other", **changes))


def test_benchmarks_stand_in_the_metrics_of_training(asks, tmp_path):
    stage = trained(asks, steps=4, every=3)
    it = rl_kit.experiment(tmp_path, stage)
    it.run(stage)
    lines = {line["step"]: line for line in read_metrics(it.folder("more"))}
    assert [step for step, line in lines.items() if "benchmark/perplexity" in line] == [3, 4]
    kept = json.loads((it.folder("more") / "benchmarks" / "4" / "results.json").read_text())
    assert [task["score"] for task in kept["tasks"]] == [
        lines[4]["benchmark/arc_challenge:mc"], lines[4]["benchmark/perplexity"],
    ]  # fmt: skip
    page = html.page(read.collect(it.root))
    assert "Benchmarks while training" in page and "arc_challenge:mc</text>" in page
    # The scores are those of the finished model.
    table = Evaluate("table", title="t", tasks=(), benchmarks=asks, entries=(Entry("more", ("more",)),))
    last = rl_kit.Experiment(dataclasses.replace(it.recipe, stages=(*it.recipe.stages, table)), it.out)
    last.run(table)
    scores = json.loads((it.root / "table.json").read_text())["rows"][0]["scores"]
    assert scores["perplexity"]["score"] == pytest.approx(lines[4]["benchmark/perplexity"])


def test_what_a_stage_cannot_ask_is_told(asks):
    entries = (Entry("a", ("sft",)),)
    for changes, message in (
        ({"benchmarks": ()}, "give at least one task"),
        ({"reference": "sft"}, "KL divergence is measured on the prompts of a task"),
        ({"average": ("other",)}, "average names 'other'"),
        ({"suite": "olmes", "average": ("perplexity",)}, "a suite's table is of its benchmarks alone"),
        ({"benchmarks": (*asks, asks[0])}, "two tasks are called 'arc_challenge:mc'"),
    ):
        with pytest.raises(UserError, match=message):
            Evaluate(**{"name": "t", "title": "t", "tasks": (), "benchmarks": asks, "entries": entries, **changes})


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask("perplexity", "nowhere.jsonl"), "asked while it trains: no file nowhere.jsonl.*; or set more.benchmarks="),
        (Ask("harmbench"), "benchmark harmbench needs a judge, which training has not"),
        (Ask("gsm9k"), "did you mean"),
    ],
)
def test_what_training_cannot_ask_is_told_before_its_first_step(ask, message, tmp_path):
    stage = trained((ask,), steps=2, every=2)
    it = rl_kit.experiment(tmp_path, stage)
    with pytest.raises(UserError, match=message):
        it.run(stage)
    assert not list(it.folder("more").glob("metrics.jsonl"))
