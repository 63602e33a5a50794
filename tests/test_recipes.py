"""Recipes against the tables of their papers. Nothing here allocates a parameter or reads a data set."""

from __future__ import annotations

import math
import re
from pathlib import Path

import jax
import pytest

import models
from easylm_jax.config import Average, Pretrain, Recipe, Train
from easylm_jax.config.fields import digest
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import Experiment
from easylm_jax.plan import topology
from easylm_jax.runtime.mesh import parse_mesh
from easylm_jax.runtime.sharding import check_rows, parameter_shardings
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.schedule import Schedule
from recipes import mixes
from recipes.__main__ import FOLDER, recipe_files, summary, table
from recipes.olmo2 import data as olmo2_data

ROOT = FOLDER.parent
FILES = [path.relative_to(ROOT).as_posix() for path in recipe_files()]
PAPERS = [name for name in FILES if name.startswith(("recipes/olmo", "recipes/tulu"))]
# Pre-training and SFT; test_recipes_tulu25.py and test_recipes_rlvr.py have the others.
SINGLE = [name for name in PAPERS if re.search(r"/(stage\d|sft)_", name)]
SIZES = ("1b", "7b", "13b", "32b")

# Rows of conversations in the published mixtures (arXiv 2406.09279 and 2411.15124, Table 7).
CONVERSATIONS = {"tulu-v2-sft-mixture": 326_154, "tulu-3-sft-mixture": 939_344}

# What `init` names on the hub, as a preset of the same shape.
PRESET = {
    "allenai/OLMoE-1B-7B-0924": "olmoe-1b-7b",
    "meta-llama/Llama-2-7b-hf": "llama2-7b",
    "meta-llama/Llama-2-13b-hf": "llama2-13b",
    "meta-llama/Llama-2-70b-hf": "llama2-70b",
    "meta-llama/Llama-3.1-8B": "llama3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama3.1-70b",
    "allenai/OLMo-2-0425-1B": "olmo2-1b",
    "allenai/OLMo-2-1124-7B": "olmo2-7b",
    "allenai/OLMo-2-1124-13B": "olmo2-13b",
    "allenai/OLMo-2-0325-32B": "olmo2-32b",
}
PARAMETERS = {
    "olmo-1b": 1_176_764_416,
    "olmo-7b": 6_888_095_744,
    "olmo2-1b": 1_484_916_736,
    "olmo2-7b": 7_298_617_344,
    "olmo2-13b": 13_716_198_400,
    "olmo2-32b": 32_234_279_936,
    "olmo3-7b-8k": 7_298_617_344,
    "olmoe-1b-7b": 6_919_161_856,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
}


def load(name: str) -> Recipe:
    return load_recipe(str(ROOT / name))


def schedule(stage: Train, steps: int | None = None) -> Schedule:
    return make_optimizer(stage.optimizer, steps or stage.steps, stage.batch * stage.data.sequence_length).schedule


def tokens(stage: Train) -> int:
    return stage.batch * stage.data.sequence_length * stage.steps


def updates(stage: Train, conversations: int) -> int:
    """Updates of a stage with one conversation a row; the last, smaller batch of an epoch is left out."""
    return int(stage.epochs * (conversations // stage.batch))


def preset_of(recipe: Recipe, stage: Train) -> str:
    """The preset that a stage trains, through the stages that it starts from."""
    if stage.model is not None:
        return stage.model
    if stage.init.startswith("hf:"):
        return PRESET[stage.init.removeprefix("hf:")]
    return preset_of(recipe, recipe.stage(stage.init))


@pytest.mark.parametrize("name", FILES)
def test_recipe_loads_and_its_stages_have_an_order(name):
    recipe = load(name)
    order = [stage.name for stage in Experiment(recipe, Path("runs")).in_order()]
    assert sorted(order) == sorted(stage.name for stage in recipe.stages)
    assert all(order.index(need) < order.index(stage.name) for stage in recipe.stages for need in stage.needs)
    for stage in recipe.stages:
        if isinstance(stage, Train):
            assert stage.batch % stage.accumulate == 0


@pytest.mark.parametrize("name", PAPERS)
def test_recipe_names_its_paper_and_table(name):
    docstring = (ROOT / name).read_text(encoding="utf-8").split('"""')[1]
    assert re.search(r"arXiv \d{4}\.\d{5}", summary(ROOT / name))
    assert re.search(r"Tables? \d+|Section \d+|appendix|base model training", docstring)


@pytest.mark.parametrize("name", SINGLE)
def test_recipe_fits_the_pod_it_names(name):
    recipe = load(name)
    sizes = parse_mesh("fsdp=-1", topology.parse(recipe.pod).count)
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    for stage in recipe.stages:
        if not isinstance(stage, Train):
            continue
        preset = preset_of(recipe, stage)
        model = models.build(preset, stage.compute)
        shapes = model.abstract_params()
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[preset]
        parameter_shardings(shapes, model.sharding_rules, mesh)
        check_rows(stage.batch, stage.accumulate, mesh)
        assert stage.compute.dtype == "bfloat16" and stage.compute.remat in ("attention", "full", "dots")


@pytest.mark.parametrize("name", SINGLE)
def test_pretraining_rows_are_as_long_as_the_models_context(name):
    recipe = load(name)
    for stage in recipe.stages:
        if isinstance(stage, Pretrain):
            assert stage.data.sequence_length == models.preset(preset_of(recipe, stage)).context
            assert not stage.data.document_mask and stage.data.packing == "concat"


def test_recipes_share_a_run_folder_only_where_their_stages_agree():
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for name in FILES:
        recipe = load(name)
        experiment = Experiment(recipe, Path("runs"))
        for stage in recipe.stages:
            settings = digest(experiment.settings(stage))
            first, other = seen.setdefault((recipe.name, stage.name), (settings, name))
            assert settings == first, f"{other} and {name} would overwrite each other's stage {stage.name}"


# arXiv 2501.00656, Table 1 and Section 3; allenai/OLMo configs/official-1124 and -0425, OLMo-core official/OLMo2.
# size, rows, peak, warm-up updates, updates, tokens in 1e12, rate at the end, z-loss, filter, skip-step, seed
OLMO2_STAGE1 = [
    ("1b", 512, 4e-4, 4000, 1_907_359, 4.000, 7.4487e-5, 1e-4, True, False, 6198),
    ("7b", 1024, 3e-4, 2000, 928_646, 3.895, 6.1351e-5, 1e-4, True, False, 6198),
    ("13b", 2048, 9e-4, 1000, 596_057, 5.000, 9e-5, 1e-4, True, False, 6198),
    ("32b", 2048, 6e-4, 2000, 721_901, 6.056, 6.6232e-5, 1e-5, False, True, 34521),
]


@pytest.mark.parametrize("row", OLMO2_STAGE1, ids=SIZES)
def test_olmo2_stage_1_is_table_1(row):
    size, rows, peak, warmup, steps, trillions, last, z_loss, filtered, skips, seed = row
    stage = load(f"recipes/olmo2/stage1_{size}.py").stage("stage1")
    rate = schedule(stage)
    assert (stage.model, stage.batch, stage.steps, stage.seed) == (f"olmo2-{size}", rows, steps, seed)
    assert tokens(stage) / 1e12 == pytest.approx(trillions, abs=5e-4)
    assert (rate.warmup, rate.peak, rate.end) == (warmup, peak, pytest.approx(peak / 10))
    assert float(rate(warmup)) == pytest.approx(peak, rel=1e-6)
    assert float(rate(steps)) == pytest.approx(last, rel=1e-4)
    optimizer = stage.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip) == (0.1, 1.0)
    assert not optimizer.decay_embeddings and (optimizer.skip_step is not None) == skips
    assert (stage.z_loss, stage.data.repetition_filter) == (z_loss, filtered)
    assert stage.checkpoints.history == 1000


def test_olmo2_stage_1_reads_the_mix_of_table_4():
    (source,) = olmo2_data.olmo_mix(True).sources
    shares = {part.subset: part.rate for part in mixes.MIXES[source.path.removeprefix("seqio:")].parts}
    assert sum(shares.values()) == pytest.approx(3900, rel=2e-3)
    assert shares["dclm"] / sum(shares.values()) == pytest.approx(0.951, abs=1e-3)


# Section 4 and the released configurations: size, (budget in 1e9, seed, updates), rate at the start
OLMO2_STAGE2 = [
    ("1b", [(50, 42, 23_852), (50, 42069, 23_852), (50, 666, 23_852)], 7.4487e-5),
    ("7b", [(50, 42, 11_931), (50, 42069, 11_931), (50, 666, 11_931)], 6.1499e-5),
    ("13b", [(100, 1110, 11_931), (100, 2662, 11_931), (100, 6209, 11_931), (300, 2662, 35_773)], 9e-5),
    ("32b", [(100, 1110, 11_921), (100, 2662, 11_921), (300, 2662, 35_763)], 6.6232e-5),
]


@pytest.mark.parametrize("row", OLMO2_STAGE2, ids=SIZES)
def test_olmo2_stage_2_anneals_to_zero_from_where_stage_1_stopped(row):
    size, runs, start = row
    recipe = load(f"recipes/olmo2/stage2_{size}.py")
    stage1, *anneals = (stage for stage in recipe.stages if stage.trains)
    soup = [stage for stage in recipe.stages if isinstance(stage, Average)]
    table = recipe.stages[-1]
    final = "soup" if soup else "stage2-50b-seed42"
    assert table.suite == "olmo2-base" and [entry.stages for entry in table.entries[:2]] == [("stage1",), (final,)]
    assert {entry.stages[0] for entry in table.entries} == {
        stage.name for stage in recipe.stages if stage.name != "table"
    }
    published = {cell.method: [] for cell in table.published}
    for cell in table.published:
        published[cell.method].append(cell.value)
    for average, *columns in published.values():  # the paper's averages are those of its columns, rounded
        assert len(columns) == 10 and average == pytest.approx(sum(columns) / 10, abs=0.1)
    assert [stage.ingredients for stage in soup] == [tuple(s.name for s in anneals)] * (size != "1b")
    assert [(stage.steps, stage.seed) for stage in anneals] == [(steps, seed) for _, seed, steps in runs]
    for stage, (billions, _, _) in zip(anneals, runs, strict=True):
        rate = schedule(stage)
        assert tokens(stage) / 1e9 == pytest.approx(billions, rel=1e-3)
        assert stage.init == "stage1" and stage.keep_moments
        assert (float(rate(0)), rate.warmup, float(rate(stage.steps))) == (pytest.approx(start, rel=1e-5), 0, 0.0)
        assert float(rate(0)) == pytest.approx(float(schedule(stage1)(stage1.steps)), rel=3e-3)
        assert (stage.batch, stage.z_loss) == (stage1.batch, stage1.z_loss)
        assert stage.optimizer.weight_decay == stage1.optimizer.weight_decay
        assert stage.data == olmo2_data.dolmino(f"{billions}B", stage1.data.repetition_filter)
    assert len({stage.data for stage in anneals}) == len({billions for billions, _, _ in runs})  # one cache a mix


def test_dolmino_50b_is_the_mix_of_table_13():
    """The two compositions agree at 50B: that of the file lists in billions of tokens, that of the table in percent."""
    lists, table = mixes.MIXES["dolmino_1124_50b"], mixes.MIXES["dolmino_1124_50b_table13"]
    total = sum(part.rate for part in lists.parts)
    assert total == pytest.approx(51.47)
    for part, percent in zip(lists.parts, table.parts, strict=True):
        assert 100 * part.rate / total == pytest.approx(percent.rate, abs=0.06)


@pytest.mark.parametrize("budget", ["50b", "100b", "300b"])
def test_dolmino_uses_the_share_of_each_source_that_its_tokens_say(budget):
    """What a mix takes of a source is what Table 5 has of it times the share, unless the source is repeated."""
    available = {"dclm": 752, "flan": 17.0, "pes2o": 58.6, "wiki": 3.7, "stackexchange": 1.26, "math": 10.7}
    for part in mixes.MIXES[f"dolmino_1124_{budget}"].parts:
        passes = part.rate / (available[part.subset] * (part.fraction or 1.0))
        # The 100B list names one part of the maths three times and the rest twice.
        expected = 2.32 if (budget, part.subset) == ("100b", "math") else max(1, round(passes))
        assert passes == pytest.approx(expected, rel=0.02)


def test_recipes_name_the_published_mixtures():
    named = {"olmo2/stage1_7b": "olmo_mix_1124", "olmo2/stage2_13b": "dolmino_1124_300b",
             "olmoe/stage1_1b_7b": "olmoe_mix_0924", "tulu3/sft_8b": "tulu3_sft", "tulu3/sft_70b": "tulu3_sft",
             "olmoe/sft_1b_7b": "tulu3_sft_olmoe"}  # fmt: skip
    for recipe, mixture in named.items():
        stages = load(f"recipes/{recipe}.py").stages
        assert f"seqio:{mixture}" in {source.path for stage in stages if stage.trains for source in stage.data.sources}


def test_olmo3_7b_follows_its_two_cosines():
    stage = load("recipes/olmo3/stage1_7b.py").stage("stage1")
    rate = schedule(stage)
    assert tokens(stage) / 1e12 == pytest.approx(5.93, abs=5e-3)
    assert (rate.peak, rate.warmup) == (3e-4, 2000)
    assert math.floor(rate.half_way) == 597_046
    assert float(rate(597_046)) == pytest.approx(1.65e-4, rel=1e-5)
    assert float(rate(stage.steps)) == pytest.approx(3.93e-5, rel=1e-3)
    assert stage.optimizer.skip_step.sigma == 6 and stage.z_loss == 1e-5 and stage.seed == 34521


def test_olmo3_7b_mid_training_warms_up_to_nothing_and_ends_at_zero():
    recipe = load("recipes/olmo3/stage2_7b.py")
    stage = recipe.stage("stage2")
    rate = schedule(stage)
    assert (stage.init, stage.keep_moments, stage.seed, stage.steps) == ("stage1", True, 1337, 47_684)
    assert tokens(stage) / 1e9 == pytest.approx(100, rel=1e-4)
    assert (float(rate(0)), rate.warmup, float(rate(stage.steps))) == (pytest.approx(2.0712e-4, rel=1e-4), 0, 0.0)


# arXiv 2402.00838, Table 1: file, kind, peak, warm-up updates, tokens in 1e12
@pytest.mark.parametrize(
    "row", [("1b", "cosine", 4e-4, 2000, 3.10), ("7b", "linear", 3e-4, 5000, 2.00)], ids=["1b", "7b"]
)
def test_olmo1_is_table_1(row):
    size, kind, peak, warmup, trillions = row
    stage = load(f"recipes/olmo1/stage1_{size}.py").stage("stage1")
    rate = schedule(stage)
    assert (stage.batch, stage.data.sequence_length, stage.z_loss) == (2048, 2048, 0.0)
    assert (rate.kind, rate.peak, rate.warmup) == (kind, peak, warmup)
    assert float(rate(0)) == pytest.approx(peak / 10) and float(rate(stage.steps)) == pytest.approx(peak / 10)
    assert tokens(stage) / 1e12 == pytest.approx(trillions, abs=5e-3)
    assert stage.optimizer.eps == 1e-5


def test_olmoe_is_tables_2_and_10():
    recipe = load("recipes/olmoe/stage1_1b_7b.py")
    stage, annealing = recipe.stage("stage1"), recipe.stage("stage2")
    rate = schedule(stage)
    assert (rate.kind, rate.peak, rate.warmup, rate.end) == ("cosine", 4e-4, 2500, pytest.approx(4e-5))
    # Spec olmo §8: after 1.2M updates the rate has been at its floor since 5T tokens.
    assert float(rate(0)) == pytest.approx(4e-5) and float(rate(stage.steps)) == pytest.approx(4e-5)
    assert float(rate(stage.steps // 2)) > 1e-4
    assert (stage.batch, stage.accumulate, stage.z_loss) == (1024, 1, 0.0)
    assert (stage.load_balancing, stage.router_z) == (0.01, 0.001)
    assert stage.optimizer.decay_embeddings and stage.optimizer.weight_decay == 0.1
    assert tokens(stage) / 1e12 == pytest.approx(5.03, abs=5e-3)
    assert sum(part.rate for part in mixes.MIXES["olmoe_mix_0924"].parts) == pytest.approx(4068, abs=1)
    fall = schedule(annealing)
    assert (float(fall(0)), fall.warmup, float(fall(annealing.steps))) == (pytest.approx(4e-5), 0, 0.0)
    assert annealing.keep_moments and tokens(annealing) / 1e9 == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("size, peak", [("7b", 2e-5), ("13b", 2e-5), ("70b", 1e-5)])
def test_tulu2_sft_makes_5096_updates_with_153_of_warmup(size, peak):
    stage = load(f"recipes/tulu2/sft_{size}.py").stage("sft")
    steps = updates(stage, CONVERSATIONS["tulu-v2-sft-mixture"])
    rate = schedule(stage, steps)
    assert (steps, rate.warmup, rate.peak, rate.end) == (5096, 153, peak, 0)
    assert (stage.batch, stage.data.sequence_length, stage.epochs, stage.reduction) == (128, 8192, 2, "token")
    assert (stage.data.template, stage.data.packing, stage.data.compat) == ("tulu25", "none", "tulu25")
    assert stage.optimizer.weight_decay == 0 and stage.optimizer.b2 == 0.95


@pytest.mark.parametrize("size, peak, seed", [("8b", 5e-6, 123), ("70b", 2e-6, 456)])
def test_tulu3_sft_is_table_11(size, peak, seed):
    stage = load(f"recipes/tulu3/sft_{size}.py").stage("sft")
    steps = updates(stage, CONVERSATIONS["tulu-3-sft-mixture"])
    rate = schedule(stage, steps)
    assert (rate.kind, rate.warmup, rate.peak, rate.end) == ("linear", math.floor(0.03 * steps), peak, 0)
    assert (stage.batch, stage.data.sequence_length, stage.epochs, stage.seed) == (128, 4096, 2, seed)
    assert stage.reduction == "sequence_sum" and stage.data.template == "tulu" and stage.data.packing == "none"
    assert (stage.optimizer.b2, stage.optimizer.weight_decay, stage.optimizer.clip) == (0.999, 0, 1)


# arXiv 2501.00656, Section 5 and Table 17; allenai/open-instruct docs/olmo2.md and scripts/train/olmo2.
@pytest.mark.parametrize(
    "size, peak, batch, mixture, template",
    [
        ("1b", 3e-5, 128, "tulu3_sft_olmo2_0225", "olmo"),
        ("7b", 1e-5, 128, "tulu3_sft_olmo2", "olmo"),
        ("13b", 5e-6, 128, "tulu3_sft_olmo2", "olmo"),
        ("32b", 4e-6, 256, "tulu3_sft_olmo2_0225", "tulu"),
    ],
)
def test_olmo2_sft_is_tulu3s_with_its_own_rates(size, peak, batch, mixture, template):
    stage = load(f"recipes/olmo2/sft_{size}.py").stage("sft")
    (source,) = stage.data.sources
    assert (source.path, stage.data.template) == (f"seqio:{mixture}", template)
    assert (schedule(stage, 1000).peak, stage.batch, stage.reduction) == (peak, batch, "sequence_sum")
    assert preset_of(load(f"recipes/olmo2/sft_{size}.py"), stage) == f"olmo2-{size}"


def test_a_field_is_changed_from_the_command_line():
    changed = load_recipe(
        str(ROOT / "recipes/olmo2/stage2_7b.py"),
        ["stage2-50b-seed42.init=hf:allenai/OLMo-2-1124-7B@stage1-step928646-tokens3896B",
         "stage2-50b-seed42.keep_moments=false", "mesh=fsdp=64,tp=2"],
    )  # fmt: skip
    stage = changed.stage("stage2-50b-seed42")
    assert stage.needs == () and not stage.keep_moments and changed.mesh == "fsdp=64,tp=2"


def test_the_table_in_the_documentation_is_what_python_m_recipes_prints():
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert table() in text, "put the output of `python -m recipes` into docs/recipes.md"


def test_examples_in_the_documentation_load(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/recipes.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    for number, example in enumerate(examples):
        file = tmp_path / f"example{number}.py"
        file.write_text(example, encoding="utf-8")
        assert load_recipe(str(file)).stages


def test_olmoe_is_adapted_as_its_released_commands_say():
    sft, dpo, kto = (load(f"recipes/olmoe/{name}_1b_7b.py").stage(name) for name in ("sft", "dpo", "kto"))
    steps = updates(sft, 607_950)
    assert steps == 2 * 4749 and schedule(sft, steps).warmup == 284  # 9,500 updates; 3 % of warm-up, rounded down
    assert (schedule(sft, steps).peak, sft.reduction, sft.data.template) == (2e-5, "sequence_sum", "olmo")
    assert updates(dpo, 60_917) == 5709 and (dpo.beta, dpo.loss, schedule(dpo, 5712).peak) == (0.1, "dpo", 5e-7)
    assert (2 * kto.batch, kto.steps) == (32, 5000) and 32 * kto.steps / (2 * 60_917) == pytest.approx(1.3, abs=0.02)
    assert {(stage.load_balancing, stage.router_z) for stage in (sft, dpo, kto)} == {(0.0, 0.0)}
