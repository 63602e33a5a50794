"""HumanEval (arXiv 2107.03374): 164 functions to be completed from their descriptions; pass@1 and pass@10.

Programs run in the sandbox, where EASYLM_RUN_CODE is 1. The default completes the file; `tulu3` and `tulu25` ask a chat
model, with the beginning of the function as the beginning of its answer: 20 samples at temperature 0.8, top-p 0.95
(spec tulu3 §8.1, tulu25 §10). The score is pass@10.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Sampling, Source
from easylm_jax.evaluate.benchmark import Benchmark, Metric, Reported
from easylm_jax.evaluate.formats import gold_bits
from easylm_jax.evaluate.metrics.extraction import code_block
from easylm_jax.evaluate.metrics.programs import humaneval_verdicts
from easylm_jax.evaluate.metrics.sampled import pass_at

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint")
SAMPLED = Sampling(512, temperature=0.8, top_p=0.95)
FIRST = Metric("pass@1", pass_at(1, humaneval_verdicts), of_document=True)
TENTH = Metric("pass@10", pass_at(10, humaneval_verdicts), of_document=True)

BENCHMARK = Benchmark(
    title="HumanEval",
    documents=(Source("hf:openai/openai_humaneval:test"),),
    size=164,
    columns=("prompt", "test", "entry_point"),
    request="generate",
    prompt=lambda document: document["prompt"],
    label=lambda document: document["entry_point"],
    sampling=Sampling(512, temperature=0.0, stop_strings=STOPS),
    metrics=(FIRST,),
)
_CHAT = dataclasses.replace(
    BENCHMARK, chat=True, samples=20, sampling=SAMPLED, metrics=(TENTH, FIRST), extract=code_block,
    prompt=lambda document: f"Complete this Python function.\n\n```python\n{document['prompt']}```",
    assistant_prefix="Here is the completed function:\n\n```python\n",
)  # fmt: skip
SETTINGS = {
    "tulu3": dataclasses.replace(
        _CHAT,
        published=(
            Reported("Tülu 3 8B SFT", 0.862, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 8B", 0.839, "arXiv 2411.15124, Table 6"),
            Reported("Tülu 3 70B", 0.924, "arXiv 2411.15124, Table 5"),
        ),
    ),
    "tulu25": _CHAT,
    "bpb": gold_bits(BENCHMARK, lambda document: document["canonical_solution"]),
}  # fmt: skip
