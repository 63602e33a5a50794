"""`easylm eval`: a finished stage on named benchmarks, judged as a recipe would; or told why not, in one line."""

import json

import pytest
import rl_kit

from easylm_jax.cli import main
from easylm_jax.evaluate import tasks
from easylm_jax.rewards.verify import ExpressionScorer


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1), rl_kit.compiled_programs():
        yield


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    rl_kit.write(path, [{"question": f"one two {i}", "answer": f"it is #### {i}"} for i in range(6)])
    return path


def run(*arguments):
    return main.main(["eval", *map(str, arguments)])


def test_a_stage_is_judged_and_the_table_is_written(problems, tmp_path, capsys):
    model = rl_kit.made().out / "rl" / "sft"
    options = ("--task", f"gsm8k={problems}", "--max-new-tokens", 4, "--limit", 4, "--longest-prompt", 40)
    assert run(model, *options, "--out", tmp_path / "runs", "--json", tmp_path / "table.json") == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert "GSM8K, 4 held-out prompts (gsm8k)" in capsys.readouterr().out
    assert [row["method"] for row in table["rows"]] == ["sft"] and table["tasks"][0]["prompts"] == 4
    folder = next((tmp_path / "runs").glob("eval-*"))
    samples = [json.loads(line) for line in (folder / "table" / "samples.jsonl").read_text().splitlines()]
    judged = ExpressionScorer("gsm8k")([s["response"] for s in samples], [{"ground_truth": str(i)} for i in range(4)])
    assert judged.scores.tolist() == [sample["score"] for sample in samples] and len(samples) == 4
    assert [sample["label"] for sample in samples] == [f"it is #### {i}" for i in range(4)]
    for i, sample in enumerate(samples):
        assert ("reason" in sample) == (sample["score"] == 0)
        assert sample["score"] or sample["reason"].endswith(f"; expected '{i}'")
    assert run(model, *options, "--out", tmp_path / "runs") == 0  # nothing is asked again
    assert "table: done" in capsys.readouterr().err


def test_what_cannot_be_asked_is_one_line(problems, tmp_path, capsys):
    model = rl_kit.made().out / "rl" / "sft"
    for arguments, message in (
        ((model, "--task", "gsm9k"), "no task 'gsm9k'; choose one of gsm8k"),
        ((model, "--task", f"gsm8k={tmp_path}/none.jsonl"), "no file"),
        (
            (rl_kit.made().out / "rl" / "reward", "--task", f"gsm8k={problems}", "--max-new-tokens", 4),
            "cannot generate",
        ),
        ((model, "--task", f"gsm8k={problems}"), "exceed the model's context of 64"),
        ((tmp_path, "--task", "gsm8k"), str(tmp_path)),
    ):
        assert run(*arguments, "--out", tmp_path / "runs") == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("easylm: error: ") and message in told


def test_every_task_is_made_of_verifiers_that_exist():
    for name, make in tasks.TASKS.items():
        task = make("hf:some/model", "tulu", None)
        for text in (task.verifier, *dict(task.also).values()):
            assert ExpressionScorer(text).expression.calls, name
        assert task.data.kind == "prompts" and task.data.keep
