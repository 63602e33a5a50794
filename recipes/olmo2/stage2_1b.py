"""OLMo 2 1B, stage 2: mid-training on 50B tokens in three data orders (arXiv 2501.00656, Tables 5 and 13).

The released model is the run with seed 42 alone. Stage 1 is `recipes/olmo2/stage1_1b.py`; it is not run again.
"""

from easylm_jax.config import Recipe
from recipes.olmo2.sizes import stage2, table_of_stage2
from recipes.olmo2.stage1_1b import recipe as base

stage1 = base.stage("stage1")
stages = (stage1, *(stage2(stage1, "1b", "50B", seed) for seed in (42, 42069, 666)))
recipe = Recipe(
    base.name,
    mesh=base.mesh,
    pod=base.pod,
    stages=(*stages, table_of_stage2("1b", stages, "stage2-50b-seed42")),
)
