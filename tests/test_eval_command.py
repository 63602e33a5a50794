"""`easylm eval`: a finished stage on named benchmarks, judged as a recipe would; or told why not, in one line."""

import json
import re

import pytest
import rl_kit

from easylm_jax.cli import eval as eval_command
from easylm_jax.cli import main
from easylm_jax.cli.parser import Parser
from easylm_jax.evaluate import tasks
from easylm_jax.rewards.verify import ExpressionScorer

RECIPE_WORDS = r"sequence_length|sampling\.|DataSpec|in fields|stage table|entries |max_new_tokens|data\."


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1):
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
    model, other = rl_kit.made().out / "rl" / "sft", rl_kit.other_tokenizer(tmp_path)
    task, short = ("--task", f"gsm8k={problems}"), ("--max-new-tokens", 4)
    bare, strange = tmp_path / "bare.jsonl", tmp_path / "strange.jsonl"
    rl_kit.write(bare, [{"question": "one"}])
    rl_kit.write(strange, [{"text": "one", "answer": "#### 1"}])
    for arguments, message in (
        ((model, "--task", "gsm9k"), "no task 'gsm9k'; choose one of gsm8k"),
        ((model, "--task", f"gsm8k={tmp_path}/none.jsonl"), "no file"),
        (
            (rl_kit.made().out / "rl" / "reward", "--task", f"gsm8k={problems}", "--max-new-tokens", 4),
            "is a reward model (scalar head), but a language model is needed here",
        ),
        ((tmp_path, "--task", "gsm8k"), str(tmp_path)),
        (
            (model, *task, "--max-new-tokens", 4, "--longest-prompt", 4),
            "problems.jsonl is short enough; raise --longest-p",
        ),
        (
            (model, *task, *short, "--samples", 3),
            "task GSM8K: 3 greedy responses to a prompt would all be the same; give ",
        ),
        ((model, *task, *short, "--tokenizer", other), "leave --tokenizer out to use the model's own"),
        ((model, "--task", f"gsm8k={bare}", *short), "no column 'answer'"),
        ((model, "--task", f"gsm8k={strange}", *short), "give a file with the columns of the published set"),
        ((model, *task, "--limit", 0), "argument --limit: '0' is not a whole number of at least 1"),
        ((model, *task, "--max-new-tokens", -1), "argument --max-new-tokens: '-1' is not a whole number of"),
        ((model, *task, "--longest-prompt", 1), "argument --longest-prompt: '1' is not a whole number of"),
        ((model, *task, "--temperature", "warm"), "argument --temperature: 'warm' is not a number"),
        ((model, *task, "--stop", ""), "argument --stop: an empty value is not a text"),
    ):
        assert run(*arguments, "--out", tmp_path / "runs") == 2, message
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("easylm: error: ") and message in told, told
        assert not re.search(RECIPE_WORDS, told), told


def test_a_context_that_is_too_short_is_told_with_the_options_that_help(tmp_path, capsys):
    """What the message proposes works."""
    model, problems = rl_kit.made().out / "rl" / "sft", tmp_path / "problems.jsonl"
    rl_kit.write(problems, [{"question": text, "answer": "#### 1"} for text in ("one", "one two three")])
    options = ("--task", f"gsm8k={problems}", "--out", tmp_path / "runs")
    assert run(model, *options) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told == (
        f"easylm: error: --max-new-tokens of task GSM8K needs a context of 513 tokens, but {model} has one of 64; "
        "lower it, or use a model with a longer context"
    )
    assert run(model, *options, "--max-new-tokens", 62) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    found = re.match(
        r"easylm: error: task GSM8K: a prompt of (\d+) tokens and 62 new ones exceed the context of 64 tokens of \S+; "
        r"allow at most (\d+) new tokens with --max-new-tokens",
        told,
    )  # fmt: skip
    assert found and int(found[1]) + int(found[2]) == 64 and not re.search(RECIPE_WORDS, told)
    assert run(model, *options, "--max-new-tokens", int(found[2]) + 1) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    found = re.search(r" with --max-new-tokens or leave longer prompts out with --longest-prompt (\d+)$", told)
    assert found
    assert run(model, *options, "--max-new-tokens", 64 - int(found[1]), "--longest-prompt", int(found[1])) == 0


@pytest.mark.parametrize("options, whole", [([], True), (["--limit", "3"], False), (["--longest-prompt", "64"], False)])
def test_means_by_instruction_are_of_the_whole_set_alone(options, whole):
    """They divide by the number of instructions of the published set."""
    parser = Parser()
    eval_command.add_arguments(parser)
    arguments = parser.parse(["model", "--task", "ifbench", *options])
    task = eval_command._task("ifbench", "hf:some/model", "tulu", arguments)
    assert [name for name, _ in task.also] == (["strict", "instructions"] if whole else ["strict"])


def test_every_task_is_made_of_verifiers_that_exist():
    for name, make in tasks.TASKS.items():
        task = make("hf:some/model", "tulu", None)
        for text in (task.verifier, *dict(task.also).values()):
            assert ExpressionScorer(text).expression.calls, name
        assert task.data.kind == "prompts" and task.data.keep
