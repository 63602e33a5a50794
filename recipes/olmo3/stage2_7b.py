"""OLMo 3 7B, stage 2: mid-training on 100B tokens of Dolma 3 Dolmino (arXiv 2512.13961, base model training).

Numbers: allenai/OLMo-core, src/scripts/official/OLMo3/OLMo-3-1025-7B-midtrain.py. Stage 1 is
`recipes/olmo3/stage1_7b.py`; it is not run again. All other settings are those of stage 1.
"""

import dataclasses

from easylm_jax.config import Entry, Recipe, Source
from recipes.olmo3.stage1_7b import recipe as base
from recipes.tables import suite_table

stage1 = base.stage("stage1")
stage2 = dataclasses.replace(
    stage1,
    name="stage2",
    model=None,
    init="stage1",
    keep_moments=True,
    data=dataclasses.replace(stage1.data, sources=(Source("hf:allenai/dolma3_dolmino_mix-100B-1025"),)),
    batch=256,
    accumulate=2,
    steps=47_684,
    seed=1337,
    # Above the 3.93e-5 at the end of stage 1; no warm-up.
    optimizer=dataclasses.replace(stage1.optimizer, lr="2.0712352850360292e-4 linear to 0"),
)

entries = (Entry("stage 1", ("stage1",)), Entry("stage 2", ("stage2",), over="stage 1"))
table = suite_table("OLMo 3 7B: base models", "olmes", entries)  # the paper's own suite is not here
recipe = Recipe(base.name, mesh=base.mesh, pod=base.pod, stages=(stage1, stage2, table))
