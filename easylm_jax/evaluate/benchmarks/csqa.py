"""CommonsenseQA (arXiv 1811.00937): five options, the validation set; OLMES's forms."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.formats import Ranked

FORMS = Ranked(
    title="CommonsenseQA",
    documents=(Source("hf:tau/commonsense_qa:validation"),),
    size=1221,
    columns=("question", "choices", "answerKey"),
    ask=lambda document: f"Question: {document['question']}",
    texts=lambda document: document["choices"]["text"],
    label=lambda document: list(document["choices"]["label"]).index(document["answerKey"]),
    score="acc_unconditional",
    examples=(Source("hf:tau/commonsense_qa:train"),),
    ids=(
        "61fe6e879ff18686d7552425a36344c8", "02e821a3e53cb320790950aab4489e85", "23505889b94e880c3e89cff4ba119860",
        "a76403b4921a9281b6ee2a7241a5ec9f", "6dc921840aa1e5dda3333b79007f630b",
    ),
    key="id",
)  # fmt: skip
BENCHMARK, SETTINGS = FORMS.settings()
