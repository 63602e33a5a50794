"""BoolQ (arXiv 1905.10044): yes or no questions about a passage; OLMES's forms, which ask 1,000 of 3,270.

Read from SuperGLUE, whose passages begin with the title of their page.
"""

from __future__ import annotations

from easylm_jax.config import Source
from easylm_jax.evaluate.formats import SAMPLE, Ranked

FORMS = Ranked(
    title="BoolQ",
    documents=(Source("hf:aps/super_glue:validation", subset="boolq"),),
    size=3270,
    columns=("question", "passage", "label"),
    ask=lambda document: f"{document['passage']}\nQuestion: {document['question']}?",
    texts=lambda document: ("yes", "no"),
    label=lambda document: 0 if document["label"] else 1,
    score="acc",
    examples=(Source("hf:aps/super_glue:train", subset="boolq"),),
    ids=(0, 1, 7, 11, 3),
    key="idx",
    sample=SAMPLE,
)
BENCHMARK, SETTINGS = FORMS.settings()
