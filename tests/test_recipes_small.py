"""The small recipes of RLVR run from data to table, cut short."""

import json

import pytest
import rl_kit

from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import Experiment
from recipes.__main__ import FOLDER

SHORT = {
    "ifbench/small.py": ["pretrain.steps=30", "sft.steps=3", *(f"grpo-{seed}.steps=2" for seed in (0, 1, 2))],
    "tulu3/small.py": [
        "pretrain.steps=30", "sft.steps=3", "answers.limit=300", "answers.batch=100", "rm.steps=2",
        "rm.data.sources.0.skip=4", "rm.validation.data.sources.0.limit=4",
        *(f"{method}-{seed}.steps=2" for method in ("ppo", "grpo") for seed in (0, 1)),
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_small_recipe_runs_from_data_to_table(name, tmp_path):
    recipe = load_recipe(str(FOLDER / name), SHORT[name])
    it = Experiment(recipe, tmp_path)
    with rl_kit.devices(1):
        for stage in it.in_order():
            it.run(stage)
    table = json.loads((it.root / "table.json").read_text(encoding="utf-8"))
    (stage,) = (stage for stage in recipe.stages if stage.name == "table")
    assert [row["method"] for row in table["rows"]] == [entry.method for entry in stage.entries]
    for row in table["rows"]:
        assert {task.name for task in stage.tasks} <= set(row["scores"])
        assert all(0 <= score["score"] <= 1 for score in row["scores"].values())
