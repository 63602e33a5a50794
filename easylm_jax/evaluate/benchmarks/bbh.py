"""BIG-Bench Hard (arXiv 2210.09261): 6,511 questions of 27 tasks, with three examples that reason aloud.

The examples are the authors' prompt files, one a task, which are read from a folder
(`--shots-from bbh:tulu3=cot-prompts`; published at github.com/suzgunmirac/BIG-Bench-Hard). The score is the mean of the
tasks. `tulu25` shows the prompt in one turn; the paper drew 40 questions of each task in an order that depended on the
file system, so all are asked here, and the column is called "BBH (all)".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Examples, Metric, Reported
from easylm_jax.evaluate.metrics.extraction import answer_is
from easylm_jax.evaluate.metrics.texts import mean_of, same_text, same_words

TASKS = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages",
    "formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
    "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
    "multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table",
    "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks",
    "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies", "word_sorting",
)  # fmt: skip


def _documents(record: Document) -> Iterable[Document]:
    """A record of the hub's set, or a whole file of the authors' repository."""
    for one in record.get("examples") or (record,):
        yield {"_task": record.get("task") or record["_subset"], **one}


def _solved(record: Document) -> Iterable[Document]:
    """The examples of a prompt file: what stands between "Q:" and "A:", and what follows. The first one holds the
    description of the task too."""
    if "input" in record:
        yield from _documents(record)
        return
    text = record["text"].partition("-----\n")[2] or record["text"]
    description, *parts = text.strip().split("\n\nQ: ")
    for number, part in enumerate(parts):
        question, _, solution = part.partition("\nA: ")
        begun = f"{description}\n\n" if number == 0 else ""
        yield {"_task": record["_subset"], "input": question, "target": solution.strip(), "begun": begun}


SHOTS = Examples(sources=(Source("cot-prompts"),), same_group=True, read=_solved)
BENCHMARK = Benchmark(
    title="BBH",
    documents=tuple(Source("hf:SaylorTwift/bbh:test", subset=task) for task in TASKS),
    size=6511,
    columns=(),
    read=_documents,
    group=lambda document: document["_task"],
    request="generate",
    prompt=lambda document: f"{document.get('begun', '')}Q: {document['input']}\nA:",
    target=lambda document: f" {document['target']}",
    label=lambda document: document["target"],
    sampling=Sampling(512, temperature=0.0, stop_strings=("\n\n",)),
    extract=answer_is,
    metrics=(Metric("exact_match", mean_of(same_text), "macro"),),
    shots=3,
    examples=SHOTS,
)
SETTINGS = {
    "tulu3": dataclasses.replace(
        BENCHMARK, chat=True, multi_turn=True, sampling=Sampling(512, temperature=0.0),
        published=(
            Reported("Tülu 3 8B SFT", 0.697, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B", 0.690, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 70B", 0.850, "arXiv 2411.15124, Table 5"),
            Reported("OLMo 2 7B Instruct", 0.514, "arXiv 2501.00656, Table 16"),
            Reported("OLMo 2 13B Instruct", 0.630, "arXiv 2501.00656, Table 16"),
        ),
    ),
    "tulu25": dataclasses.replace(
        BENCHMARK, title="BBH (all)", chat=True, assistant_prefix="A:", sampling=Sampling(512, temperature=0.0),
        prompt=lambda document: f"Q: {document['input']}",
        examples=dataclasses.replace(
            SHOTS, prompt=lambda document: f"{document.get('begun', '')}Q: {document['input']}\n",
            target=lambda document: f"A: {document['target']}",
        ),
        metrics=(Metric("exact_match", mean_of(same_words), "macro"),),
        published=(Reported("Tülu 2 13B", 0.495, "spec tulu25 §10 (recalled)"),),
    ),
}  # fmt: skip
