"""The whole way of a run on a pod of this machine: created, set up, launched on several workers, disturbed, finished,
deleted. Its checkpoints are bit for bit those of a run that nothing disturbed."""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rl_kit
from pod_kit import ZONE, StandIn
from support import RECIPE, project

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.tools import diff
from easylm_jax.runtime.monitor.metrics import FILE_NAME, read_metrics

pytestmark = pytest.mark.chaos

STEPS = 60
QUICK = ("--poll", "0.3", "--pause", "0.1", "--leave", "20")
WORKERS = 4
PPO_STEPS = 12
PPO = f"""
    ppo("ppo", batch=8, mini_batch=4, steps={PPO_STEPS}, checkpoints=Checkpoints(every=1, latest=3),
        reward=Reward(model="reward", verifier="model + 'rl_kit:share_of_e'", missing_end=-1.0)),
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(recipe, cloud, run folder): a pod on which the recipe ran to its end; others may be created there."""
    folder = tmp_path_factory.mktemp("a pod")
    cloud = StandIn(folder)
    recipe = project(folder / "it's a project", RECIPE.replace("accumulate=2, steps=4", f"accumulate=2, steps={STEPS}"))
    ready(cloud, "quiet")
    out = folder / "quiet runs"
    said = cloud.works("supervise.sh", "quiet", *QUICK, "--", recipe, "--out", out, timeout=1200)
    assert "finished after 0 restarts" in said.err
    cloud.works("delete.sh", "quiet")
    assert cloud.nothing_left()
    yield recipe, cloud, out / "tiny"
    cloud.close()


def ready(cloud, name):
    cloud.works("create.sh", name, "--type", f"v5p-{8 * WORKERS}", "--zone", ZONE, "--spot", "--poll", "0.05")
    cloud.works("setup.sh", name)


def disturbed(undisturbed, name, disturb, *options):
    """Runs the recipe on a pod under supervision; `disturb` is called when SFT has made some steps. Returns what the
    supervisor said, once the run is shown to have ended as the undisturbed one."""
    recipe, cloud, expected = undisturbed
    ready(cloud, name)
    out = cloud.root.parent / f"{name} runs"
    process = cloud.start("supervise.sh", name, *QUICK, *options, "--", recipe, "--out", out)
    metrics, end = out / "tiny" / "sft" / FILE_NAME, time.monotonic() + 1200
    try:
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < STEPS // 6:
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        disturb(cloud)
        _, err = process.communicate(timeout=1200)
    finally:
        process.kill()
    assert process.returncode == 0, err
    for stage in ("pretrain", "sft"):
        found = diff(out / "tiny" / stage, expected / stage)
        assert found.identical, (stage, found.differ)
        for step in store.committed_steps(out / "tiny" / stage / "checkpoints"):
            assert store.damage(out / "tiny" / stage / "checkpoints" / str(step)) == []
    lines = [line["loss"] for line in read_metrics(out / "tiny" / "sft")]
    assert lines == [line["loss"] for line in read_metrics(expected / "sft")] and len(lines) == STEPS
    cloud.works("delete.sh", name)
    assert cloud.nothing_left()
    return err


def test_sft_on_four_workers_goes_on_when_one_is_killed_and_ends_bit_identical(undisturbed):
    err = disturbed(undisturbed, "killed", lambda cloud: os.kill(cloud.pid("killed", 1), signal.SIGKILL))
    assert re.search(r"worker 1 ended, sft step \d+, exit status -9 \(ended by signal 9\)", err), err
    assert "finished after 1 restart" in err


def test_a_process_that_stops_answering_is_found_by_its_heartbeat_and_restarted(undisturbed):
    err = disturbed(
        undisturbed, "frozen", lambda cloud: os.kill(cloud.pid("frozen", 1), signal.SIGSTOP), "--frozen", "15"
    )  # fmt: skip
    assert re.search(r"worker 1 hangs (in phase \w+ )?at step \d+: its process has not run for", err), err
    assert "finished after 1 restart" in err


def test_a_preempted_pod_saves_its_step_and_goes_on_on_a_new_one(undisturbed):
    err = disturbed(undisturbed, "spot", lambda cloud: cloud.preempt("spot", notice=30))
    assert re.search(r"the pod is (PREEMPTED|SUSPENDED)|exit status 130", err), err
    assert f"spot is ready in {ZONE}" in err


def test_ppo_on_four_workers_goes_on_when_one_is_killed_and_ends_bit_identical(tmp_path):
    """Rollouts, verifiers on every worker, reward and value model: killed in the middle, once."""
    cloud = StandIn(tmp_path)
    (tmp_path / "project").mkdir()
    recipe = rl_kit.recipe_file(tmp_path / "project", PPO)
    shutil.copy(Path(rl_kit.__file__), recipe.parent)  # the recipe imports it; workers have no tests
    outs = [rl_kit.copy_of_run(tmp_path / name) for name in ("quiet", "killed")]
    try:
        ready(cloud, "ppo")
        run = ("supervise.sh", "ppo", *QUICK)
        said = cloud.works(*run, "--job", "quiet", "--", recipe, "--out", outs[0], timeout=1200)
        assert "finished after 0 restarts" in said.err
        process = cloud.start(*run, "--", recipe, "--out", outs[1])
        metrics, end = outs[1] / "rl" / "ppo" / FILE_NAME, time.monotonic() + 600
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < PPO_STEPS // 3:
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        os.kill(cloud.pid("ppo", 2), signal.SIGKILL)
        _, err = process.communicate(timeout=1200)
        assert process.returncode == 0, err
        assert re.search(r"worker 2 ended, ppo step \d+, exit status -9", err) and "finished after 1 restart" in err
        found = diff(outs[1] / "rl" / "ppo", outs[0] / "rl" / "ppo")
        assert found.identical, found.differ
        cloud.works("delete.sh", "ppo")
        assert cloud.nothing_left()
    finally:
        cloud.close()
