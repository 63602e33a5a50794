"""OLMo 2 32B, stage 2: mid-training on 100B tokens twice and 300B once (arXiv 2501.00656, Tables 5 and 13).

The paper's text mentions three runs over 100B; two were released (allenai/OLMo-core, src/scripts/official/OLMo2). Stage
1 is `recipes/olmo2/stage1_32b.py`; it is not run again. The released model is the parameter average of the three: the
stage `soup`.

Departs from the paper: shares and maths as in `stage2_13b.py`, and two runs over 100B, not three.
"""

from easylm_jax.config import Recipe
from recipes.olmo2.sizes import stage2, table_of_stage2, with_soup
from recipes.olmo2.stage1_32b import recipe as base

stage1 = base.stage("stage1")
stages = with_soup(
    stage1,
    *(stage2(stage1, "32b", "100B", seed) for seed in (1110, 2662)),
    stage2(stage1, "32b", "300B", seed=2662),
)
recipe = Recipe(
    base.name,
    mesh=base.mesh,
    decode_mesh=base.decode_mesh,
    pod=base.pod,
    stages=(*stages, table_of_stage2("32b", stages, "soup")),
)
