"""GSM8K (arXiv 2110.14168): 1,319 grade-school problems; the last number of the response is the answer.

The default is what the RLVR stages are evaluated on: no examples, a chat, greedy, 512 tokens (spec tulu3 §6.1).
`tulu3` shows the eight examples of arXiv 2201.11903 as turns; `tulu25` shows them in one turn and asks 200 problems
drawn with seed 42, as the paper did, and `tulu25_full` all; `olmes` is for base models. The examples are read from a
file with the columns `question` and `target` (`--shots-from gsm8k:tulu3=FILE`); they are published with
lm-evaluation-harness (gsm8k-cot) as data of its own.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Examples, Metric, Reported
from easylm_jax.evaluate.formats import gold_bits

SHOTS = Examples(
    sources=(Source("gsm8k_cot_8shot.jsonl"),),
    read=lambda record: (record,),
    prompt=lambda document: f"Question: {document['question']}\nAnswer:",
    target=lambda document: f" {document.get('target') or document['answer']}",
)
BENCHMARK = Benchmark(
    title="GSM8K",
    documents=(Source("hf:openai/gsm8k:test", subset="main"),),
    size=1319,
    columns=("question", "answer"),
    request="generate",
    prompt=lambda document: document["question"],
    target=lambda document: f" {document['answer']}",
    label=lambda document: document["answer"],
    chat=True,
    multi_turn=True,
    sampling=Sampling(512, temperature=0.0),
    metrics=(Metric("exact_match", "gsm8k"),),
    examples=Examples(sources=(Source("hf:openai/gsm8k:train", subset="main"),)),
)
_TULU3 = dataclasses.replace(
    BENCHMARK, shots=8, examples=SHOTS, prompt=lambda document: f"Question: {document['question']}\nAnswer:",
    published=(
        Reported("Tülu 3 8B SFT", 0.762, "arXiv 2411.15124, Table 6"),
        Reported("Tülu 3 8B DPO", 0.843, "arXiv 2411.15124, Table 6"),
        Reported("Tülu 3 8B", 0.876, "arXiv 2411.15124, Table 6"),
        Reported("Tülu 3 70B", 0.935, "arXiv 2411.15124, Table 5"),
        Reported("OLMo 2 7B Instruct", 0.851, "arXiv 2501.00656, Table 16"),
        Reported("OLMo 2 13B Instruct", 0.874, "arXiv 2501.00656, Table 16"),
    ),
)  # fmt: skip
_TULU25 = dataclasses.replace(
    _TULU3, multi_turn=False, assistant_prefix="Answer:", sample=(200, 42),
    prompt=lambda document: f"Question: {document['question']}",
    examples=dataclasses.replace(
        SHOTS, prompt=lambda document: f"Question: {document['question']}\n",
        target=lambda document: f"Answer: {document.get('target') or document['answer']}",
    ),
    published=(Reported("Tülu 2 13B", 0.460, "spec tulu25 §10 (recalled)"),),
)  # fmt: skip
_OLMES = dataclasses.replace(
    _TULU3, chat=False, sampling=Sampling(512, temperature=0.0, stop_strings=("Question:", "\n\n")),
    published=(
        Reported("OLMo 2 1B", 0.438, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 7B", 0.675, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 13B", 0.751, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 32B", 0.788, "arXiv 2501.00656, Table 9"),
    ),
)  # fmt: skip
SETTINGS = {
    "tulu3": _TULU3,
    "tulu25": _TULU25,
    "tulu25_full": dataclasses.replace(_TULU25, sample=None, published=()),
    "olmes": _OLMES,
    "bpb": gold_bits(_OLMES, lambda document: f" {document['answer'].rpartition('####')[0].strip()}"),
}
