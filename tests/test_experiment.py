"""Running a recipe: order, what is skipped, what may change, what is refused, and what a stage leaves behind."""

import json
import time

import pytest
from support import copy_of_reference, launcher, only_line, project, reference

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.tools import diff
from easylm_jax.config import Recipe, fields
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import Experiment
from easylm_jax.runtime.monitor.metrics import read_metrics


def run(*arguments, **how):
    result = launcher().run("run", *arguments, **how)
    assert result.status == 0, result.err
    return result


def test_finished_stages_are_skipped_and_left_as_they_are(tmp_path):
    out = copy_of_reference(tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    result = run(reference().recipe, "--out", out)
    lines = result.err.splitlines()
    assert lines == [f"{stage}: done ({out}/tiny/{stage})" for stage in ("tokenizer", "pretrain", "sft")]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_list_says_how_far_each_stage_is_and_runs_nothing(tmp_path):
    recipe, out = reference().recipe, copy_of_reference(tmp_path / "runs")
    (out / "tiny" / "sft" / "done.json").unlink()
    result = run(recipe, "--out", out, "--list")
    assert [line.split(maxsplit=1) for line in result.out.splitlines()] == [
        ["tokenizer", "done"],
        ["pretrain", "done"],
        ["sft", "at step 4"],
    ]
    result = run(recipe, "--out", out, "--list", "pretrain.seed=1")
    assert result.out.splitlines()[1].split(maxsplit=1) == ["pretrain", "done, with other settings"]
    assert "not started" in run(recipe, "--out", tmp_path / "new", "--list").out
    assert not (tmp_path / "new").exists()


def test_show_config_prints_the_recipe_as_it_would_run_and_it_comes_back(tmp_path):
    recipe = reference().recipe
    result = run(recipe, "sft.optimizer.lr=2e-5", "mesh=dp=-1", "--show-config", "--out", tmp_path / "new")
    shown = fields.decode(Recipe, json.loads(result.out))
    assert shown == load_recipe(str(recipe), ["sft.optimizer.lr=2e-5", "mesh=dp=-1"])
    assert shown.stage("sft").optimizer.lr in (2e-5, "2e-5") and shown.mesh == "dp=-1"
    assert not (tmp_path / "new").exists()


def test_a_stage_leaves_what_the_next_ones_and_a_report_need():
    root = reference().root
    done = {stage: json.loads((root / stage / "done.json").read_text()) for stage in ("tokenizer", "pretrain", "sft")}
    experiment = Experiment(load_recipe(str(reference().recipe)), reference().out)
    for name, facts in done.items():
        stage = experiment.recipe.stage(name)
        assert facts["stage"] == name and facts["kind"] == type(stage).__name__
        assert facts["hash"] == fields.digest(experiment.settings(stage))
        assert 0 < facts["seconds"] < time.time()
        config = json.loads((root / name / "config.json").read_text())
        assert fields.decode(type(stage), config["stage"]) == stage
        assert config["recipe"] == "tiny" and config["mesh"] == "fsdp=-1"
        assert config["settings"] == json.loads(json.dumps(experiment.settings(stage)))
    assert done["tokenizer"]["tokenizer"]["vocab_size"] == 300
    for name, steps in (("pretrain", 8), ("sft", 4)):
        facts = done[name]
        assert facts["step"] == steps and store.is_committed(root / name / facts["checkpoint"])
        assert facts["metrics"]["loss"] == read_metrics(root / name)[-1]["loss"]
        assert facts["data"]["rows"] > 0 and facts["data"]["tokens"] >= facts["data"]["trained_tokens"] > 0
        meta = store.read_meta(root / name / facts["checkpoint"])
        assert meta["config_hash"] == facts["hash"] and meta["model"]["width"] == 32
    assert done["sft"]["data"]["trained_tokens"] < done["sft"]["data"]["tokens"]  # answers only


def test_checkpoints_and_monitoring_may_change_when_a_run_goes_on_and_nothing_else_may(tmp_path):
    recipe, out = reference().recipe, copy_of_reference(tmp_path / "runs")
    free = ["sft.checkpoints.latest=1", "pretrain.monitoring.heartbeat_seconds=5", "pretrain.checkpoints.every=2"]
    assert "sft: done" in run(recipe, *free, "--out", out).err
    assert "mesh" not in only_line(launcher().run("run", recipe, "mesh=dp=1", "sft.batch=32", "--out", out))
    for change, says in {
        "pretrain.seed=7": "seed: 0 -> 7",
        "pretrain.steps=9": "steps: 8 -> 9",
        "pretrain.data.sequence_length=32": "data.sequence_length: 64 -> 32",
        "pretrain.optimizer.weight_decay=0": "optimizer.weight_decay: 0.1 -> 0.0",
        "pretrain.compute.dtype=bfloat16": "compute.dtype: 'float32' -> 'bfloat16'",
    }.items():
        line = only_line(launcher().run("run", recipe, change, "--out", out))
        assert f"stage pretrain in {out}/tiny/pretrain was run with other settings ({says})" in line
        assert "use another --out, or --overwrite to begin again" in line


def test_a_run_cut_short_goes_on_with_other_checkpoint_settings(tmp_path):
    recipe, out = reference().recipe, copy_of_reference(tmp_path / "runs")
    sft = out / "tiny" / "sft"
    (sft / "done.json").unlink()
    for step in (3, 4):
        store.delete_step(sft / "checkpoints" / str(step))
    result = run(recipe, "sft.checkpoints.latest=1", "sft.checkpoints.keep_every=2", "--out", out)
    assert "[sft] resuming at step 2 of 4" in result.err
    assert store.committed_steps(sft / "checkpoints") == [2, 4]
    assert diff(sft, reference().root / "sft").identical


def test_only_runs_one_stage_and_the_others_stay_away(tmp_path):
    recipe, out = reference().recipe, tmp_path / "runs"
    run(recipe, "--only", "tokenizer", "--out", out)
    assert sorted(path.name for path in (out / "tiny").iterdir()) == ["tokenizer"]
    made = (out / "tiny" / "tokenizer" / "tokenizer.model").read_bytes()
    assert made == (reference().root / "tokenizer" / "tokenizer.model").read_bytes()


def test_overwrite_begins_again_and_sets_the_old_checkpoints_aside(tmp_path):
    recipe, out = reference().recipe, copy_of_reference(tmp_path / "runs")
    sft = out / "tiny" / "sft"
    run(recipe, "sft.seed=5", "--only", "sft", "--overwrite", "--out", out)
    aside = sorted(path.name for path in (sft / "checkpoints").glob(f"*{store.SET_ASIDE}"))
    assert aside == [f"{step}{store.SET_ASIDE}" for step in (2, 3, 4)]
    assert store.committed_steps(sft / "checkpoints") == [2, 3, 4]
    assert [line["step"] for line in read_metrics(sft)] == [1, 2, 3, 4]
    assert not diff(sft, reference().root / "sft").identical  # another seed, other batches
    assert diff(sft / "checkpoints" / f"4{store.SET_ASIDE}", reference().root / "sft").identical
    config = json.loads((sft / "config.json").read_text())
    assert config["stage"]["seed"] == 5


def test_stages_run_in_the_order_of_their_needs_wherever_they_stand_in_the_file(tmp_path):
    text = """
from easylm_jax.config import *
DATA = DataSpec((Source("stage:made/a.jsonl"),), "stage:words", 32)
RATE = OptimizerConfig("1e-3")
recipe = Recipe("order", stages=(
    SFT("last", init="middle", data=DATA, batch=2, steps=1, optimizer=RATE),
    Pretrain("middle", model="olmo2-1b", data=DATA, batch=2, steps=1, optimizer=RATE),
    Tokenizer("words", sources=(Source("stage:made/a.jsonl"),), vocab_size=300),
    MakeData("made", function="easylm_jax.data:nothing"),
))
"""
    path = project(tmp_path, text)
    experiment = Experiment(load_recipe(str(path)), tmp_path)
    names = [stage.name for stage in experiment.in_order()]
    assert sorted(names) == ["last", "made", "middle", "words"]
    assert names.index("made") < names.index("words") < names.index("middle") < names.index("last")
    needs = experiment.settings(experiment.recipe.stage("last"))["needs"]
    assert set(needs) == {"middle", "words", "made"}
    line = only_line(launcher().run("run", path, "--only", "made", "--out", tmp_path / "runs"))
    assert "stage made: no function 'easylm_jax.data:nothing' (module:function)" in line


@pytest.mark.parametrize("text", ("lora=None", "compute.remat=full"))
def test_an_override_of_a_field_is_what_the_stage_is_run_with(text):
    name, _, value = text.partition("=")
    stage = load_recipe(str(reference().recipe), [f"sft.{text}"]).stage("sft")
    for part in name.split("."):
        stage = getattr(stage, part)
    assert stage == (None if value == "None" else value)
