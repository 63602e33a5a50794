"""MMLU (arXiv 2009.03300): 14,042 questions of 57 subjects.

OLMES asks with the five development examples of the subject and averages the subjects. `tulu25` asks a chat model
without examples, its answer begun with "The answer is:", and averages the questions (spec tulu25 §10); `tulu3` lets it
reason first (spec tulu3 §8.1). Instructions to chat models are in this project's words.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Document, Metric, Reported
from easylm_jax.evaluate.formats import Ranked, asked_for_letter, letter_metric, listed
from easylm_jax.evaluate.metrics.extraction import letter_after
from easylm_jax.evaluate.metrics.options import accuracy


def _about(document: Document) -> str:
    return document["subject"].replace("_", " ")


FORMS = Ranked(
    title="MMLU",
    documents=(Source("hf:cais/mmlu:test", subset="all"),),
    size=14_042,
    columns=("question", "choices", "answer", "subject"),
    ask=lambda document: f"Question: {document['question'].strip()}",
    texts=lambda document: document["choices"],
    label=lambda document: int(document["answer"]),
    score="acc_per_character",
    examples=(Source("hf:cais/mmlu:dev", subset="all"),),
    same_group=True,
    group=lambda document: document["subject"],
    macro=True,
    description=lambda document: (
        f"The following are multiple choice questions (with answers) about {_about(document)}.\n\n"
    ),
    published=(
        Reported("OLMo 2 1B", 0.443, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 7B", 0.637, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 13B", 0.675, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 32B", 0.749, "arXiv 2501.00656, Table 9"),
        Reported("OLMoE-1B-7B", 0.541, "arXiv 2409.02060, Table 4"),
    ),
)  # fmt: skip
BENCHMARK, SETTINGS = FORMS.settings()


def _shown(document: Document) -> str:
    return f"{document['question'].strip()}\n{listed(document['choices'], '{letter}. {text}' + chr(10))}"


SETTINGS["tulu25"] = dataclasses.replace(
    SETTINGS["mc"], chat=True, assistant_prefix="The answer is:", metrics=(Metric("acc", accuracy),),
    prompt=lambda document: f"{_shown(document)}Answer:",
    published=(Reported("Tülu 2.5 PPO 13B (UF fine-grained)", 0.560, "arXiv 2406.09279, Table 2"),),
)  # fmt: skip
SETTINGS["tulu3"] = dataclasses.replace(
    BENCHMARK, request="generate", options=None, unconditional=None, chat=True,
    sampling=Sampling(1024, temperature=0.0),
    description=lambda document: (
        f"A multiple choice question about {_about(document)}. {asked_for_letter('A, B, C and D')}\n\n"
    ),
    prompt=lambda document: f"Question: {_shown(document)}",
    label=lambda document: "ABCD"[int(document["answer"])],
    extract=letter_after("the answer is", 4), metrics=(letter_metric("macro"),),
    published=(
        Reported("Tülu 3 8B SFT", 0.659, "arXiv 2411.15124, Table 6"),
        Reported("Tülu 3 8B DPO", 0.687, "arXiv 2411.15124, Table 6"),
        Reported("Tülu 3 8B", 0.682, "arXiv 2411.15124, Table 6"),
        Reported("Tülu 3 70B", 0.831, "arXiv 2411.15124, Table 5"),
        Reported("OLMo 2 7B Instruct", 0.613, "arXiv 2501.00656, Table 16"),
        Reported("OLMo 2 13B Instruct", 0.685, "arXiv 2501.00656, Table 16"),
    ),
)  # fmt: skip
