"""Tülu 2.5, appendix: DPO on parts of UltraFeedback (arXiv 2406.09279).

Parts by the source of the prompts, and by the strength of the models that responded.
"""

from easylm_jax.config import Entry
from recipes.tulu25 import data, stages, suites

runs = {one.title: stages.dpo(one) for one in data.UF_PARTS}

recipe = stages.recipe(
    *runs.values(),
    suites.table(
        "uf-parts",
        "Tülu 2.5: DPO on parts of UltraFeedback",
        tuple(Entry(title, (run.name,), over=suites.BASE.method) for title, run in runs.items()),
        (),
    ),
)
