"""A second small moderator, trained on other rows than that of small.py: the judge of what that one filters

    easylm run recipes/wildguard/small.py
    easylm run recipes/wildguard/small_judge.py
    easylm run recipes/quickstart.py
    easylm eval runs/quickstart/sft --task harmbench=behaviours.csv --max-new-tokens 20 --cut-prompts \\
        --judge moderator:runs/wildguard-small-judge/judge --moderator runs/wildguard-small/moderator

Attack success with and without a moderator needs a judge that is another model (docs/moderation.md has the table). It
is trained on what small.py is tested on (`small_data.write_judge`), in the same sizes and rates.
"""

import dataclasses

from easylm_jax.config import MakeData, Recipe
from recipes.wildguard import small

_DATA = MakeData("data", function="recipes.wildguard.small_data:write_judge", seed=1)
_TRAINED = {stage.name: stage for stage in small.recipe.stages}

recipe = Recipe(
    "wildguard-small-judge",
    stages=(
        _DATA, _TRAINED["tokenizer"], _TRAINED["pretrain"],
        dataclasses.replace(_TRAINED["moderator"], name="judge", seed=2),
    ),
)  # fmt: skip
