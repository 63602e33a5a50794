"""The recipes of IF-RLVR against what the paper says. No parameter is allocated, no set is read."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path

import jax
import pytest

import models
from easylm_jax.config import DPO, GRPO, Evaluate, MakeData, Recipe, fields
from easylm_jax.config.expression import Expression
from easylm_jax.config.load import load_recipe
from easylm_jax.evaluate import tasks
from easylm_jax.experiment import Experiment
from easylm_jax.plan import topology
from easylm_jax.rewards import verifier
from easylm_jax.rewards.instructions import REGISTRY
from easylm_jax.runtime.mesh import AXES, parse_mesh
from easylm_jax.runtime.sharding import check_rows, parameter_shardings
from easylm_jax.train.optimizer import make_optimizer
from recipes.__main__ import FOLDER, recipe_files
from recipes.ifbench import published, stages, suites, table3_general

FILES = [path.stem for path in recipe_files() if path.parent.name == "ifbench" and path.stem != "small"]
PRESET = {
    "hf:allenai/Llama-3.1-Tulu-3-8B-SFT": "llama3.1-8b",
    "hf:allenai/Llama-3.1-Tulu-3-8B-DPO": "llama3.1-8b",
    "hf:meta-llama/Llama-3.1-8B": "llama3.1-8b",
    "hf:Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "hf:Qwen/Qwen2.5-7B": "qwen2.5-7b",
    "hf:allenai/OLMo-2-1124-7B-Instruct": "olmo2-7b",
    "hf:allenai/OLMo-2-1124-7B": "olmo2-7b",
}


def load(name: str) -> Recipe:
    return load_recipe(str(FOLDER / "ifbench" / f"{name}.py"))


def all_stages(kind: type) -> dict[str, object]:
    return {stage.name: stage for name in FILES for stage in load(name).stages if isinstance(stage, kind)}


@pytest.mark.parametrize("name", FILES)
def test_recipe_divides_over_the_pod_it_names(name):
    recipe = load(name)
    chips = topology.parse(recipe.pod).count
    mesh = jax.sharding.AbstractMesh(tuple(parse_mesh(recipe.mesh, chips).values()), AXES)
    for stage in recipe.stages:
        if isinstance(stage, (GRPO, DPO)):
            model = models.build(PRESET[stage.init], stage.compute)
            parameter_shardings(model.abstract_params(), model.sharding_rules, mesh)
            check_rows(stage.update_rows if isinstance(stage, GRPO) else stage.batch, stage.accumulate, mesh)
            room = stage.data.sequence_length + (stage.sampling.max_new_tokens if isinstance(stage, GRPO) else 0)
            assert isinstance(stage, DPO) or room <= model.config.context


def test_stages_that_tables_share_are_the_same_and_tables_have_names_of_their_own():
    seen: dict[str, dict[str, set[str]]] = {}
    for name in FILES:
        recipe = load(name)
        assert recipe.name == "ifbench"
        experiment = Experiment(recipe, Path("runs"))
        for stage in recipe.stages:
            digest = fields.digest(experiment.settings(stage))
            seen.setdefault(stage.name, {}).setdefault(digest, set()).add(name)
    assert all(len(found) == 1 for found in seen.values())
    shared = {name: next(iter(found.values())) for name, found in seen.items()}
    assert shared["grpo-tulu3-dpo"] == {"instruct", "table2_categories", "table3_general", "table6_base_and_instruct"}
    assert shared["grpo-qwen2.5-upto5"] == {"table1_constraints", "table7_turns"}
    assert shared["grpo-tulu3-dpo-same-ranges"] == {"figure5_ranges", "figure6_categories"}


# Section 4, appendix, released script.
def test_grpo_has_the_papers_settings():
    found = all_stages(GRPO)
    assert len(found) == 3 + 3 + 11 + 1 + 2 + 5 + 10 + 3 + 4
    for name, stage in found.items():
        thinks = stage.data.template == "think"
        rows = (64, 8, 256) if name.endswith("-rm") else (48, 16, 384)
        assert (stage.batch, stage.samples, stage.mini_batch) == rows and stage.updates == 2
        assert (stage.steps, stage.rollout_epochs) == (1100 if name.endswith("-rm") else 2000, 1)
        assert stage.kl == (0 if thinks else 0.01) and stage.kl_kind == "k3"
        assert (stage.clip_low, stage.clip_high, stage.advantages) == (0.2, 0.2, "standard")
        assert (stage.sampling.temperature, stage.sampling.top_k, stage.sampling.top_p) == (1.0, None, None)
        longest = 2048 if stage.init.startswith("hf:allenai/OLMo") or not thinks else 10_240
        assert (stage.sampling.max_new_tokens, stage.data.sequence_length) == (longest, 2048)
        assert stage.sampling.stop_strings == (("</answer>",) if thinks else ())
        rate = make_optimizer(stage.optimizer, 4000).schedule
        assert (rate.kind, rate.peak, rate.warmup) == ("constant", 5e-7, 0)
        assert (stage.validation.every, stage.check) == (25, suites.HEADLINE)
        assert stage.validation.data.sources[0].path == "hf:google/IFEval"
        assert stage.reward.missing_end == 0


def test_the_reward_is_ten_times_the_share_that_is_followed():
    stage = stages.grpo(suites.POLICIES["tulu3-dpo"])
    record = {"ground_truth": json.dumps([{"instruction_id": ["punctuation:no_comma", "startend:quotation"],
                                           "kwargs": [None, None]}])}  # fmt: skip
    expression = Expression(stage.reward.verifier)
    scores = [expression({"ifeval": verifier("ifeval")(text, record)}) for text in ("ebb", '"ebb"', "")]
    assert (
        scores == [5, 10, 0]
        and (stage.reward.gain, stage.reward.bias) == (1, 0)
        and stage.data.keep == ("dataset", "ground_truth")
    )


@pytest.mark.parametrize(
    "followed, liked, reward",
    [(1.0, 7.5, 11), (1.0, 7.0, 9.5), (0.5, 8.0, 6), (0.5, -3.0, 4.5), (0.0, 9.0, 0), (0.0, 1.0, 0)],
)
def test_the_mixed_reward_is_equation_2(followed, liked, reward):
    expression = Expression(table3_general.MIXED.verifier)
    assert expression({"ifeval": followed, "model": liked}) == reward
    assert table3_general.MIXED.gain == 1 and table3_general.mixed.batch * table3_general.mixed.samples == 512


def test_prompts_are_made_as_each_table_has_them():
    made = {name: dict(stage.arguments) for name, stage in all_stages(MakeData).items()}
    for most in range(1, 7):
        assert made[f"prompts-upto{most}"] == {"count": 60_000, "most": most}
    for count in (10, 50, 100, 500, 1000):
        assert made[f"prompts-{count}-each"]["instances"] == count
    assert {made[f"prompts-ifeval{k}"]["ifeval"] for k in (5, 10, 15, 20, 25)} == {5, 10, 15, 20, 25}
    assert {made[f"prompts-{r}-ranges"]["ranges"] for r in ("same", "wider", "different")} == {
        "same", "wider", "different",
    }  # fmt: skip
    assert made["prompts-without-keywords"]["leave_out"] == "keywords"
    assert made["prompts-multi-turn"]["turns"] == "multi" and made["prompts-mix-turn"]["turns"] == "mix"
    assert made["prompts-dpo-against-grpo"]["count"] == 31_751


def test_dpo_has_the_settings_of_table_5():
    found = all_stages(DPO)
    assert set(found) == {"dpo-tulu3-sft-if", "dpo-tulu3-dpo-if"}
    for stage in found.values():
        rate = make_optimizer(stage.optimizer, 1000).schedule
        assert (stage.loss, stage.beta, stage.batch, stage.epochs, rate.peak) == ("dpo_norm", 5.0, 16, 1, 5e-7)


# The tests.


def test_every_table_asks_541_and_300_prompts_greedily_and_names_the_version():
    for stage in all_stages(Evaluate).values():
        first, second = stage.tasks[:2]
        assert (first.name, second.name) == ("IFEval", "IFBench")
        assert [task.data.sources[0].path for task in (first, second)] == [
            "hf:google/IFEval",
            "hf:allenai/IFBench_test",
        ]
        for task in (first, second):
            assert task.verifier == suites.HEADLINE and task.sampling.temperature == 0
            assert task.sampling.max_new_tokens in (2048, 10_240) and task.limit is None
            assert task.data.keep == ("instruction_id_list", "kwargs")
            assert [name for name, _ in task.also][:2] == ["strict", "instructions"]
        assert {task.data.tokenizer for task in stage.tasks} == {stage.entries[0].stages[0]}


def test_shares_of_instructions_are_those_of_the_report(shared_data):
    """A column's mean over the prompts of IFBench's file is the share of all their instructions, or of a group's."""
    path = shared_data / "ifbench/IFBench_test.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = Counter(name.partition(":")[0] for row in rows for name in row["instruction_id_list"])
    prompts, instructions, groups = tasks.IFBENCH
    assert (len(rows), counts.total()) == (prompts, instructions)
    assert {group: counts[tasks.GROUPS[group]] for group in groups} == groups
    task = suites.ifbench(suites.POLICIES["tulu3-dpo"], categories=True)
    for name, text in task.also[1:]:
        (call,) = Expression(text).calls
        group = tasks.GROUPS.get(name, "")
        held = [
            sum(1 for one in row["instruction_id_list"] if not group or one.partition(":")[0] in group.split())
            for row in rows
        ]
        assert f"{group!r}" in call if group else "'count')" in call
        means = sum(Expression(text)({call: count}) for count in held) / len(rows)
        assert means == pytest.approx(1)  # where all are followed


def test_groups_of_table_2_are_groups_of_instructions():
    known = {name.partition(":")[0] for name in REGISTRY}
    assert {group for groups in tasks.GROUPS.values() for group in groups.split()} <= known
    prompts, instructions, groups = tasks.IFEVAL
    assert (prompts, instructions) == (541, 834) and sum(groups.values()) < instructions


def test_published_rows_are_named_as_ours():
    for name, stage in all_stages(Evaluate).items():
        columns = {task.name for task in stage.tasks}
        columns |= {f"{task.name} {column}" for task in stage.tasks for column, _ in task.also}
        methods = {entry.method for entry in stage.entries}
        for entry in stage.entries[1:]:
            rows = [cell for cell in stage.published if cell.method == entry.method]
            if name.startswith(("figure5", "figure6")):
                continue
            assert rows and {cell.column for cell in rows} & columns, (name, entry.method)
        assert not stage.published or name.startswith("figure6") or methods & {c.method for c in stage.published}


def test_published_tables_are_whole():
    sizes = {"TABLE_1": 22, "TABLE_2": 30, "TABLE_3": 33, "TABLE_5": 8, "TABLE_6": 18, "OFF_THE_SHELF": 10}
    for name, size in sizes.items():
        cells = getattr(published, name)
        assert len(cells) == len({(cell.method, cell.column) for cell in cells}) == size
        assert all(0 < cell.value <= 100 for cell in cells)
    assert [len(published.table_7(key)) for key in ("qwen2.5", "qwen2.5-instruct")] == [12, 12]
    assert [len(published.figure_4(key)) for key in ("tulu3-dpo", "qwen2.5")] == [10, 10]
    assert published.TABLE_4["Tülu-3-70B"] == (15, 35)


def test_commands_in_the_documentation_name_recipes_stages_and_fields_that_exist():
    text = (FOLDER.parent / "docs/if_rlvr.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("    easylm run ")]
    assert len(commands) >= 6
    for command in commands:
        path, *rest = shlex.split(command, comments=True)[2:]
        recipe = load_recipe(str(FOLDER.parent / path), [word for word in rest if "=" in word])
        if "--only" in rest:
            assert recipe.stage(rest[rest.index("--only") + 1])
