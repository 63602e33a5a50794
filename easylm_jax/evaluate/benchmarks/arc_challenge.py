"""ARC-Challenge (arXiv 1803.05457): school science questions that simple methods get wrong; OLMES's forms."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Reported
from easylm_jax.evaluate.formats import Ranked

FORMS = Ranked(
    title="ARC-Challenge",
    documents=(Source("hf:allenai/ai2_arc:test", subset="ARC-Challenge"),),
    size=1172,
    columns=("question", "choices", "answerKey"),
    ask=lambda document: f"Question: {document['question']}",
    texts=lambda document: document["choices"]["text"],
    label=lambda document: list(document["choices"]["label"]).index(document["answerKey"]),
    score="acc_unconditional",
    examples=(Source("hf:allenai/ai2_arc:train", subset="ARC-Challenge"),),
    ids=("Mercury_SC_415702", "MCAS_2009_5_6516", "Mercury_7233695", "Mercury_7041615", "MCAS_1998_4_3"),
    key="id",
    published=(
        Reported("OLMo 2 1B", 0.513, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 7B", 0.798, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 13B", 0.835, "arXiv 2501.00656, Table 9"),
        Reported("OLMo 2 32B", 0.904, "arXiv 2501.00656, Table 9"),
        Reported("OLMoE-1B-7B", 0.621, "arXiv 2409.02060, Table 4"),
    ),
)
BENCHMARK, SETTINGS = FORMS.settings()
