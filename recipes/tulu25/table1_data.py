"""Tülu 2.5, Table 1: DPO of Tülu 2 13B on each of 14 preference sets (arXiv 2406.09279).

Departs from the paper: the published UltraFeedback overall has 58,933 pairs; Table 1 says 60,908. Further differences
are in `stages.py` and `suites.py`.
"""

from easylm_jax.config import Entry
from recipes.tulu25 import data, published, stages, suites

runs = {one.title: stages.dpo(one) for one in data.TABLE_1}

recipe = stages.recipe(
    *runs.values(),
    suites.table(
        "table1",
        "Tülu 2.5, Table 1: DPO on each preference set",
        tuple(Entry(title, (run.name,), over=suites.BASE.method) for title, run in runs.items()),
        published.TABLE_1,
    ),
)
