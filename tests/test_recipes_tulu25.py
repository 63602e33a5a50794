"""The recipes of Tülu 2.5 against what the paper says. No parameter is allocated, no set is read whole."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from data_kit import assistant, sentence, sentencepiece, user, write_jsonl

import models
from easylm_jax.config import DPO, PPO, Evaluate, Recipe, RewardModel, Train, fields
from easylm_jax.config.load import load_recipe
from easylm_jax.data import build_cache, load_tokenizer
from easylm_jax.experiment import Experiment
from easylm_jax.plan import topology
from easylm_jax.runtime.mesh import AXES, parse_mesh
from easylm_jax.runtime.sharding import check_heads, check_rows, parameter_shardings
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.schedule import Schedule
from models.errors import UserError
from recipes.__main__ import FOLDER, recipe_files
from recipes.tulu25 import data, published, small_data, stages, suites

FILES = [path for path in recipe_files() if path.parent.name == "tulu25"]
PAPER = [path for path in FILES if path.name != "small.py"]
PRESET = {"hf:allenai/tulu-2-13b": "llama2-13b", "hf:allenai/tulu-2-70b": "llama2-70b"}
UF_PAIRS = 60_908


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def load(name: str) -> Recipe:
    return load_recipe(str(FOLDER / "tulu25" / f"{name}.py"))


def schedule(stage: Train, steps: int) -> Schedule:
    return make_optimizer(stage.optimizer, steps, stage.batch * stage.data.sequence_length).schedule


def stages_of(kind: type) -> dict[str, Train]:
    """Every stage of a kind in the recipes of the paper, by name."""
    return {s.name: s for path in PAPER for s in load(path.stem).stages if isinstance(s, kind)}


def updates(stage: Train, rows: int) -> int:
    """Updates of a stage over `rows` rows; an epoch's last, smaller batch is left out."""
    return int(stage.epochs * (rows // stage.batch))


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_recipe_loads_and_its_stages_have_an_order(path):
    recipe = load(path.stem)
    order = [stage.name for stage in Experiment(recipe, Path("runs")).in_order()]
    assert sorted(order) == sorted(stage.name for stage in recipe.stages)
    assert all(order.index(need) < order.index(stage.name) for stage in recipe.stages for need in stage.needs)


@pytest.mark.parametrize("path", PAPER, ids=ids(PAPER))
def test_recipe_divides_over_the_pod_it_names(path):
    recipe = load(path.stem)
    chips = topology.parse(recipe.pod).count
    mesh = jax.sharding.AbstractMesh(tuple(parse_mesh(recipe.mesh, chips).values()), AXES)
    for stage in (s for s in recipe.stages if isinstance(s, Train)):
        model = models.build(PRESET[stage.init], stage.compute)
        parameter_shardings(model.abstract_params(), model.sharding_rules, mesh)
        check_heads(model.config, mesh)
        check_rows(stage.update_rows if isinstance(stage, PPO) else stage.batch, stage.accumulate, mesh)
        check_rows(stage.batch, 1, mesh)
        assert stage.compute.dtype == "bfloat16" and stage.compute.remat in ("attention", "full")


# Sharing: all recipes write to one folder, so one name must mean one thing.


def test_stages_that_tables_share_are_the_same_and_run_once():
    digests: dict[str, dict[str, list[str]]] = {}
    for path in PAPER:
        recipe = load(path.stem)
        experiment = Experiment(recipe, Path("runs"))
        assert recipe.name == "tulu25"
        for stage in recipe.stages:
            digest = fields.digest(experiment.settings(stage))
            digests.setdefault(stage.name, {}).setdefault(digest, []).append(path.stem)
    different = {name: list(found.values()) for name, found in digests.items() if len(found) > 1}
    assert not different
    shared = {name: files for name, found in digests.items() for files in found.values() if len(files) > 1}
    assert set(shared["dpo-uf"]) == {"table1_data", "table2_ppo_against_dpo", "final_13b"}
    assert set(shared["dpo-chatbot-arena-2023"]) == {"table1_data", "table2_ppo_against_dpo"}
    grid = {"table3_reward_models", "figure3_prompts", "table4_prompts"}
    assert set(shared["ppo-rm-13b-uf"]) == {"table2_ppo_against_dpo", *grid}
    assert set(shared["ppo-rm-70b-uf"]) == {"final_13b", *grid}
    assert set(shared["rm-13b-uf"]) == {"table2_ppo_against_dpo", "compat_13b", *grid}
    assert set(shared["rm-70b-mix"]) == grid


def test_no_two_recipes_write_the_same_table():
    tables = [stage.name for path in PAPER for stage in load(path.stem).stages if isinstance(stage, Evaluate)]
    assert sorted(tables) == [
        "compat-13b", "figure3", "final-13b", "ppo-70b", "released", "table1", "table2", "table3", "table3-best-of-16",
        "table4", "uf-parts",
    ]  # fmt: skip


def test_whole_grid_has_the_runs_of_the_paper():
    """Axis A 14 DPO; B 10 runs, 2 of them in A; C 4 PPO, 1 in B; D1 12 PPO, 4 in C; D2 8 PPO, 4 in C (spec §11)."""
    names = {
        name: [s.name for s in load(name).stages if isinstance(s, DPO | PPO)]
        for name in ("table1_data", "table2_ppo_against_dpo", "table3_reward_models", "figure3_prompts",
                     "table4_prompts")
    }  # fmt: skip
    assert [len(runs) for runs in names.values()] == [14, 10, 4, 12, 8]
    assert len(set(itertools.chain(*names.values()))) == 14 + 8 + 3 + 8 + 4


# Hyper-parameters.

# KL by the size of the reward model.
KL = {"13b": 0.05, "70b": 0.0325}


def assert_adamw(stage: Train) -> None:
    optimizer = stage.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip) == (0, 1.0)


def assert_pairs(spec: data.DataSpec, truncated: str, compat: str | None = None) -> None:
    assert (spec.kind, spec.template, spec.packing, spec.train_on) == ("preference", "tulu25", "none", "last_assistant")
    assert (spec.sequence_length, spec.side_limit, spec.overlong, spec.compat) == (8192, 4096, truncated, compat)


def test_reward_models_have_the_papers_settings():
    found = stages_of(RewardModel)
    assert len(found) == 8  # 13B on five sets and the mix, 70B on two
    for name, stage in found.items():
        assert stage.init == f"hf:allenai/tulu-2-{name.split('-')[1]}"
        assert (stage.batch, stage.accumulate, stage.epochs, stage.seed) == (512, 16, 1, 42)
        rate = schedule(stage, 118)
        assert (rate.kind, rate.peak, rate.end, rate.warmup) == ("linear", 1e-5, 1e-6, 4)
        assert not stage.use_margin and (stage.head_init, stage.head_std) == ("tulu25", 0.02)
        assert_adamw(stage)
        assert_pairs(stage.data, "drop")


def test_dpo_has_the_papers_settings():
    found = stages_of(DPO)
    assert len(found) == 14 + 3 + len(data.UF_PARTS) + 1  # Table 1, the cuts of Table 2, parts, compat
    for name, stage in found.items():
        assert stage.init == "hf:allenai/tulu-2-13b"
        assert (stage.loss, stage.beta, stage.label_smoothing) == ("dpo", 0.1, 0)
        assert (stage.batch, stage.accumulate, stage.epochs, stage.seed) == (32, 1, 3, 42)
        rate = schedule(stage, 5709)
        assert (rate.kind, rate.peak, rate.end, rate.warmup) == ("linear", 5e-7, 0, 571)
        assert_adamw(stage)
        assert_pairs(stage.data, "truncate", "tulu25" if name.endswith("compat") else None)


def test_ppo_has_the_papers_settings():
    found = stages_of(PPO)
    assert len(found) == 4 + 4 + 8 + 4 + 1 + 1  # Table 2 without UF, Table 3, Figure 3, Table 4, compat, 70B
    for name, stage in found.items():
        large, compat = name.startswith("ppo-70b"), name.endswith("compat")
        batch, mini = (32, 32) if large else (512, 64)
        kl = 0.05 if large else KL[stage.reward.model.split("-")[1]]
        assert stage.init == f"hf:allenai/tulu-2-{'70b' if large else '13b'}"
        assert (stage.batch, stage.samples, stage.mini_batch) == (batch, 1, mini)
        assert (stage.rollout_epochs, stage.epochs, stage.steps, stage.accumulate) == (1, 1, None, 1)
        assert (stage.sampling.temperature, stage.sampling.top_k, stage.sampling.top_p) == (0.7, 50, None)
        assert (stage.data.sequence_length, stage.sampling.max_new_tokens) == (1024, 1024)
        assert (stage.data.kind, stage.data.template, stage.data.overlong) == ("prompts", "tulu25", "drop")
        assert stage.logprob_temperature == 1.0
        assert (stage.kl, stage.kl_kind, stage.kl_target) == (kl, "k1", None)
        assert (stage.gamma, stage.lam, stage.clip, stage.value_clip) == (1.0, 0.95, 0.2, 0.2)
        assert (stage.value_coefficient, stage.value_only, stage.value_optimizer) == (0.1, 0, None)
        assert stage.value_init == stage.reward.model  # the value model starts from the reward model
        assert (stage.whiten, stage.compat) == (("mini_batch", "tulu25") if compat else ("rollout", None))
        reward = stage.reward
        assert (reward.missing_end, reward.gain, reward.bias, reward.verifier) == (-10.0, 1, 0, None)
        rate = schedule(stage, 928)
        assert (rate.kind, rate.peak, rate.warmup) == ("constant", 1e-6, 12 if large else 93)
        assert_adamw(stage)


def test_updates_on_ultrafeedback_are_those_of_the_paper():
    pairs = data.preferences("uf")
    assert pairs.size == UF_PAIRS
    dpo, reward = stages.dpo(pairs), stages.reward_model("13b", pairs)
    assert updates(dpo, UF_PAIRS) == 5709 and schedule(dpo, 5709).warmup == 571
    assert updates(reward, UF_PAIRS) == 118 and schedule(reward, 118).warmup == 4
    assert UF_PAIRS // (reward.batch // reward.accumulate) == 1903  # micro-steps, the step of the published checkpoint


def test_ppo_makes_928_updates_in_116_rollouts_once_long_prompts_are_left_out():
    """All prompts would give 118; 116 rollouts need 59,392, so about one prompt in fifty is above 1,024 tokens."""
    ppo = stages.ppo(stages.reward_model("13b", data.preferences("uf")), data.prompts("uf"))
    assert updates(ppo, UF_PAIRS) == 118
    left = range(116 * 512, 117 * 512)
    assert {updates(ppo, prompts) for prompts in (left[0], left[-1])} == {116}
    assert 0.016 < 1 - left[-1] / UF_PAIRS < 1 - left[0] / UF_PAIRS < 0.025
    assert 116 * ppo.updates == 928 and schedule(ppo, 928).warmup == 93


# Data.

# Table 1: name of the split, pairs.
TABLE_1 = {
    "SHP-2": ("shp_2", 500_000),
    "StackExchange": ("stack_exchange_paired", 500_000),
    "PRM800k": ("prm800k_pairs_phase2", 6_949),
    "Chatbot Arena 2023": ("chatbot_arena_2023", 20_465),
    "Chatbot Arena 2024": ("chatbot_arena_2024", 34_269),
    "AlpacaFarm human": ("alpaca_farm_human_pref", 9_686),
    "HH-RLHF": ("hh_rlhf", 158_530),
    "HelpSteer": ("helpsteer", 9_270),
    "AlpacaFarm GPT-4": ("alpaca_farm_gpt4_pref", 19_465),
    "Capybara 7k": ("capybara", 7_563),
    "Orca pairs": ("orca_dpo_pairs", 12_859),
    "Nectar": ("nectar", 180_099),
    "UltraFeedback overall": ("ultrafeedback_overall", 60_908),
    "UltraFeedback fine-grained": ("ultrafeedback_mean_aspects", 60_908),
}


def test_preference_sets_are_those_of_table_1():
    assert {one.title: (one.split, one.size) for one in data.TABLE_1} == TABLE_1
    groups = [one.group for one in data.TABLE_1]
    assert [groups.count(group) for group in ("Web", "Human", "Synthetic")] == [2, 6, 6]
    assert {one.size for one in data.CUTS} == {UF_PAIRS}


def test_the_mix_is_the_sum_of_its_six_sets():
    whole = sum(data.preferences(key).size for key in ("helpsteer", "prm800k", "uf"))
    assert data.MIX.size == whole + sum(one.size for one in data.CUTS) == 259_851


def test_sets_are_read_by_name_from_the_hub_or_from_a_folder():
    assert data.preferences("hh-rlhf").source.path == "hf:allenai/tulu-2.5-preference-data:hh_rlhf"
    local = data.preferences("hh-rlhf", folder="my/sets")
    assert local.source.path == "my/sets/hh_rlhf.jsonl"
    assert local.pairs(truncated="drop").sources == local.prompts.data.sources == (local.source,)
    assert data.prompts("gsm8k").source.path == "hf:allenai/tulu-2.5-prompts:gsm8k_prompts"
    assert data.prompts("gsm8k", folder="my").source.path == "my/gsm8k_prompts.jsonl"
    for name in (data.preferences, data.prompts):
        with pytest.raises(UserError, match="no p.* set 'nothing'; there are"):
            name("nothing")


def test_reward_models_and_policies_of_table_2_see_the_same_set():
    recipe = load("table2_ppo_against_dpo")
    for stage in (s for s in recipe.stages if isinstance(s, PPO)):
        reward = recipe.stage(stage.reward.model)
        dpo = recipe.stage(f"dpo-{reward.name.removeprefix('rm-13b-')}")
        assert dpo.data.sources == reward.data.sources
        if reward.name != "rm-13b-uf":  # its prompts are published as a set of their own
            assert stage.data.sources == reward.data.sources


def test_a_local_file_takes_a_sets_place_on_the_command_line():
    path = str(FOLDER / "tulu25/table1_data.py")
    stage = load_recipe(path, ["dpo-shp-2.data.sources.0.path=my.jsonl"]).stage("dpo-shp-2")
    assert [source.path for source in stage.data.sources] == ["my.jsonl"]


# Published numbers and tables.


def rows_of(table: tuple) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for cell in table:
        assert cell.column not in rows.setdefault(cell.method, {})
        rows[cell.method][cell.column] = cell.value
    return rows


@pytest.mark.parametrize("table", [published.TABLE_1, published.TABLE_2], ids=["table1", "table2"])
def test_published_averages_are_the_means_of_their_rows(table):
    rows = {method: row for method, row in rows_of(table).items() if method != "Llama 2 base"}
    for row in rows.values():
        assert tuple(row) == published.COLUMNS
        mean = sum(row[name] for name in published.CATEGORIES) / len(published.CATEGORIES)
        assert row["Average"] == pytest.approx(mean, abs=0.1)


def test_published_differences_of_ppo_from_dpo_are_those_of_the_paper():
    rows = rows_of(published.TABLE_2)
    sets = [method.removesuffix(", PPO") for method in rows if method.endswith(", PPO")]
    differences = [
        sum(rows[f"{name}, PPO"][column] - rows[f"{name}, DPO"][column] for name in sets) / len(sets)
        for column in published.COLUMNS
    ]
    assert differences == pytest.approx([-0.1, 1.3, 2.9, -2.5, 2.3, 0.1, 0.7], abs=0.051)


@pytest.mark.parametrize("path", PAPER, ids=ids(PAPER))
def test_published_rows_are_named_as_ours(path):
    for stage in (s for s in load(path.stem).stages if isinstance(s, Evaluate)):
        methods = [entry.method for entry in stage.entries]
        beside = {cell.method for cell in stage.published} - {"Llama 2 base"}
        if stage.name in ("table1", "table2"):
            assert list(dict.fromkeys(c.method for c in stage.published if c.method != "Llama 2 base")) == methods
        elif stage.name not in ("compat-13b", "final-13b"):
            assert beside <= set(methods)
        assert not stage.published or beside & set(methods)


def test_gsm8k_is_asked_whole_or_on_200_as_in_the_paper():
    whole, paper = suites.gsm8k(), suites.gsm8k(paper=True)
    (source,) = whole.data.sources
    assert (source.path, source.subset, source.count) == ("hf:openai/gsm8k:test", "main", None)
    assert paper.data.sources == (dataclasses.replace(source, count=200),) and paper.data.seed == 42
    assert (whole.sampling.temperature, whole.sampling.max_new_tokens, whole.verifier) == (0, 512, "gsm8k")
    assert math.sqrt(0.25 / suites.PAPER_SUBSET) == pytest.approx(0.035, abs=5e-4)
    assert math.sqrt(0.25 / suites.GSM8K_TEST) == pytest.approx(0.014, abs=5e-4)


def test_tables_ask_gsm8k_and_ifeval_and_the_score_is_gsm8k():
    for path in PAPER:
        for stage in (s for s in load(path.stem).stages if isinstance(s, Evaluate)):
            names = [task.name for task in stage.tasks]
            assert stage.averaged == ("GSM8K",)
            assert names == ["GSM8K", "IFEval"] or stage.name == "table3-best-of-16"
    task = suites.ifeval()
    assert (task.data.sources[0].path, task.verifier) == ("hf:google/IFEval", "instructions('r26', 'loose', 'prompt')")
    assert (task.sampling.temperature, task.sampling.max_new_tokens, task.data.template) == (0, 2048, "tulu25")


def test_every_reward_model_of_table_3_picks_the_best_of_16():
    recipe = load("table3_reward_models")
    tasks = recipe.stage("table3-best-of-16").tasks
    assert [(task.best_of, task.samples) for task in tasks] == [
        (None, 1), ("rm-13b-uf", 16), ("rm-13b-mix", 16), ("rm-70b-uf", 16), ("rm-70b-mix", 16),
    ]  # fmt: skip
    assert set(recipe.stage("table3-best-of-16").needs) == {task.best_of for task in tasks[1:]}


# The small grid.


def test_small_grid_has_both_algorithms_on_both_sets():
    recipe = load("small")
    for name in ("hh", "gsm8k"):
        dpo, ppo, reward = (recipe.stage(f"{kind}-{name}") for kind in ("dpo", "ppo", "rm"))
        assert dpo.data == reward.data and dpo.init == ppo.init == reward.init == "sft"
        assert ppo.data.sources == reward.data.sources and ppo.reward.model == reward.name
    assert {source.path for source in recipe.stage("rm-mix").data.sources} == {
        "stage:data/hh.jsonl", "stage:data/gsm8k.jsonl",
    }  # fmt: skip


# What the recipes read, from small files in the published schema.


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece(tmp_path_factory.mktemp("tokenizer"))


def published_file(folder: Path, long: int) -> data.Preferences:
    """Three pairs of a local set: two short ones (the second with two exchanges), one with a side of `long` words."""
    turns = [[user("the fox?")], [user("a dog?"), assistant("a cat"), user("near the river?")], [user("cats?")]]
    replies = [("over roofs", "seven"), ("the dog", "small cats"), (sentence(3, long), "warm")]
    records = [
        {"chosen": [*before, assistant(good)], "rejected": [*before, assistant(bad)], "source": "made up"}
        for before, (good, bad) in zip(turns, replies, strict=True)
    ]
    local = data.preferences("helpsteer", folder=str(folder))
    write_jsonl(Path(local.source.path), records)
    return local


def test_pairs_above_4096_tokens_are_left_out_for_reward_models_and_cut_for_dpo(tmp_path, tokenizer):
    local = published_file(tmp_path, long=4500)
    kept = {}
    for stage in (stages.reward_model("13b", local), stages.dpo(local)):
        cache = build_cache(dataclasses.replace(stage.data, tokenizer=tokenizer), tmp_path / "cache")
        batch = cache.read(np.arange(cache.rows))
        assert batch["pair_index"].shape[1] == 1 and batch["tokens"].shape[1] == 8192  # a pair stands alone in its row
        kept[type(stage)] = [int((batch["segment_ids"][row] == 1).sum()) for row in range(cache.rows)]
    assert len(kept[RewardModel]) == 2 and len(kept[DPO]) == 3
    assert max(kept[RewardModel]) < 100 and max(kept[DPO]) == 4096


def test_a_side_begins_with_bos_and_trains_the_last_answer_and_its_eos_alone(tmp_path, tokenizer):
    spec = dataclasses.replace(stages.dpo(published_file(tmp_path, long=5)).data, tokenizer=tokenizer)
    cache, vocabulary = build_cache(spec, tmp_path / "cache"), load_tokenizer(tokenizer)
    batch = cache.read(np.arange(cache.rows))
    row = next(r for r in range(cache.rows) if batch["pair_index"][r, 0] == 1)
    side = batch["segment_ids"][row] == 1
    tokens, targets = batch["tokens"][row][side], batch["targets"][row][side]
    assert tokens[0] == vocabulary.bos_id and tokens[-1] == vocabulary.eos_id
    trained = targets[batch["loss_weights"][row][side] > 0]
    assert trained[-1] == vocabulary.eos_id and vocabulary.decode(trained[:-1].tolist()).strip() == "the dog"
    text = "<|user|>\na dog?\n<|assistant|>\na cat\n<|user|>\nnear the river?\n<|assistant|>\nthe dog"
    assert vocabulary.decode(tokens.tolist(), skip_special=True).strip() == text


def test_prompts_of_a_set_are_its_turns_before_the_answers(tmp_path, tokenizer):
    local = published_file(tmp_path, long=5)
    cache = build_cache(dataclasses.replace(local.prompts.data, tokenizer=tokenizer), tmp_path / "cache")
    batch, vocabulary = cache.read(np.arange(cache.rows)), load_tokenizer(tokenizer)
    found = [row[:n].tolist() for row, n in zip(batch["tokens"], batch["lengths"], strict=True)]
    assert len(found) == 3 and all(tokens[0] == vocabulary.bos_id for tokens in found)
    texts = [vocabulary.decode(tokens, skip_special=True) for tokens in found]
    assert "<|user|>\na dog?\n<|assistant|>\na cat\n<|user|>\nnear the river?\n<|assistant|>\n" in texts


def hh(*turns: str) -> str:
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in zip(itertools.cycle(("Human", "Assistant")), turns))


def test_small_pairs_are_made_from_the_files_and_held_out_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(small_data, "DATA", str(tmp_path))
    monkeypatch.setattr(small_data, "HELD_OUT", 1)
    with pytest.raises(UserError, match="set EASYLM_DATA to the folder"):
        small_data.write(1)
    (tmp_path / "hh_rlhf").mkdir()
    (tmp_path / "gsm8k").mkdir()
    lines = [
        {"chosen": hh(f"q{i}", "no", "why?", "since"), "rejected": hh(f"q{i}", "no", "why?", "ok")} for i in (0, 1)
    ]
    with gzip.open(tmp_path / "hh_rlhf/harmless-base-test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    problems = [{"question": f"{i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(3)]
    write_jsonl(tmp_path / "gsm8k/train.jsonl", problems)
    made = small_data.write(1)
    assert {name: len(records) for name, records in made.items()} == {
        "hh.jsonl": 1, "hh_held_out.jsonl": 1, "gsm8k.jsonl": 2, "gsm8k_held_out.jsonl": 1,
    }  # fmt: skip
    assert made["hh_held_out.jsonl"][0]["chosen"][0] == user("q0") and made["hh.jsonl"][0]["chosen"][0] == user("q1")
    for record in itertools.chain(*made.values()):
        *before, answer = record["chosen"]
        *same, other = record["rejected"]
        assert before == same and before[-1]["role"] == "user" and answer != other
    for record in made["gsm8k.jsonl"]:
        good, bad = (record[side][-1]["content"] for side in ("chosen", "rejected"))
        assert good.startswith(bad) and small_data.answered(good, {}) == 1 and small_data.answered(bad, {}) == 0
    assert small_data.write(1) == made


@pytest.mark.parametrize(
    "reply, expected", [("I’m sorry, I can’t.", 1), ("You should not.", 0), ("I cannot say", 1), ("Canter on.", 0)]
)
def test_declined_reads_the_words_of_a_refusal(reply, expected):
    assert small_data.declined(reply, {}) == expected
