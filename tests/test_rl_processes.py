"""Several processes write, judge and learn as one."""

import json

import numpy as np
import pytest
import rl_kit
from support import launcher, only_line

from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import Experiment

SMOOTH = 'OptimizerConfig("1.0", weight_decay=0.0, eps=1.0)'  # an update is about proportional to its gradient
STAGES = f"""
    ppo("ppo", batch=8, mini_batch=4, whiten="mini_batch", sampler_correction=2.0, kl_target=0.1, optimizer={SMOOTH},
        reward=Reward(model="reward", verifier="model + 'rl_kit:of_prompt'", missing_end=-2.0)),
    BestOfN("best", init="sft", data=prompts(HOME), reward=Reward(model="reward", missing_end=None), samples=2,
            batch=4, limit=8, sampling=Sampling(8, slots=8)),
"""
MORE = f"""
    grpo("grpo", kl=0.1, optimizer={SMOOTH}), online_dpo("online", samples=2, optimizer={SMOOTH}),
    Evaluate("table", title="t", reference="sft", entries=(Entry("sft", ("sft",)), Entry("rl", ("grpo",), over="sft")),
             tasks=(Task("e", prompts(HOME), "rl_kit:share_of_e", Sampling(8, slots=8), limit=8),), kl_prompts=8,
             benchmarks=(Ask("arc_easy", file="FOLDER/choices.jsonl", shots=0),
                         Ask("gsm8k", file="FOLDER/problems.jsonl", shots=0, max_new_tokens=4))),
"""


def both(folder, stages):
    """The stages run in this process on one device, and by two processes of two devices each, as on a pod: neighbours
    in the mesh belong to different processes, and answers are written in another shape."""
    path = rl_kit.recipe_file(folder, stages)
    recipe = load_recipe(str(path))
    one, two = (Experiment(recipe, rl_kit.copy_of_run(folder / name)) for name in ("one", "two"))
    with rl_kit.devices(1):
        for stage in one.in_order():
            one.run(stage)
    results = launcher().processes(
        2, "run", path, "--out", two.out, "mesh=fsdp=4", "decode_mesh=fsdp=2,tp=2", devices=2, woven=True
    )
    assert [result.status for result in results] == [0, 0], [result.err[-3000:] for result in results]
    assert not results[1].err  # one process speaks
    return one, two


def largest_difference(one, two, name, prefix="params"):
    """Of any parameter, relative to the largest of its leaf."""
    mine, theirs = (rl_kit.params_of(it, name, prefix) for it in (two, one))
    assert mine.keys() == theirs.keys()
    return max(float(np.abs(mine[leaf] - theirs[leaf]).max() / np.abs(theirs[leaf]).max()) for leaf in theirs)


def test_two_processes_give_what_one_gives(tmp_path, record_property):
    one, two = both(tmp_path, STAGES)
    for prefix in ("params", "value.params"):
        worst = largest_difference(one, two, "ppo", prefix)
        record_property(f"largest relative difference of {prefix}", worst)
        assert worst <= 1e-5
    lines = [(it.folder("best") / "answers.jsonl").read_text().splitlines() for it in (two, one)]
    for mine, theirs in zip(*([json.loads(line) for line in part] for part in lines), strict=True):
        assert mine["answers"] == theirs["answers"]
        np.testing.assert_allclose(mine["scores"], theirs["scores"], atol=1e-5)


@pytest.mark.slow
def test_two_processes_compare_groups_and_pairs_and_judge_as_one(tmp_path):
    texts = ["one two", "three", "four five six", "seven"]
    rl_kit.write(tmp_path / "choices.jsonl", [
        {"question": f"one {i}", "choices": {"text": texts, "label": list("ABCD")}, "answerKey": "ABCD"[i % 4]}
        for i in range(8)
    ])  # fmt: skip
    problems = [{"question": f"one two {i}", "answer": f"it is #### {i}"} for i in range(6)]
    rl_kit.write(tmp_path / "problems.jsonl", problems)
    one, two = both(tmp_path, MORE.replace("FOLDER", str(tmp_path)))
    assert max(largest_difference(one, two, name) for name in ("grpo", "online")) <= 1e-5
    tables = [json.loads((it.root / "table.json").read_text())["rows"] for it in (two, one)]
    for mine, theirs in zip(*tables, strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-6)
        assert mine["kl"] == pytest.approx(theirs["kl"], abs=1e-4)
    for model in ("sft", "grpo"):
        kept = [json.loads((it.folder("table") / "models" / f"{model}.json").read_text())["tasks"] for it in (two, one)]
        assert kept[0].keys() == {"e", "arc_easy", "gsm8k"}
        assert [len(kept[0][name]["scores"]) for name in ("arc_easy", "gsm8k")] == [8, 6]
        for name, mine in kept[0].items():
            np.testing.assert_allclose(mine["scores"], kept[1][name]["scores"], atol=1e-5)


@pytest.mark.slow
def test_a_verdict_that_is_no_number_ends_all_processes(tmp_path):
    stages = 'grpo("grpo", reward=Reward(verifier="rl_kit:not_a_number")),'
    recipe, out = rl_kit.recipe_file(tmp_path, stages), rl_kit.copy_of_run(tmp_path / "runs")
    first, second = launcher().processes(2, "run", recipe, "--out", out)
    assert "not_a_number gave nan for record" in only_line(first)
    assert second.status in (75, -6) and "Traceback" not in second.err, second
