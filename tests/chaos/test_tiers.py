"""A host is lost with its disk while no checkpoint is in the shared folder: its neighbour has its part of the state."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pod_kit import StandIn
from support import losses, reference, with_vocabulary

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.tools import diff
from easylm_jax.runtime.monitor.metrics import FILE_NAME

pytestmark = pytest.mark.chaos

STEPS = 60
QUICK = ("--poll", "0.3", "--pause", "0.1", "--leave", "20")


def test_a_host_that_is_lost_with_its_disk_costs_at_most_a_step(tmp_path):
    cloud = StandIn(tmp_path / "cloud of hosts")
    recipe, hosts = reference().recipe, cloud.hosts(2)
    changed = (
        f"pretrain.steps={STEPS}", "pretrain.checkpoints.every=1000", "pretrain.checkpoints.replica=~/own disk",
        "--only", "pretrain",
    )  # fmt: skip
    quiet, out = with_vocabulary(tmp_path / "quiet runs"), with_vocabulary(tmp_path / "runs")
    folder = out / "tiny" / "pretrain"
    run = ("elsewhere/ssh.sh", "supervise", hosts, *QUICK)
    try:
        cloud.works("elsewhere/ssh.sh", "setup", hosts)
        cloud.works(*run, "--job", "quiet", "--", recipe, "--out", quiet, *changed, timeout=500)
        process = cloud.start(*run, "--", recipe, "--out", out, *changed)
        end = time.monotonic() + 300
        while not (folder / FILE_NAME).exists() or (folder / FILE_NAME).read_bytes().count(b"\n") < STEPS // 3:
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        assert store.committed_steps(folder / "checkpoints") == []
        cloud.goes_down(1)
        shutil.rmtree(cloud.folder / "hosts/host-1/own disk")
        reached = (folder / FILE_NAME).read_bytes().count(b"\n")
        cloud.comes_back(1)
        _, err = process.communicate(timeout=500)
    finally:
        cloud.close()
    assert process.returncode == 0 and "finished after 1 restart" in err, err
    log = (cloud.folder / "hosts/host-0/easylm/jobs/run/log.txt").read_text()
    step, remote = re.search(r"resuming at step (\d+) of 60 from a replica .* disks, (\d) of 2 parts", log).groups()
    assert int(step) >= reached - 1 and int(remote) == 0  # host 0 has its own part and a copy of the other
    found = diff(folder, quiet / "tiny" / "pretrain")
    assert found.identical, found.differ
    assert losses(folder) == losses(quiet / "tiny" / "pretrain")
