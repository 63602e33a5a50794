"""OLMo 2 7B, stage 2: mid-training on 50B tokens in three data orders (arXiv 2501.00656, Tables 5, 13 and 14).

Stage 1 is `recipes/olmo2/stage1_7b.py`; it is not run again. The released model is the parameter average of the three:
the stage `soup`.
"""

from easylm_jax.config import Recipe
from recipes.olmo2.sizes import stage2, table_of_stage2, with_soup
from recipes.olmo2.stage1_7b import recipe as base

stage1 = base.stage("stage1")
stages = with_soup(stage1, *(stage2(stage1, "7b", "50B", seed) for seed in (42, 42069, 666)))
recipe = Recipe(
    base.name,
    mesh=base.mesh,
    decode_mesh=base.decode_mesh,
    pod=base.pod,
    stages=(*stages, table_of_stage2("7b", stages, "soup")),
)
