"""IF-RLVR, Table 6: base models that learn to reason against instruct models (arXiv 2507.02833).

The six runs of `instruct.py` and `base.py`, each with its own table, since tokenizers and templates differ.

Departs from the paper: OLMo 2 7B as a base model has responses of 2,048 tokens, not 10,240 (`base.py`).
"""

from recipes.ifbench import base, instruct, stages

recipe = stages.recipe(*instruct.recipe.stages, *base.recipe.stages)
