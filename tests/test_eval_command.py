"""`easylm eval`: a finished stage on named benchmarks, or told why not, in one line."""

import argparse
import hashlib
import json
import re

import jax
import numpy as np
import pytest
import rl_kit

from easylm_jax.checkpoint import load, store
from easylm_jax.cli import eval as eval_command
from easylm_jax.cli import main
from easylm_jax.evaluate import harness
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime import mesh

RECIPE_WORDS = r"sequence_length|sampling\.|DataSpec|in fields|stage table|entries |max_new_tokens|data\."


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "make_mesh", lambda text: mesh.make_mesh(text, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    rl_kit.write(path, [{"question": f"one two {i}", "answer": f"it is #### {i}"} for i in range(6)])
    return path


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    path = tmp_path_factory.mktemp("choices") / "choices.jsonl"
    texts = ["one two", "three", "four five six", "seven"]
    rl_kit.write(path, [
        {"question": f"one {i}", "choices": {"text": texts, "label": list("ABCD")}, "answerKey": "ABCD"[i % 4]}
        for i in range(5)
    ])  # fmt: skip
    return path


def run(*arguments):
    return main.main(["eval", *map(str, arguments)])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_responses_are_judged_and_the_results_are_written(problems, tmp_path, capsys):
    model = rl_kit.made().out / "rl" / "sft"
    options = ("--task", f"gsm8k={problems}", "--max-new-tokens", 4, "--limit", 4, "--longest-prompt", 40)
    assert run(model, *options, "--out", tmp_path / "runs", "--json", tmp_path / "results.json") == 0
    results = read(tmp_path / "results.json")
    assert re.search(r"gsm8k +exact_match +\d+\.\d\d ± \d+\.\d\d +4\n", capsys.readouterr().out)
    assert {"model", "tasks", "averages"} <= set(results) and results["model"] == str(model)
    assert results["seed"] == 0 and results["versions"]["jax"] == jax.__version__
    (task,) = results["tasks"]
    digest = hashlib.sha256(problems.read_bytes()).hexdigest()
    assert task["sources"] == {"documents": [str(problems), digest]} and task["sampling"]["max_new_tokens"] == 4
    assert {"task", "metric", "score", "stderr", "n", "documents"} <= set(task)
    documents = task["documents"]
    judged = ExpressionScorer("gsm8k")(
        [one["response"] for one in documents], [{"answer": f"#### {i}"} for i in range(4)]
    )
    assert judged.scores.tolist() == [one["score"] for one in documents] and task["n"] == len(documents) == 4
    assert task["score"] == pytest.approx(judged.scores.mean())
    assert [one["label"] for one in documents] == [f"it is #### {i}" for i in range(4)]
    assert documents[0]["prompt"] == [{"role": "user", "content": "one two 0"}]


def test_a_moderator_adds_attack_success_and_refusals_of_the_same_responses(tmp_path, monkeypatch, capsys):
    from easylm_jax.evaluate import judges
    from easylm_jax.rewards import moderator
    from easylm_jax.rewards.moderation import FIELDS

    path = tmp_path / "rows.jsonl"
    rl_kit.write(path, [{"adversarial": f"one {i}", "data_type": f"adversarial_{('harmful', 'benign')[i % 2]}"}
                        for i in range(4)])  # fmt: skip
    broken = "Harmful request: yes\nResponse refusal: no\nHarmful response: yes"
    shares = lambda items: [{"probabilities": dict.fromkeys(FIELDS, float("0" in item["prompt"]))} for item in items]  # noqa: E731
    monkeypatch.setattr(judges, "judge_of", lambda name: lambda conversations: [broken] * len(conversations))
    monkeypatch.setattr(moderator, "load_moderator", lambda name: shares)
    model = rl_kit.made().out / "rl" / "sft"
    options = ("--task", f"wildjailbreak={path}", "--max-new-tokens", 4, "--judge", "j", "--out", tmp_path / "runs")
    assert run(model, *options, "--moderator", "m", "--json", tmp_path / "results.json") == 0
    filters = {one["filter"]: one for one in read(tmp_path / "results.json")["tasks"][0]["guarded"]["filters"]}
    assert filters["none"]["attack_success"]["share"] == 1 and filters["both"]["attack_success"]["share"] == 0.5
    assert filters["both"]["refusal_to_answer"]["share"] == 0 and filters["both"]["stopped_harmful"]["n"] == 2
    assert "| wildjailbreak | prompt | 50.0 (" in capsys.readouterr().out
    assert run(model, *options, "--moderator", "j") == 2 and "no attack can succeed" in capsys.readouterr().err
    assert run(model, "--task", "gsm8k", "--moderator", "m") == 2 and "safety benchmarks" in capsys.readouterr().err


def test_a_stopped_evaluation_asks_only_what_is_missing(problems, choices, tmp_path, monkeypatch):
    """Every response is written as it is known; the last line of a killed process may be cut."""
    model = rl_kit.made().out / "rl" / "sft"
    monkeypatch.setattr(harness, "AT_ONCE", {"generate": 2, "loglikelihood": 2})
    options = (model, "--task", f"gsm8k={problems},arc_challenge={choices}", "--max-new-tokens", 4)
    assert run(*options, "--out", tmp_path / "whole", "--json", tmp_path / "whole.json") == 0

    answer, asked = harness._Model.answer, []

    def counted(self, part):
        if len(asked) >= 4:
            raise KeyboardInterrupt
        asked.extend(question.number for question in part)
        return answer(self, part)

    monkeypatch.setattr(harness._Model, "answer", counted)
    assert run(*options, "--out", tmp_path / "cut") != 0
    (kept,) = (tmp_path / "cut").glob("eval-*/gsm8k-*.jsonl")
    assert len(kept.read_text().splitlines()) == 4
    kept.write_text(kept.read_text()[:-9])  # the fourth response is lost
    asked.clear()
    asked_again = []
    monkeypatch.setattr(harness._Model, "answer", lambda self, part: (
        asked_again.extend((self.ask.benchmark, question.number) for question in part), answer(self, part))[1]
    )  # fmt: skip
    assert run(*options, "--out", tmp_path / "cut", "--json", tmp_path / "resumed.json") == 0
    assert asked_again == [("gsm8k", i) for i in (3, 4, 5)] + [("arc_challenge", i) for i in range(5)]
    assert read(tmp_path / "resumed.json") == read(tmp_path / "whole.json")
    asked_again.clear()
    assert run(*options, "--out", tmp_path / "cut") == 0 and not asked_again


def test_options_are_ranked_by_their_log_probabilities(choices, tmp_path):
    model = rl_kit.made().out / "rl" / "sft"
    tasks = f"arc_challenge={choices},arc_challenge:mc={choices}"
    assert run(model, "--task", tasks, "--out", tmp_path, "--json", tmp_path / "results.json") == 0
    cloze, letters = read(tmp_path / "results.json")["tasks"]
    for task in (cloze, letters):
        for i, document in enumerate(task["documents"]):
            assert document["label"] == i % 4
            assert document["scores"]["acc"] == float(np.argmax(document["logprobs"]) == i % 4)
            assert len(document["choices"]) == 4 and max(document["logprobs"]) < 0
    assert cloze["documents"][0]["prompt"] == "Question: one 0\nAnswer:"
    shown = "Question: one 0\n A. one two\n B. three\n C. four five six\n D. seven\nAnswer:"
    assert letters["documents"][0]["prompt"] == shown and letters["documents"][0]["choices"][1] == " B"
    logprobs, alone = (np.array(cloze["documents"][2][name]) for name in ("logprobs", "unconditional"))
    assert cloze["documents"][2]["score"] == float(np.argmax(logprobs - alone) == 2)
    per_character = float(np.argmax(logprobs / (8, 6, 14, 6)) == 2)  # the space before an option counts
    assert cloze["documents"][2]["scores"]["acc_per_character"] == per_character


def test_solved_examples_come_from_the_file_that_is_named(choices, problems, tmp_path):
    model = rl_kit.made().out / "rl" / "sft"
    examples = ("--shots", 2, "--limit", 1, "--out", tmp_path, "--json", tmp_path / "results.json")
    task = ("--task", f"arc_challenge={choices}", "--shots-from", f"arc_challenge={choices}")
    assert run(model, *task, *examples) == 0
    prompt = read(tmp_path / "results.json")["tasks"][0]["documents"][0]["prompt"]
    assert prompt == ("Question: one 0\nAnswer: one two\n\nQuestion: one 1\nAnswer: three\n\nQuestion: one 0\nAnswer:")
    task = ("--task", f"gsm8k={problems}", "--shots-from", f"gsm8k={problems}", "--max-new-tokens", 2)
    assert run(model, *task, "--shots", 1, *examples[2:]) == 0
    turns = read(tmp_path / "results.json")["tasks"][0]["documents"][0]["prompt"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == "it is #### 0"


def test_the_list_names_every_benchmark(capsys):
    assert run("--list") == 0
    told = capsys.readouterr().out
    listed = [line.split()[0] for line in told.splitlines() if line.strip()]
    assert {"gsm8k", "arc_challenge", "arc_challenge:mc"} <= set(listed)
    assert re.search(r"^arc_easy:rc5 +loglikelihood +1,000 of 2,376 +5 +acc_per_character,", told, re.MULTILINE)
    assert "suite tulu3-dev: Tülu 3, development (arXiv 2411.15124, Table 24" in told


def test_every_checkpoint_of_a_run_is_one_row(choices, tmp_path, capsys):
    model = rl_kit.made().out / "rl" / "sft"
    steps = store.committed_steps(model / "checkpoints")
    options = ("--task", f"arc_challenge:mc={choices}", "--steps", "all", "--out", tmp_path)
    assert run(model, *options, "--json", tmp_path / "results.json") == 0
    results = read(tmp_path / "results.json")
    assert [one["step"] for one in results["steps"]] == steps
    assert results["tasks"] == results["steps"][-1]["tasks"]
    told = capsys.readouterr().out
    for one in results["steps"]:
        assert re.search(rf"^ *{one['step']}  ", told, re.MULTILINE)
    figure = next(tmp_path.glob("eval-*/steps.html")).read_text()
    assert "<svg" in figure and "arc_challenge:mc" in figure
    assert run(model, *options[:2], "--steps", 999, *options[4:]) == 2
    assert "has no checkpoint of step 999; it has " in capsys.readouterr().err


def test_texts_are_scored_by_domain(tmp_path):
    """Bits per byte over all texts and of each domain, from Σ log P of each text."""
    texts, model = tmp_path / "texts.jsonl", rl_kit.made().out / "rl" / "sft"
    rows = [
        {"text": "one two three", "domain": "a"},
        {"text": "four " * 60, "domain": "b"},
        {"text": "six", "domain": "a"},
    ]
    rl_kit.write(texts, rows)
    assert run(model, "--task", f"perplexity={texts}", "--out", tmp_path, "--json", tmp_path / "results.json") == 0
    (task,) = read(tmp_path / "results.json")["tasks"]
    bits = [-document["logprobs"][0] / np.log(2) for document in task["documents"]]
    sizes = [len(row["text"]) for row in rows]
    assert task["score"] == pytest.approx(sum(bits) / sum(sizes))
    assert task["groups"]["a"]["score"] == pytest.approx((bits[0] + bits[2]) / (sizes[0] + sizes[2]))
    nats = -sum(document["logprobs"][0] for document in task["documents"])
    tokens = sum(document["tokens"][0] for document in task["documents"])
    assert task["metrics"]["perplexity"]["score"] == pytest.approx(np.exp(nats / tokens)) and tokens > 64


def test_what_cannot_be_asked_is_one_line(problems, choices, tmp_path, capsys):
    model, other = rl_kit.made().out / "rl" / "sft", rl_kit.other_tokenizer(tmp_path)
    task, short = ("--task", f"gsm8k={problems}"), ("--max-new-tokens", 4)
    bare, strange, empty = tmp_path / "bare.jsonl", tmp_path / "strange.jsonl", tmp_path / "empty.jsonl"
    nothing = tmp_path / "nothing.jsonl"
    rl_kit.write(nothing, [{"question": "one", "choices": {"text": ["a", ""], "label": ["A", "B"]}, "answerKey": "A"}])
    rl_kit.write(bare, [{"question": "one"}])
    rl_kit.write(strange, [{"question": "one", "choices": ["a", "b"], "answerKey": "A"}])
    rl_kit.write(empty, [])
    for arguments, message in (
        ((), "give a MODEL"),
        ((model,), "name a benchmark with --task"),
        ((model, "--task", "gsm9k"), "no benchmark 'gsm9k'; did you mean 'gsm8k'?"),
        ((model, "--task", "arc_challenge:cm"), "no setting 'cm'; did you mean"),
        ((model, "--suite", "tulu3-def"), "no suite 'tulu3-def'; did you mean 'tulu3-dev'?"),
        ((model, "--task", f"gsm8k={tmp_path}/none.jsonl"), "no file"),
        ((model, "--task", f"gsm8k={empty}"), "there is no document in"),
        ((rl_kit.made().out / "rl" / "reward", *task, *short), "is a reward model (scalar head)"),
        ((tmp_path, "--task", "gsm8k"), str(tmp_path)),
        ((model, *task, *short, "--longest-prompt", 4), "prompts is short enough; raise --longest-prompt"),
        (
            (model, *task, *short, "--samples", 3),
            "task gsm8k: 3 greedy responses to a prompt would all be the same; give ",
        ),
        ((model, *task, *short, "--tokenizer", other), "leave --tokenizer out"),
        ((model, "--task", f"gsm8k={bare}", *short), "has no column 'answer' (it has question); give a file with the"),
        ((model, "--task", f"arc_challenge={nothing}"), "document 0 has an empty option, which has no score"),
        ((model, "--task", f"arc_challenge={strange}"), "is not as the published set (TypeError"),
        (
            (model, *task, "--shots", 9, "--shots-from", f"gsm8k={problems}"),
            "9 examples are asked for, there are 6 in",
        ),
        ((model, *task, "--shots-from", "gsm8k"), "--shots-from 'gsm8k' is not NAME=FILE"),
        ((model, *task, "--shots-from", f"arc_challenge={choices}"), "names arc_challenge, which is no --task"),
        ((model, *task, *short, "--template", "none", "--limit", 0), "argument --limit: '0' is not a whole number of"),
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
    assert run(model, *options, "--max-new-tokens", 62) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    found = re.match(
        r"easylm: error: task gsm8k: a prompt of (\d+) tokens and 62 new ones exceed the model's context of 64 tokens; "
        r"allow at most (\d+) new tokens with --max-new-tokens or leave ",
        told,
    )  # fmt: skip
    found = found or re.match(
        r"easylm: error: task gsm8k: a prompt of (\d+) tokens and 62 new ones exceed the model's context of 64 tokens; "
        r"allow at most (\d+) new tokens with --max-new-tokens",
        told,
    )  # fmt: skip
    assert found and int(found[1]) + int(found[2]) == 64 and not re.search(RECIPE_WORDS, told)
    longest = int(found[1])
    assert run(model, *options, "--max-new-tokens", int(found[2]) + 1) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    found = re.search(
        r" with --max-new-tokens or leave longer prompts out with --longest-prompt (\d+) or drop the beginnings of "
        r"prompts with --cut-prompts$", told,
    )  # fmt: skip
    assert found
    results = tmp_path / "results.json"
    cut = ("--cut-prompts", "--max-new-tokens", 64 - int(found[1]), "--json", results)
    assert run(model, *options, *cut) == 0
    (task,) = read(results)["tasks"]
    assert task["n"] == 2 and task["cut"] == 1 and "cut" not in task["documents"][0]
    assert task["documents"][1]["cut"] == (longest - int(found[1]))
    assert " 2, 1 cut" in capsys.readouterr().out
    assert run(model, *options, "--max-new-tokens", 64 - int(found[1]), "--longest-prompt", int(found[1])) == 0


@pytest.mark.parametrize(
    ("arguments", "unread", "reader"),
    [
        (("model", "--suite", "wildguard", "--languages", "deu_Latn"), "--languages", "benches of preference pairs"),
        (("model", "--suite", "wildguard", "--shots", 3), "--shots", "benchmarks"),
        (("model", "--suite", "rewardbench", "--judge", "hf:judge"), "--judge", "benchmarks"),
        (("model", "--task", "gsm8k", "--data", "folder"), "--data", "benches of preference pairs, moderators"),
        (("--routing", ".", "--tokenizer", "hf:words"), "--tokenizer", "benchmarks"),
    ],
)
def test_an_option_that_nothing_reads_is_refused_before_a_model_is_loaded(arguments, unread, reader, capsys):
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"easylm: error: {unread} is for {reader}")


def test_every_option_of_the_command_is_assigned_to_what_reads_it():
    parser = argparse.ArgumentParser()
    eval_command.add_arguments(parser)
    common = {"help", "model", "suite", "list", "out", "json", "routing"}
    assert {action.dest for action in parser._actions} - common == set().union(*eval_command.OPTIONS.values())
