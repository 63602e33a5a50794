"""Every benchmark of the papers' suites runs to its end on 20 documents with the quickstart's SFT model: from the file
of the shared data where there is one, else from records in its schema (some minutes; marked slow)."""

import csv
import gzip
import json
import math
import os
import subprocess
import sys

import benchmark_fixtures as fixtures
import pytest

from easylm_jax.evaluate import suites

pytestmark = pytest.mark.slow
COUNT = 20
PAPERS = ("tulu25", "tulu3-dev", "tulu3-unseen", "olmo2-base", "olmo2-instruct")
AGIEVAL = ("aqua-rat", "gaokao-english", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-math")
STAGES = ("data", "tokenizer", "pretrain", "sft")


def _lines(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _ifeval(data):
    rows = _lines(data / "evaluation/ifeval/en_input_data.jsonl.gz")
    strip = lambda row: [one.removeprefix("en:") for one in row["instruction_id_list"]]  # noqa: E731
    return [{**row, "instruction_id_list": strip(row)} for row in rows]


def _agieval(data, start):
    """Three questions of each set, from `start` on."""
    found = [
        {"set": name, **row} for name in AGIEVAL
        for row in _lines(data / f"evaluation/agieval/v1/{name}.jsonl.gz")[start : start + 3]
    ]  # fmt: skip
    return [row for row in found if row["label"] in tuple("ABCDE")]


def _bbh(data):
    """A question of each of the first 20 tasks."""
    paths = sorted((data / "evaluation/bbh/bbh").glob("*.json"))[:COUNT]
    return [{"task": path.stem, **_json(path)["examples"][0]} for path in paths]


def _table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# What the shared data hold in the schema of a benchmark, or in one from which its columns can be made.
DOCUMENTS = {
    "agieval": lambda data: _agieval(data, 0),
    "alpaca_eval:1": lambda data: _lines(data / "non_commercial/alpaca_eval/model_outputs/text_davinci_003.jsonl.gz"),
    "bbh": _bbh,
    "dan": lambda data: [row for row in _lines(data / "moderation/trustllm/misuse.jsonl.gz")
                         if row["source"] == "Do-anything-now"],
    "gsm8k": lambda data: _lines(data / "gsm8k/test.jsonl"),
    "harmbench": lambda data: _table(data / "moderation/harmbench/harmbench_behaviors_text_test.csv"),
    "humaneval": lambda data: _lines(data / "evaluation/humaneval/HumanEval.jsonl.gz"),
    "ifeval": _ifeval,
    "ifeval_ood": lambda data: _lines(data / "ifbench/IFBench_test.jsonl"),
    "jailbreak_trigger": lambda data: _lines(data / "moderation/trustllm/jailbreak.jsonl.gz"),
    "mbpp_plus": lambda data: _lines(data / "evaluation/mbpp/mbppplus_trimmed.jsonl.gz"),
    "popqa": lambda data: _lines(data / "evaluation/popqa/popqa_sample2000.jsonl.gz"),
    "toxigen": lambda data: _lines(data / "evaluation/toxigen/prompts_sample.jsonl.gz"),
    "truthfulqa": lambda data: _lines(data / "evaluation/truthfulqa/validation_en.jsonl.gz"),
    "xstest": lambda data: _table(data / "xstest/xstest_prompts.csv"),
}  # fmt: skip
SOLVED = {
    "agieval": lambda data: _agieval(data, 10),
    "gsm8k": lambda data: _json(data / "evaluation/fewshot_prompts/gsm8k_cot_8shot.json")["samples"],
    "math": lambda data: _json(data / "evaluation/fewshot_prompts/minerva_math_4shot.json")["samples"],
    "popqa": lambda data: _lines(data / "evaluation/popqa/popqa_sample2000.jsonl.gz")[-15:],
    "truthfulqa": lambda data: _json(data / "evaluation/truthfulqa/fewshot_train_en.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def environment(shared_data):
    """One device, as in use, and programs may run."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**kept, "JAX_PLATFORMS": "cpu", "EASYLM_RUN_CODE": "1", "HF_HUB_OFFLINE": "1",
            "NLTK_DATA": str(shared_data / "nltk_data")}  # fmt: skip


@pytest.fixture(scope="module")
def model(environment, tmp_path_factory):
    """The quickstart's SFT model: made here, or that of the runs in the folder that EASYLM_QUICKSTART names."""
    if "EASYLM_QUICKSTART" in os.environ:
        return f"{os.environ['EASYLM_QUICKSTART']}/quickstart/sft"
    out = tmp_path_factory.mktemp("runs")
    for stage in STAGES:
        _easylm(environment, "run", "quickstart", "--only", stage, "--out", out)
    return f"{out}/quickstart/sft"


@pytest.fixture(scope="module")
def files(shared_data, tmp_path_factory):
    """(documents, solved examples) by benchmark: 20 documents each."""
    folder = tmp_path_factory.mktemp("benchmarks")

    def written(name, rows):
        path = folder / f"{name.replace(':', '-')}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    names = dict.fromkeys(name for suite in PAPERS for name in suites.load(suite).benchmarks())
    documents, solved = {}, {"bbh": str(shared_data / "evaluation/bbh/cot-prompts")}
    for name in dict.fromkeys(part for full in names for part in (full.partition(":")[0], full)):
        if name in DOCUMENTS:
            documents[name] = written(name, DOCUMENTS[name](shared_data)[:COUNT])
        elif ":" not in name:
            documents[name] = written(name, fixtures.documents(name, COUNT))
        if ":" not in name and name not in solved:
            rows = SOLVED[name](shared_data) if name in SOLVED else fixtures.solved(name)
            solved[name] = written(f"{name}-solved", rows)
    return documents, solved


def _easylm(environment, *arguments):
    command = [sys.executable, "-m", "easylm_jax.cli.main", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("suite", PAPERS)
def test_each_benchmark_of_a_paper_runs_to_its_end(suite, model, files, environment, tmp_path):
    """The model judges itself; replies that it leaves without a verdict are counted as such."""
    documents, solved = files
    names = suites.load(suite).benchmarks()
    known = {part for name in names for part in (name, name.partition(":")[0])}
    tasks = [f"{name}={path}" for name, path in documents.items() if name in known]
    shots = [text for name in sorted(known & set(solved)) for text in ("--shots-from", f"{name}={solved[name]}")]
    printed = _easylm(
        environment, "eval", model, "--suite", suite, "--task", ",".join(tasks), *shots, "--limit", COUNT,
        "--max-new-tokens", 16, "--cut-prompts", "--judge", model, "--out", tmp_path / "out",
        "--json", tmp_path / "results.json",
    )  # fmt: skip
    results = _json(tmp_path / "results.json")
    print(printed)
    assert [task["task"] for task in results["tasks"]] == list(names)
    for task in results["tasks"]:
        assert task["n"] == len(task["documents"]) == COUNT, task["task"]
        for name, one in task["metrics"].items():
            assert math.isfinite(one["score"]) and math.isfinite(one["stderr"]) and one["stderr"] >= 0, (task, name)
            assert task["units"][name] != "share" or 0 <= one["score"] <= 1
    table = results["averages"][suite]
    assert all(one is not None for one in table["columns"].values())
    assert math.isfinite(table["score"]) and math.isfinite(table["stderr"])
