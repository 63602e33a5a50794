"""Every benchmark of texts in every setting runs to its end on records in its schema, with standard errors."""

import dataclasses
import gzip
import json
import math

import benchmark_fixtures as fixtures
import jax
import numpy as np
import pytest
import rl_kit

import models
from easylm_jax.checkpoint import load
from easylm_jax.config import Ask
from easylm_jax.evaluate import benchmark, suites
from easylm_jax.evaluate.asking import questions
from easylm_jax.evaluate.benchmark import Response
from easylm_jax.evaluate.harness import Asked, ask_model
from easylm_jax.evaluate.metrics import programs
from easylm_jax.evaluate.results import result_of
from easylm_jax.runtime import mesh
from models.errors import UserError

COUNT = 20
REPLY = {
    "alpaca_eval": "A", "href": "B", "toxigen": "No.", "truthfulqa": "true: yes\ninformative: no",
}  # fmt: skip
MODERATION = "Harmful request: yes\nResponse refusal: yes\nHarmful response: no"
# Benchmarks about pictures have tests of their own.
ALL = {name: one for name, one in benchmark.everything() if one.images is None}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in dict.fromkeys(name.partition(":")[0] for name in ALL):
        rows = fixtures.documents(name, COUNT), fixtures.solved(name)
        for suffix, records in zip(("", "-solved"), rows, strict=True):
            path = folder / f"{name}{suffix}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def _asked(name, files, answer):
    """A benchmark as if a model had answered, with `answer(benchmark, document, number)` as its responses."""
    first = name.partition(":")[0]
    one = ALL[name]
    ask = Ask(name, file=str(files / f"{first}.jsonl"), shots_from=str(files / f"{first}-solved.jsonl"))
    if not one.shots:
        ask = dataclasses.replace(ask, shots_from=None)
    found = questions(ask, one)
    responses = [answer(first, one, question.document) for question in found]
    return Asked(ask, one, found, responses)


def _response(first, one, document):
    """A response of each kind that a request gives: options of fixed log-probabilities, or texts and replies."""
    if one.request == "loglikelihood":
        options = tuple(one.options(document))
        logprobs = tuple(-1.0 - len(option) % 5 for option in options)
        alone = logprobs if one.unconditional is not None else ()
        flags = (False,) * len(options)
        return Response(
            options=options, logprobs=logprobs, greedy=flags, tokens=(2,) * len(options), unconditional=alone
        )
    if one.request == "loglikelihood_rolling":
        return Response(logprobs=(-9.0,), greedy=(False,), tokens=(5,), bytes=(20,))
    texts = ("So the answer is 1.\n",) * one.samples
    replies = (REPLY.get(first, MODERATION),) * one.samples if one.request == "judge" else ()
    return Response(texts=texts, replies=replies)


@pytest.fixture(autouse=True)
def no_program_runs(monkeypatch):
    """Programs have tests of their own (test_metrics.py)."""
    monkeypatch.setattr(programs, "passes", lambda program, tests, seconds=1.0: False)
    monkeypatch.setattr("easylm_jax.evaluate.benchmarks.bigcodebench_hard.passes", lambda *arguments, **words: False)
    monkeypatch.setattr("easylm_jax.evaluate.benchmarks.alpaca_eval._gamed", lambda: None)


@pytest.mark.parametrize("name", ALL)
def test_each_benchmark_runs_to_its_end(name, files):
    result = result_of(_asked(name, files, _response))
    assert result["n"] == COUNT and len(result["documents"]) == COUNT
    for metric in ALL[name].metrics:
        score = result["metrics"][metric.name]
        assert math.isfinite(score["score"]) and math.isfinite(score["stderr"]) and score["stderr"] >= 0
        if metric.unit == "share":
            assert 0 <= score["score"] <= 1
    json.dumps(result)


@pytest.mark.parametrize("name", sorted(name for name, one in ALL.items() if one.request == "loglikelihood"))
def test_the_right_option_scores(name, files):
    """A model that is sure of the right option has an accuracy of 1, and of no bits where one option is scored."""

    def sure(first, one, document):
        options, label = tuple(one.options(document)), one.label(document)
        right = label if isinstance(label, list) else [float(number == label) for number in range(len(options))]
        logprobs = tuple(-0.0 if good else -800.0 for good in right)
        alone = (-1.0,) * len(options) if one.unconditional is not None else ()
        return Response(options=options, logprobs=logprobs, tokens=(1,) * len(options), unconditional=alone)

    result = result_of(_asked(name, files, sure))
    assert result["score"] == pytest.approx(0.0 if ALL[name].metric.unit == "bits per byte" else 1.0)


RIGHT = {  # a right response to the first document of benchmarks whose texts are compared
    "agieval:tulu3": "Therefore, the answer is (A).", "bbh:tulu3": "So the answer is No.", "drop:tulu3": " 0\n",
    "gpqa:tulu3": None, "gsm8k:tulu3": "It is 1.", "math:tulu3": "It is $\\boxed{1}$.", "nq:olmes": " Two\n",
    "mmlu:tulu3": "Therefore, the answer is: A",
    "mmlu_pro:tulu3": "Therefore, the answer is (A)",
    "popqa:tulu3": "It is one.",
    "deepmind_math:tulu3": "Therefore, the final answer is 1. I hope it is correct.", "triviaqa:olmes": "the one.",
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_text_scores_and_an_empty_one_does_not(name, files):
    def right(first, one, document):
        text = RIGHT[name] or f"Therefore, the answer is ({one.label(document)})"
        return Response(texts=(text,) * one.samples)

    assert result_of(_asked(name, files, right))["documents"][0]["score"] == 1.0
    empty = result_of(_asked(name, files, lambda first, one, document: Response(texts=("",) * one.samples)))
    assert empty["score"] == 0.0


@pytest.mark.parametrize("name", sorted(name for name, one in ALL.items() if one.request == "judge"))
def test_a_reply_that_cannot_be_read_is_counted_and_is_no_point(name, files):
    def prose(first, one, document):
        return Response(texts=("ok",) * one.samples, replies=("I would rather talk of the weather.",) * one.samples)

    metrics = result_of(_asked(name, files, prose))["metrics"]
    assert metrics["unread"]["score"] == 1.0
    first = metrics[ALL[name].metric.name]["score"]
    assert first < 1e-3 if "length_controlled" in ALL[name].metric.name else first == 0.0


def test_documents_are_drawn_as_olmes_draws_them(tmp_path):
    path = tmp_path / "piqa.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in fixtures.documents("piqa", 1838)))
    found = questions(Ask("piqa", file=str(path)), ALL["piqa"])
    assert len(found) == 1000
    assert [one.document["goal"] for one in found[:2]] == ["to open 1593", "to open 902"]  # as in its requests


def test_the_authors_examples_are_found_by_id_and_digest(files, tmp_path):
    one = benchmark.load("arc_easy:mc5")
    rows = [{**fixtures.RECORDS["arc_easy"](n), "id": name} for n, name in enumerate(reversed(one.examples.ids))]
    shots = tmp_path / "train.jsonl"
    shots.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = Ask("arc_easy:mc5", file=str(files / "arc_easy.jsonl"), shots_from=str(shots), limit=1)
    (question,) = questions(ask, one)
    asked = [part.partition("\n")[0] for part in question.prompt.split("\n\n")]
    assert asked == [f"Question: what is {n}?" for n in (4, 3, 2, 1, 0, 0)]
    assert question.prompt.startswith("Question: what is 4?\n A. one two\n B. three\n")


def test_prompts_of_each_kind(files):
    """The forms that public requests have (tests/test_olmes_prompts.py compares all of them)."""

    def prompt(name):
        return _asked(name, files, _response).questions[1].prompt

    assert prompt("hellaswag") == "Walking: A man walks 1 miles. He"
    assert prompt("hellaswag:mc").startswith(
        "Walking: A man walks 1 miles. He\nChoose the best continuation:\n A. one two. Go on.\n"
    )
    assert prompt("winogrande:mc") == "Fill in the blank: Al beat Bo 1 times, so ___ was glad.\n A. Al\n B. Bo\nAnswer:"
    assert prompt("boolq") == "Odd -- 1 is a number.\nQuestion: is 1 odd?\nAnswer:"
    turns = prompt("gsm8k:tulu3")
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 8 + ["user"]
    assert turns[-1]["content"] == "Question: what is 1 + 1?\nAnswer:"
    (turn,) = prompt("gsm8k:tulu25")
    assert turn["content"].count("Answer: ") == 8 and turn["content"].endswith("\n\nQuestion: what is 1 + 1?")


def test_prompt_files_of_bbh_are_read_whole(shared_data, tmp_path):
    folder = shared_data / "evaluation/bbh"
    path = tmp_path / "navigate.jsonl"
    path.write_text(json.dumps({"input": "Turn left.\nOptions:\n- Yes\n- No", "target": "No"}) + "\n")
    ask = Ask("bbh", file=str(path), shots_from=str(folder / "cot-prompts"))
    (question,) = questions(ask, ALL["bbh"])
    published = (folder / "cot-prompts/navigate.txt").read_text().partition("-----\n")[2].strip()
    assert question.prompt == f"{published}\n\nQ: Turn left.\nOptions:\n- Yes\n- No\nA:"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gsm8k", "gsm8k/test.jsonl"), ("humaneval", "evaluation/humaneval/HumanEval.jsonl.gz"),
        ("ifbench", "ifbench/IFBench_test.jsonl"), ("ifeval", "evaluation/ifeval/en_input_data.jsonl.gz"),
        ("mbpp", "evaluation/mbpp/sanitized-mbpp.jsonl.gz"),
        ("truthfulqa", "evaluation/truthfulqa/validation_en.jsonl.gz"), ("amc", "math/amc.json"),
        ("aime2024", "math/aime2024.json"), ("aime2025", "math/aime2025.json"), ("math500", "math/math500.json"),
    ],
)  # fmt: skip
def test_the_listed_size_is_that_of_the_published_set(name, file, shared_data):
    path = shared_data / file
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    count = len(json.loads(text)) if path.suffix == ".json" else sum(bool(line.strip()) for line in text.split("\n"))
    assert ALL[name].size == count


def test_every_published_set_has_a_size():
    unsized = {name.partition(":")[0] for name, one in benchmark.everything() if one.size is None}
    assert unsized == {"cap_f1", "href", "toxigen", "perplexity"}  # files of one's own, or of any size


def test_every_suite_has_all_its_benchmarks():
    for name in suites.SUITES:
        assert suites.load(name).missing() == ()


def test_preferences_do_not_depend_on_the_place_of_a_response(files):
    """A judge that always prefers the model's response, wherever it stands, gives a win rate of 1."""
    from easylm_jax.evaluate.verdicts import swapped

    def fair(first, one, document):
        return Response(texts=("ok",), replies=("B" if swapped(document["instruction"]) else "A",))

    result = result_of(_asked("alpaca_eval:1", files, fair))
    assert result["score"] == 1.0 and len({swapped(f"say {n}") for n in range(COUNT)}) == 2
    assert np.mean([document["score"] for document in result["documents"]]) == 1.0


def test_length_control_needs_the_difficulty_of_instructions(tmp_path):
    path = tmp_path / "alpaca.jsonl"
    path.write_text(json.dumps({"instruction": "say", "output": "it"}) + "\n")
    with pytest.raises(UserError, match="needs the difficulty of each instruction"):
        questions(Ask("alpaca_eval:2", file=str(path)), ALL["alpaca_eval:2"])


@pytest.fixture(scope="module")
def model():
    """A random model with a long context, and the tokenizer and template of the tiny run."""
    with rl_kit.devices(1):
        found = load.load(str(rl_kit.made().out / "rl" / "sft"), mesh=mesh.make_mesh("fsdp=-1", jax.devices()[:1]))
        decoder = models.build(dataclasses.replace(rl_kit.MODEL, context=16384))
        yield dataclasses.replace(found, decoder=decoder, params=decoder.init(jax.random.key(0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_model_answers_each_benchmark(name, model, files, tmp_path):
    """All documents are asked and scored; texts have few tokens, and a judge says the same of all."""
    first, one = name.partition(":")[0], ALL[name]
    shots = str(files / f"{first}-solved.jsonl") if one.shots else None
    ask = Ask(name, file=str(files / f"{first}.jsonl"), shots_from=shots)
    if one.sampling is not None:
        ask = dataclasses.replace(ask, max_new_tokens=4)

    def judge(conversations):
        return [REPLY.get(first, MODERATION)] * len(conversations)

    asked = ask_model(model, ask, tmp_path, identity="random", judge=judge)
    result = result_of(asked)
    assert result["n"] == COUNT and math.isfinite(result["score"]) and math.isfinite(result["stderr"])
    if one.request == "loglikelihood":
        assert all(max(document["logprobs"]) < 0 for document in result["documents"])
