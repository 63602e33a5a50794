"""Several processes write, judge and learn as one."""

import json

import numpy as np
import pytest
import rl_kit
from support import launcher, only_line

from easylm_jax.experiment import Experiment, load_recipe

STAGES = """
    ppo("ppo", batch=8, mini_batch=4, whiten="mini_batch", sampler_correction=2.0, kl_target=0.1,
        optimizer=OptimizerConfig("1.0", weight_decay=0.0, eps=1.0),
        reward=Reward(model="reward", verifier="rl_kit:of_prompt", missing_end=-2.0)),
    grpo("grpo", steps=1, optimizer=OptimizerConfig("1.0", weight_decay=0.0, eps=1.0)),
    BestOfN("best", init="sft", data=prompts(HOME), reward=Reward(model="reward", missing_end=None), samples=2,
            batch=4, limit=8, sampling=Sampling(8, slots=8)),
    Evaluate("table", title="t", reference="sft", entries=(Entry("sft", ("sft",)), Entry("ppo", ("ppo",), over="sft")),
             tasks=(Task("e", prompts(HOME), "rl_kit:share_of_e", Sampling(8, slots=8), limit=8),), kl_prompts=8),
"""


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """The same stages in this process, on one device."""
    folder = tmp_path_factory.mktemp("one")
    recipe = load_recipe(str(rl_kit.recipe_file(folder, STAGES)))
    it = rl_kit.experiment(folder / "runs", *recipe.stages[4:])
    with rl_kit.devices(1), rl_kit.compiled_programs():
        for name in ("ppo", "grpo", "best", "table"):
            it.run(it.recipe.stage(name))
    return it


def test_two_processes_give_what_one_gives(ready, tmp_path, record_property):
    recipe, out = rl_kit.recipe_file(tmp_path, STAGES), rl_kit.copy_of_run(tmp_path / "runs")
    results = launcher().processes(2, "run", recipe, "--out", out)
    assert [result.status for result in results] == [0, 0], [result.err[-3000:] for result in results]
    assert not results[1].err  # one process speaks
    two = Experiment(ready.recipe, out)
    for name, prefixes in (("ppo", ("params", "value.params")), ("grpo", ("params",))):
        for prefix in prefixes:
            mine, theirs = (rl_kit.params_of(it, name, prefix) for it in (two, ready))
            worst = max(np.abs(mine[leaf] - theirs[leaf]).max() / np.abs(theirs[leaf]).max() for leaf in theirs)
            record_property(f"largest relative difference of {name} {prefix}", float(worst))
            assert mine.keys() == theirs.keys() and worst <= 1e-5
    lines = [(it.folder("best") / "answers.jsonl").read_text().splitlines() for it in (two, ready)]
    for mine, theirs in zip(*([json.loads(line) for line in part] for part in lines), strict=True):
        assert mine["answers"] == theirs["answers"]
        np.testing.assert_allclose(mine["scores"], theirs["scores"], atol=1e-5)
    tables = [json.loads((it.root / "table.json").read_text())["rows"] for it in (two, ready)]
    for mine, theirs in zip(*tables, strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-6)
        assert mine["kl"] == pytest.approx(theirs["kl"], abs=1e-4)


def test_a_verdict_that_is_no_number_ends_all_processes(tmp_path):
    stages = 'grpo("grpo", reward=Reward(verifier="rl_kit:not_a_number")),'
    recipe, out = rl_kit.recipe_file(tmp_path, stages), rl_kit.copy_of_run(tmp_path / "runs")
    first, second = launcher().processes(2, "run", recipe, "--out", out)
    assert "not_a_number gave nan for record" in only_line(first)
    assert second.status in (75, -6) and "Traceback" not in second.err, second
