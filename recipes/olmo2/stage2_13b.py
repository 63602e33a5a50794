"""OLMo 2 13B, stage 2: mid-training on 100B tokens three times and 300B once (arXiv 2501.00656, Tables 5, 13 and 14).

Stage 1 is `recipes/olmo2/stage1_13b.py`; it is not run again. The released model is the parameter average of the
four: the stage `soup`.

Departs from the paper: shares are those of the runs' file lists, not of Table 13; in the 100B mix all maths is repeated
2.3 times, where one part was repeated three times and the rest twice.
"""

from easylm_jax.config import Recipe
from recipes.olmo2.sizes import stage2, table_of_stage2, with_soup
from recipes.olmo2.stage1_13b import recipe as base

stage1 = base.stage("stage1")
stages = with_soup(
    stage1,
    *(stage2(stage1, "13b", "100B", seed) for seed in (1110, 2662, 6209)),
    stage2(stage1, "13b", "300B", seed=2662),
)
recipe = Recipe(
    base.name,
    mesh=base.mesh,
    decode_mesh=base.decode_mesh,
    pod=base.pod,
    stages=(*stages, table_of_stage2("13b", stages, "soup")),
)
