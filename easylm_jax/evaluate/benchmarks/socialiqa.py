"""Social IQa (arXiv 1904.09728): what people do and feel; OLMES's forms, which ask 1,000 of 1,954."""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.formats import SAMPLE, Ranked

FORMS = Ranked(
    title="Social IQa",
    documents=(Source("hf:lighteval/siqa:validation"),),
    size=1954,
    columns=("context", "question", "answerA", "answerB", "answerC", "label"),
    ask=lambda document: f"Question: {document['context']} {document['question']}",
    texts=lambda document: [document[f"answer{letter}"] for letter in "ABC"],
    label=lambda document: int(document["label"]) - 1,
    score="acc_per_character",
    examples=(Source("hf:lighteval/siqa:train"),),
    ids=("0b42e570d0b9", "4e7246ef7431", "78e9a041221a", "46bf035b0c38", "cc81e6fd4092"),
    sample=SAMPLE,
)
BENCHMARK, SETTINGS = FORMS.settings()
