"""The recipes of Spurious Rewards against what the paper says. No parameter is allocated, no set is read whole."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import models
from easylm_jax.config import GRPO, Evaluate, MajorityVote, MakeData, fields
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import Experiment
from easylm_jax.rewards.verify import ExpressionScorer
from easylm_jax.runtime.mesh import AXES, parse_mesh
from easylm_jax.runtime.sharding import check_rows, parameter_shardings
from models.errors import UserError
from recipes.__main__ import FOLDER, recipe_files
from recipes.spurious_rewards import arms, data, ladder, published, sharpness, stages
from recipes.spurious_rewards.data import POLICIES
from recipes.spurious_rewards.ladder_checks import answer_line, answer_of

FILES = [path for path in recipe_files() if path.parent.name == "spurious_rewards"]
PAPER = {path.stem: load_recipe(str(path)) for path in FILES if path.stem.startswith("figure")}
RUNS = {s.name: s for recipe in PAPER.values() for s in recipe.stages if isinstance(s, GRPO)}
MATH500 = Path(__file__).parents[2] / "shared/data/math/math500.json"


def test_every_figure_that_trains_something_is_a_recipe():
    """Figures 6, 12 to 16 are read off the runs of others (spec spurious_rewards §9)."""
    numbers = sorted(int(re.match(r"figure(\d+)_", name)[1]) for name in PAPER)
    assert numbers == [1, 2, 3, 4, 7, 8, 9, 10, 11, 17, 18, 19]


def test_runs_that_figures_share_are_the_same_and_run_once():
    seen: dict[str, str] = {}
    for recipe in PAPER.values():
        assert recipe.name == stages.RECIPE
        experiment = Experiment(recipe, Path("runs"))
        for stage in recipe.stages:
            digest = fields.digest(experiment.settings(stage))
            assert seen.setdefault(stage.name, digest) == digest, stage.name
    names = {file: {s.name for s in recipe.stages} for file, recipe in PAPER.items()}
    assert "qwen2.5-math-7b-random-0.5" in names["figure1_models"] & names["figure2_curves"] & names["figure10_coins"]
    assert "votes-qwen2.5-7b" in names["figure1_models"] & names["figure7_strategy_switch"]
    tables = [s.name for recipe in PAPER.values() for s in recipe.stages if isinstance(s, Evaluate)]
    assert len(tables) == len(set(tables))


def test_hyper_parameters_are_the_papers():
    """Spec spurious_rewards §5; what the clipping ablation changes is left to its own test."""
    assert len(RUNS) > 150
    for name, run in RUNS.items():
        if not name.startswith("clipping"):
            assert (run.batch, run.samples, run.mini_batch, run.updates) == (64, 16, 128, 8)
            assert (run.clip_low, run.clip_high) == (0.2, 0.2)
            assert run.steps in (300, 150, 100, 60)
        assert (run.sampling.temperature, run.sampling.top_p, run.sampling.max_new_tokens) == (1.0, 1.0, 3072)
        assert (run.kl, run.advantages, run.whiten, run.aggregation) == (0, "grpo", "rollout", "token")
        assert (run.reward.gain, run.reward.bias, run.reward.missing_end) == (1, 0, None)
        assert run.data.sequence_length == 1024 and run.data.keep == ("answer",)
        optimizer = run.optimizer
        assert (optimizer.lr, optimizer.b1, optimizer.b2) == ("5e-7 constant", 0.9, 0.95)
        assert (optimizer.weight_decay, optimizer.clip) == (0, 1)


def test_every_row_is_trained_with_each_of_three_seeds():
    assert stages.SEEDS == (42, 43, 44)
    for recipe in PAPER.values():
        for table in (s for s in recipe.stages if isinstance(s, Evaluate)):
            for entry in table.entries[1:]:
                runs = [recipe.stage(name) for name in entry.stages]
                assert [run.seed for run in runs] == list(stages.SEEDS), (table.name, entry.method)
                first = {"name": "", "seed": 0, **fields.encode(runs[0])}
                for run in runs[1:]:
                    assert fields.encode(run) | {"name": first["name"], "seed": first["seed"]} == first


def test_the_loss_of_the_released_code_is_a_mean_over_four_responses():
    one = stages.run(POLICIES["qwen2.5-math-7b"], "random 0.5", **stages.RELEASED_LOSS)
    assert (one.aggregation, one.bnpo_rows) == ("bnpo", 4) and one.score_rows % 4 == 0


def test_a_tables_score_is_one_benchmark_since_the_paper_averages_none():
    for recipe in PAPER.values():
        for table in (s for s in recipe.stages if isinstance(s, Evaluate)):
            assert table.name == "figure18-prompts" or table.averaged == (table.tasks[0].name,)
            assert table.averaged[0].startswith("MATH-500")


def test_each_run_says_how_its_policy_is_talked_to():
    for name, run in RUNS.items():
        policy = next(one for one in POLICIES.values() if one.init == run.init)
        assert run.data.template == policy.template == run.validation.data.template
        assert run.sampling.stop_strings == (("</answer>",) if policy.template == "r1" else ())
        assert ("r1" in run.check) == policy.r1
        if "ground-truth" in name and "python" not in name:
            assert run.reward.verifier == run.check


@pytest.mark.parametrize("name", arms.ARMS)
def test_every_reward_is_made_of_verifiers_that_there_are(name):
    for key in ("qwen2.5-math-7b", "olmo2-7b"):
        text = arms.reward(arms.arm(name), POLICIES[key])
        assert ExpressionScorer(text).expression.calls and "{" not in text


def test_rewards_differ_from_ground_truth_in_the_verifier_or_in_the_labels_alone():
    truth, votes, wrong = (stages.run(POLICIES["qwen2.5-7b"], name) for name in arms.MAIN[:2] + arms.MAIN[3:4])
    assert truth.reward == votes.reward == wrong.reward
    assert [run.data.sources[0].path for run in (truth, votes, wrong)] == [
        data.DEEPSCALER, "stage:votes-qwen2.5-7b/labelled.jsonl", "stage:votes-qwen2.5-7b/incorrect.jsonl"
    ]  # fmt: skip
    assert {run.data.sources[0].skip for run in (truth, votes, wrong)} == {100}
    coin = stages.run(POLICIES["qwen2.5-7b"], "random 0.5")
    assert coin.reward.verifier == "random(0.5)" and coin.data == truth.data


def test_votes_are_64_answers_to_bare_problems():
    found = {s.name: s for recipe in PAPER.values() for s in recipe.stages if isinstance(s, MajorityVote)}
    assert "votes-llama3.1-8b" not in found  # base models of Llama learn from the instruct models' votes
    for stage in found.values():
        assert (stage.samples, stage.sampling.temperature, stage.sampling.top_p) == (64, 1.0, 1.0)
        assert stage.data.template == "plain" and stage.data.sources[0].skip == 0


def test_clipping_is_off_in_three_ways():
    runs = {name: run for name, run in RUNS.items() if name.startswith("clipping")}
    assert len(runs) == 12 and {run.steps for run in runs.values()} == {650}
    one = {name.removeprefix("clipping-")[:-3]: run for name, run in runs.items() if name.endswith("-42")}
    assert [(run.updates, run.clip_high) for run in one.values()] == [(8, 0.2), (8, math.inf), (1, 0.2), (1, 0.2)]
    assert [run.batch * run.samples for run in one.values()] == [1024, 1024, 1024, 128]


@pytest.mark.parametrize("key", [key for key in data.TEN if key != "qwen2.5-1.5b"])
def test_runs_divide_over_the_pod_that_is_named(key):
    chips = int(re.search(r"MESH = .*# .*?: (\d+) chips", Path(stages.__file__).read_text())[1])
    mesh = jax.sharding.AbstractMesh(tuple(parse_mesh(stages.MESH, chips).values()), AXES)
    run = stages.run(POLICIES[key], "ground truth")
    shape = POLICIES[key].key.removesuffix("-instruct").removesuffix("-sft")
    model = models.build(shape, run.compute)
    assert run.data.sequence_length + run.sampling.max_new_tokens <= model.config.context
    parameter_shardings(model.abstract_params(), model.sharding_rules, mesh)
    check_rows(run.update_rows, run.accumulate, mesh)


def test_published_gains_stand_as_accuracies():
    found = {(p.method, p.column): p.value for p in published.gains("qwen2.5-math-7b", {"random 0.5": 21.4}, "x")}
    assert found == {("untrained", "MATH-500"): 49.4, ("untrained", "MATH-500 python"): 65.0,
                     ("random 0.5", "MATH-500"): 70.8}  # fmt: skip
    for recipe in PAPER.values():
        for table in (s for s in recipe.stages if isinstance(s, Evaluate)):
            methods = {entry.method for entry in table.entries}
            assert {p.method for p in table.published} <= methods, table.name


def test_a_field_of_a_stage_with_a_dot_in_its_name_is_changed_from_the_command_line():
    file, name = str(FOLDER / "spurious_rewards/figure10_coins.py"), "qwen2.5-math-7b-random-0.5"
    changed = load_recipe(file, [f"{name}.steps=7", f"{name}.sampling.max_new_tokens=5", "mesh=fsdp=2"])
    assert (changed.stage(name).steps, changed.stage(name).sampling.max_new_tokens, changed.mesh) == (7, 5, "fsdp=2")
    with pytest.raises(UserError, match="name a field of the stage"):
        load_recipe(file, [f"{name}=7"])
    with pytest.raises(UserError, match="has no stage 'qwen2'"):
        load_recipe(file, ["qwen2.5.steps=7"])


# Rows that are written before training.


def write(folder, rows):
    path = folder / "set.json"
    path.write_text(json.dumps(rows))
    return str(path)


def test_one_problem_is_found_by_its_wind_and_its_answer(tmp_path):
    rows = [{"problem": "2 + 2?", "answer": "4"}, {"problem": "The wind on a sail ...", "answer": "12.8"}]
    (rows_made,) = data.one_problem(0, write(tmp_path, rows)).values()
    assert len(rows_made) == 64 and {row["answer"] for row in rows_made} == {"12.8"}
    with pytest.raises(UserError, match="has no problem of wind on a sail"):
        data.one_problem(0, write(tmp_path, rows[:1]))


@pytest.mark.parametrize("prompt", data.PROMPTS)
def test_a_prompt_has_its_system_line_and_the_problem_whole(prompt, tmp_path):
    path = write(tmp_path, [{"prompt": f"problem {i}", "answer": i} for i in range(4)])
    made = data.with_prompt(0, prompt, path, skip=1)["problems.jsonl"]
    assert [row["answer"] for row in made] == ["1", "2", "3"]
    system, before, behind = data.PROMPTS[prompt]
    assert made[0]["messages"][-1]["content"] == f"{before}problem 1{behind}"
    assert [turn["content"] for turn in made[0]["messages"][:-1]] == ([system] if system else [])


def test_stages_that_write_rows_are_called_as_their_functions_want():
    made = {s.name: s for recipe in PAPER.values() for s in recipe.stages if isinstance(s, MakeData)}
    assert len(made) == 1 + 2 * len(data.PROMPTS)
    with pytest.raises(UserError, match="no prompt 'other'"):
        data.with_prompt(0, "other")


@pytest.mark.skipif(not MATH500.is_file(), reason="needs ../shared/data/math")
def test_the_tests_problems_are_500():
    assert len(data.with_prompt(0, "default", str(MATH500))["problems.jsonl"]) == 500


# The small ladder.


def test_the_ladders_arms_differ_in_reward_labels_and_clip_alone():
    names = ("name", "reward", "data", "clip_low", "clip_high")
    rest = {
        name: {key: value for key, value in fields.encode(ladder.arm(name, 0)).items() if key not in names}
        for name in ladder.ARMS
    }
    assert all(other == rest["ground truth"] for other in rest.values())
    assert ladder.arm("random", 0).updates == 8 and ladder.arm("random, no clip", 0).clip_high == math.inf


def test_an_answer_line_is_the_last_line_behind_its_mark():
    assert [answer_of(text) for text in ("1 + 1 = 2\n#### 2", "#### a b ", "#### 2\nso", "2", "", "####")] == [
        "2", "a b", "", "", "", ""
    ]  # fmt: skip
    assert answer_line("x\n#### 7", {}) == 1 and answer_line("7", {}) == 0


def test_sharpness_compares_problem_by_problem_and_seed_by_seed():
    def one(*mode):
        values = np.array(mode)
        return sharpness.Sharpness(values, values, values / 2)

    found = {"SFT": [one(0.2, 0.4)], "random": [one(0.4, 0.6), one(0.6, 0.8)],
             "random, no clip": [one(0.1, 0.3), one(0.3, 0.5)]}  # fmt: skip
    lines = sharpness.table(found).splitlines()
    assert lines[2] == "| SFT | 30.0 | – | 30.0 | 15.0 | – |"
    assert lines[3].startswith("| random | 60.0 | +30.0 (") and "| 30.0 | +15.0 (" in lines[3]
    assert lines[5] == "| random: clip less no clip | | +30.0 (+30.0 to +30.0) | | | +15.0 (+15.0 to +15.0) |"
