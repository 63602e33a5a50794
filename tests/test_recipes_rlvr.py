"""Preferences and verifiable rewards of Tülu 3 and OLMo 2 against their tables. No parameter is allocated."""

from __future__ import annotations

import itertools
import re

import jax
import numpy as np
import pytest

import models
from easylm_jax.config import DPO, GRPO, PPO, RL, Evaluate, Recipe, Reward, RewardModel, Train
from easylm_jax.config.expression import Expression
from easylm_jax.config.load import load_recipe
from easylm_jax.objectives import final_scores
from easylm_jax.plan import topology
from easylm_jax.rewards import VERIFIERS, verifier
from easylm_jax.runtime.mesh import AXES, parse_mesh
from easylm_jax.runtime.sharding import check_heads, check_rows, parameter_shardings
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.schedule import Schedule
from recipes.__main__ import FOLDER, recipe_files
from recipes.olmo2 import published as olmo2_published
from recipes.tulu3 import base, small_data
from recipes.tulu3 import published as tulu3_published

FILES = [
    path.relative_to(FOLDER).as_posix()
    for path in recipe_files()
    if path.parent.name in ("tulu3", "olmo2") and re.match(r"dpo|rm|rlvr|grpo", path.stem)
]
PRESET = {
    "Llama-3.1-Tulu-3-8B": "llama3.1-8b",
    "Llama-3.1-Tulu-3-70B": "llama3.1-70b",
    "OLMo-2-0425-1B": "olmo2-1b",
    "OLMo-2-1124-7B": "olmo2-7b",
    "OLMo-2-1124-13B": "olmo2-13b",
    "OLMo-2-0325-32B": "olmo2-32b",
}


def load(name: str) -> Recipe:
    return load_recipe(str(FOLDER / name))


def one(name: str, stage: str) -> Train:
    return load(f"{name}.py").stage(stage)


def rate(stage: Train, updates: int) -> Schedule:
    return make_optimizer(stage.optimizer, updates).schedule


def paid(reward: Reward) -> tuple[float, float]:
    """What a right answer is worth, and one that is right but never ended."""
    expression = Expression(reward.verifier)
    score = expression(dict.fromkeys(expression.calls, 1.0))
    final = final_scores(
        np.array([score, score]), np.array([True, False]), missing_end=reward.missing_end, gain=reward.gain,
        bias=reward.bias,
    )  # fmt: skip
    return tuple(np.asarray(final).tolist())


def origin(recipe: Recipe, stage: Train) -> str:
    """The hub model that a stage starts from, through the stages before it."""
    while not stage.init.startswith("hf:"):
        stage = recipe.stage(stage.init)
    return stage.init.removeprefix("hf:allenai/")


def test_every_recipe_of_the_pipeline_is_here():
    assert FILES == [
        "olmo2/dpo_13b.py", "olmo2/dpo_1b.py", "olmo2/dpo_32b.py", "olmo2/dpo_7b.py", "olmo2/rlvr_13b.py",
        "olmo2/rlvr_1b.py", "olmo2/rlvr_32b.py", "olmo2/rlvr_7b.py", "olmo2/rm_13b.py", "olmo2/rm_7b.py",
        "tulu3/dpo_70b.py", "tulu3/dpo_8b.py", "tulu3/grpo_8b.py", "tulu3/rlvr_70b.py", "tulu3/rlvr_8b.py",
        "tulu3/rm_8b.py",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_recipe_divides_over_the_pod_it_names_and_its_answers_fit_the_context(name):
    recipe = load(name)
    chips = topology.parse(recipe.pod).count
    mesh = jax.sharding.AbstractMesh(tuple(parse_mesh(recipe.mesh, chips).values()), AXES)
    for stage in (s for s in recipe.stages if isinstance(s, Train)):
        model = models.build(PRESET[re.sub("-(SFT|DPO)$", "", origin(recipe, stage))], stage.compute)
        parameter_shardings(model.abstract_params(), model.sharding_rules, mesh)
        check_heads(model.config, mesh)
        check_rows(stage.update_rows if isinstance(stage, RL) else stage.batch, stage.accumulate, mesh)
        if isinstance(stage, RL):
            assert stage.data.sequence_length + stage.sampling.max_new_tokens <= model.config.context
        assert stage.compute.dtype == "bfloat16" and stage.data.tokenizer.startswith("hf:allenai/")
        assert stage.data.template == ("olmo" if name.startswith("olmo2") and "32b" not in name else "tulu")


# Tülu 3, Table 20; OLMo 2, Section 5 and docs/olmo2.md.
@pytest.mark.parametrize(
    "name, peak",
    [("tulu3/dpo_8b", 5e-7), ("tulu3/dpo_70b", 2e-7), ("olmo2/dpo_1b", 2.5e-6), ("olmo2/dpo_7b", 1e-6),
     ("olmo2/dpo_13b", 8e-7), ("olmo2/dpo_32b", 2e-6)],
)  # fmt: skip
def test_dpo_is_length_normalised_with_beta_5(name, peak):
    stage = one(name, "dpo")
    assert isinstance(stage, DPO)
    assert (stage.loss, stage.beta, stage.label_smoothing, stage.batch, stage.epochs) == ("dpo_norm", 5.0, 0, 128, 1)
    schedule = rate(stage, 2120)  # 271,409 pairs
    assert (schedule.kind, schedule.peak, schedule.end, schedule.warmup) == ("linear", peak, 0, 212)
    optimizer = stage.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay, optimizer.clip) == (0.9, 0.999, 0, 1.0)
    assert (stage.data.side_limit, stage.data.overlong, stage.data.packing) == (2048, "truncate", "none")
    assert stage.data.train_on == "assistant" and stage.init.endswith("-SFT")


@pytest.mark.parametrize("name", ["tulu3/rm_8b", "olmo2/rm_7b", "olmo2/rm_13b"])
def test_reward_models_are_those_of_table_36(name):
    stage = one(name, "rm")
    assert isinstance(stage, RewardModel)
    schedule = rate(stage, 1000)
    assert (stage.batch, stage.epochs, schedule.kind, schedule.peak, schedule.warmup) == (256, 1, "linear", 3e-6, 0)
    assert (stage.optimizer.eps, stage.data.side_limit, stage.data.overlong) == (1e-5, 2048, "drop")
    assert stage.init.endswith("-SFT")


# Tülu 3, Table 21 and docs/tulu3.md; OLMo 2, Table 18: file, stage, rate, episodes a rollout, episodes, beta.
@pytest.mark.parametrize(
    "name, stage, peak, rows, episodes, kl",
    [
        ("tulu3/rlvr_8b", "ppo", 3e-7, 224, 100_000, 0.05),
        ("tulu3/rlvr_70b", "ppo", 1e-7, 640, 400_000, 0.07),
        ("olmo2/rlvr_7b", "ppo", 4e-7, 224, 100_000, 0.05),
        ("olmo2/rlvr_13b", "mixed", 3e-7, 248, 200_000, 0.1),
        ("olmo2/rlvr_13b", "gsm8k", 3e-7, 248, 200_000, 0.03),
        ("olmo2/rlvr_13b", "math", 3e-7, 248, 200_000, 0.1),
    ],
)
def test_ppo_has_the_papers_settings(name, stage, peak, rows, episodes, kl):
    it = one(name, stage)
    assert isinstance(it, PPO)
    assert (it.batch, it.samples, it.rollout_epochs, it.updates, it.mini_batch) == (rows, 1, 4, 4, None)
    assert episodes - rows < it.steps * it.batch <= episodes
    assert (it.kl, it.kl_kind, it.gamma, it.lam, it.clip, it.value_clip) == (kl, "k1", 1.0, 0.95, 0.2, 0.2)
    assert (it.value_coefficient, it.whiten, it.value_optimizer) == (0.1, "rollout", None)
    assert (it.sampling.temperature, it.sampling.max_new_tokens, it.data.sequence_length) == (1.0, 2048, 2048)
    assert paid(it.reward) == (10, -10) and it.reward.model is None
    assert it.value_init.endswith("-RM") and (it.asynchronous, it.correction) == (1, None)
    assert (it.optimizer.weight_decay, it.optimizer.decay_embeddings, it.optimizer.clip) == (0.01, True, 1.0)
    schedule = rate(it, it.steps * it.updates)
    assert (schedule.kind, schedule.peak, schedule.end) == ("linear", peak, 0)
    if name == "tulu3/rlvr_70b":
        assert schedule.warmup == it.steps * 4 // 10 and schedule.horizon == it.steps * 4
    else:  # ten million episodes, so that the rate barely falls
        assert schedule.warmup == 0 and schedule.horizon == round(1e7 / rows * 4)
        assert 0.97 * peak < float(schedule(it.steps * it.updates)) < peak


# docs/tulu3.md, docs/olmo2.md, the card of the 32B.
@pytest.mark.parametrize(
    "name, stage, prompts, steps",
    [("tulu3/grpo_8b", "grpo", 48, 2604), ("olmo2/rlvr_1b", "mixed", 48, 2604), ("olmo2/rlvr_1b", "math", 48, 2604),
     ("olmo2/rlvr_32b", "grpo", 112, 320)],
)  # fmt: skip
def test_grpo_has_the_released_settings(name, stage, prompts, steps):
    it = one(name, stage)
    assert isinstance(it, GRPO)
    assert (it.batch, it.samples, it.updates, it.rollout_epochs, it.steps) == (prompts, 16, 2, 1, steps)
    assert (it.kl, it.kl_kind, it.advantages, it.clip_low, it.clip_high) == (0.01, "k3", "grpo", 0.2, 0.2)
    assert paid(it.reward) == (10, 0) and it.reward.model is None and not it.drop_equal
    assert (it.asynchronous, it.correction, it.aggregation, it.bnpo_rows) == (1, None, "bnpo", 2)
    schedule = rate(it, steps * 2)
    assert (schedule.kind, schedule.peak, schedule.warmup) == ("constant", 5e-7, 0)
    assert it.optimizer.weight_decay == 0.01 and it.sampling.max_new_tokens == 2048


def test_stages_of_a_pipeline_start_from_each_other_and_value_models_from_the_reward_model_anew():
    for name, stages in (("olmo2/rlvr_13b", ("mixed", "gsm8k", "math")), ("olmo2/rlvr_1b", ("mixed", "math"))):
        recipe = load(f"{name}.py")
        inits = [recipe.stage(stage).init for stage in stages]
        assert inits[0].endswith("-DPO") and inits[1:] == list(stages[:-1])
        assert all(recipe.stage(stage).reference is None for stage in stages)
    recipe = load("olmo2/rlvr_13b.py")
    assert {recipe.stage(stage).value for stage in ("mixed", "gsm8k", "math")} == {"hf:allenai/OLMo-2-1124-13B-RM"}
    paths = [recipe.stage(stage).data.sources[0].path for stage in ("mixed", "gsm8k", "math")]
    assert paths == [f"hf:allenai/{name}" for name in (base.MIXED, "RLVR-GSM", "RLVR-MATH")]


def test_rows_are_judged_by_the_verifier_that_they_name():
    (call,) = Expression(base.VERIFIER).calls
    assert verifier(call)("so it is 18", {"dataset": "gsm8k", "ground_truth": "18"}) == 1
    assert Expression(base.VERIFIER)({call: 1.0}) == 10
    stage = one("tulu3/rlvr_8b", "ppo")
    assert stage.data.keep == ("dataset", "ground_truth") and stage.reward == base.PPO_REWARD


@pytest.mark.parametrize("text, released, repaired", [("It is Apple.", 0, 1), ("App", 1, 0), ("a pear", 0, 0)])
def test_constraints_are_judged_as_the_released_models_were_rewarded(text, released, repaired):
    """The released check of "choose one of" is reversed: it looks for the answer in the option (spec tulu3 §6.3)."""
    row = {"dataset": "ifeval", "ground_truth": '{"func_name": "validate_choice", "options": ["Apple", "Pear"]}'}
    judged = [verifier(Expression(reward).calls[0])(text, row) for reward in (base.VERIFIER, base.REPAIRED)]
    assert judged == [released, repaired]


# Tables.


def rows_of(cells: tuple) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for cell in cells:
        rows.setdefault(cell.method, {})[cell.column] = cell.value
    return rows


TABLES = {"6": tulu3_published.TABLE_6, "5": tulu3_published.TABLE_5, **olmo2_published.TABLE_16}


@pytest.mark.parametrize("name", TABLES)
def test_published_averages_are_the_means_of_their_rows(name):
    for method, row in rows_of(TABLES[name]).items():
        values = [value for column, value in row.items() if column != "Average"]
        assert row["Average"] == pytest.approx(sum(values) / len(values), abs=0.1), method


@pytest.mark.parametrize("name", FILES)
def test_published_rows_stand_beside_ours(name):
    for stage in (s for s in load(name).stages if isinstance(s, Evaluate)):
        assert [task.name for task in stage.tasks] == ["GSM8K", "MATH-500", "IFEval"]
        assert stage.averaged == ("GSM8K", "IFEval")  # MATH-500 is no column of the paper's
        published, methods = rows_of(stage.published), [entry.method for entry in stage.entries]
        assert {"SFT", "DPO"} <= set(methods) & set(published)
        assert set(stage.averaged) <= set(published["DPO"]) and "MATH-500" not in published["DPO"]
        assert all(task.sampling.temperature == 0 for task in stage.tasks)


# The small recipe.


def test_small_problems_are_in_the_published_form_and_their_right_answers_are_right():
    for problem in itertools.islice(small_data.problems(1, held_out=False), 300):
        assert set(problem.row) == {"messages", "dataset", "ground_truth"}
        assert all(isinstance(value, str) for value in (problem.row["dataset"], problem.row["ground_truth"]))
        if problem.dataset.lower() in VERIFIERS:
            assert VERIFIERS["by_dataset"](problem.answer, problem.row) == 1
            careless = VERIFIERS["by_dataset"](problem.careless, problem.row)
            assert careless <= 1 if problem.dataset == "ifeval" else careless == 0


def test_small_prompts_that_are_held_out_are_in_no_training_file():
    files = small_data.write(1)
    pages = "\n".join(page["text"] for page in files.pop("pages.jsonl"))
    asked = {name: {row["messages"][0]["content"] for row in rows} for name, rows in files.items()}
    held_out = [name for name in files if "held_out" in name]
    assert len(held_out) == 4
    for name in held_out:
        assert not asked[name] & (asked["sft.jsonl"] | asked["prompts.jsonl"])
        assert not any(f"\n{question}\n" in pages for question in itertools.islice(asked[name], 50))
    counts = {name: len(files[f"{name}_held_out.jsonl"]) for name in ("gsm8k", "math", "ifeval")}
    assert counts == {"gsm8k": 300, "math": 80, "ifeval": 200}


def test_the_small_recipe_has_the_papers_shapes():
    recipe = load("tulu3/small.py")
    ppo, grpo = recipe.stage("ppo-0"), recipe.stage("grpo-0")
    assert ppo.value == "rm" and ppo.reward.model is None
    assert paid(ppo.reward) == (10, -10) and (ppo.rollout_epochs, ppo.updates) == (4, 4)
    assert paid(grpo.reward) == (10, 0) and (grpo.updates, grpo.kl) == (2, 0.01)
    assert 0.98e-4 < float(rate(ppo, 160)(160)) < 1e-4
