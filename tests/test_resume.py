"""A run that was killed or stopped at any moment goes on and ends bit for bit as one that was not."""

import json
import shutil

import pytest
from support import corrupt, largest_difference, launcher, losses, reference, rows_read, with_vocabulary

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.tools import diff
from easylm_jax.runtime.monitor.metrics import read_metrics

BEFORE_COMMIT = "easylm_jax.checkpoint.store:write_manifest"
SAVING = "easylm_jax.train.loop:Loop._save"


def assert_same_end(out, stages=("pretrain", "sft")):
    """Final states identical bit for bit, every step once in the metrics, every batch as in the undisturbed run."""
    expected = reference()
    for stage in stages:
        mine, theirs = out / "tiny" / stage, expected.root / stage
        found = diff(mine, theirs)
        assert found.identical, (stage, found.differ)
        steps = [line["step"] for line in read_metrics(mine)]
        assert steps == list(range(1, len(steps) + 1)) == [line["step"] for line in read_metrics(theirs)]
        assert losses(mine) == losses(theirs)
        assert losses(mine, "tokens") == losses(theirs, "tokens")
        for step in store.committed_steps(mine / "checkpoints"):
            assert store.damage(mine / "checkpoints" / str(step)) == []
        assert not list((mine / "checkpoints").glob(f"*{store.TEMPORARY}*"))


def test_a_run_killed_while_building_a_cache_and_while_saving_ends_bit_identical(tmp_path):
    expected, out, batches = reference(), tmp_path / "runs", tmp_path / "batches.jsonl"
    shutil.copytree(expected.root / "tokenizer", out / "tiny" / "tokenizer")
    run = ("run", expected.recipe, "--out", out)
    # The cache's arrays are all written and its manifest is not; then a checkpoint's are and its manifest is not.
    killed = launcher().run(*run, at="easylm_jax.data.cache:finish:1:SIGKILL", batches=batches)
    assert killed.status == -9
    assert list((out / "cache").glob(".building-*")) and not list((out / "cache").glob("*/manifest.json"))
    killed = launcher().run(*run, at=f"{BEFORE_COMMIT}:4:SIGKILL", batches=batches)
    assert killed.status == -9
    assert not (out / "tiny" / "pretrain" / "done.json").exists()
    assert list((out / "tiny" / "pretrain" / "checkpoints").glob(f"*{store.TEMPORARY}*"))
    ended = launcher().run(*run, batches=batches)
    assert ended.status == 0, ended.err
    assert "[pretrain] resuming at step 3 of 8" in ended.err
    assert not list((out / "cache").glob(".building-*"))
    assert_same_end(out)
    assert rows_read(batches) == expected.batches
    command = launcher().run("checkpoints", "diff", out / "tiny" / "sft", expected.root / "sft")
    assert (command.status, command.out) == (0, "identical\n")


@pytest.mark.parametrize("number", ("SIGTERM", "SIGINT"))
def test_a_signal_saves_stops_and_the_run_goes_on_to_the_same_end(number, tmp_path):
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    stopped = launcher().run(*run, at=f"{SAVING}:3:{number}")
    assert stopped.status == 130, stopped.err
    *_, line = stopped.err.splitlines()
    step = store.committed_steps(out / "tiny" / "pretrain" / "checkpoints")[-1]
    assert 3 <= step < 8
    assert line == f"easylm: pretrain: stopped at step {step} of 8, which is saved; run again to resume"
    assert f"{number}: saving after this step, then stopping" in stopped.err and "Traceback" not in stopped.err
    ended = launcher().run(*run)
    assert ended.status == 0, ended.err
    assert f"resuming at step {step} of 8" in ended.err
    assert_same_end(out, ("pretrain",))


def test_ctrl_c_before_training_leaves_nothing_in_the_way(tmp_path):
    expected, out = reference(), tmp_path / "runs"
    shutil.copytree(expected.root / "tokenizer", out / "tiny" / "tokenizer")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    stopped = launcher().run(*run, at="easylm_jax.data.cache:finish:1:SIGINT")
    assert (stopped.status, stopped.err.splitlines()[-1]) == (130, "easylm: interrupted")
    assert "Traceback" not in stopped.err
    assert launcher().run(*run).status == 0
    assert_same_end(out, ("pretrain",))


def test_a_run_goes_on_from_eight_devices_to_four_to_one_on_the_same_curve(tmp_path, record_property):
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    for devices, mesh in ((8, "fsdp=8"), (4, "fsdp=2,tp=2")):
        stopped = launcher().run(*run, f"mesh={mesh}", devices=devices, at=f"{SAVING}:2:SIGTERM")
        assert stopped.status == 130, stopped.err
        assert f"mesh {mesh}," in stopped.err
    ended = launcher().run(*run, devices=1)
    assert ended.status == 0 and "resuming at step" in ended.err and "mesh one device" in ended.err, ended.err
    worst = largest_difference(losses(out / "tiny" / "pretrain"), losses(expected.root / "pretrain"))
    record_property("largest relative difference", worst)
    assert worst <= 1e-6


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_goes_on_from_the_one_before(tmp_path):
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    assert launcher().run(*run, at=f"{SAVING}:4:SIGKILL").status == -9
    checkpoints = out / "tiny" / "pretrain" / "checkpoints"
    newest = store.committed_steps(checkpoints)[-1]
    corrupt(checkpoints / str(newest))
    ended = launcher().run(*run)
    assert ended.status == 0, ended.err
    assert f"checkpoint {newest} " in ended.err and "is damaged" in ended.err
    assert f"using checkpoint {newest - 1} instead" in ended.err
    assert (checkpoints / f"{newest}{store.SET_ASIDE}").is_dir()
    assert_same_end(out, ("pretrain",))


def test_what_a_run_left_says_where_it_stands(tmp_path):
    """The metrics of a step are on disk before its checkpoint counts, so a kill between the two loses no line."""
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    assert launcher().run(*run, at=f"{BEFORE_COMMIT}:5:SIGKILL").status == -9
    folder = out / "tiny" / "pretrain"
    committed = store.committed_steps(folder / "checkpoints")
    assert committed[-1] == 4
    assert [line["step"] for line in read_metrics(folder)][:5] == [1, 2, 3, 4, 5]
    listed = launcher().run("run", expected.recipe, "--out", out, "--list")
    assert "pretrain                 at step 4" in listed.out
    meta = json.loads((folder / "checkpoints" / "4" / "meta" / "meta.json").read_text())
    assert meta["data"]["step"] == 4
