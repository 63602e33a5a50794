"""A run on hosts that are lost and come back: it goes on with those that are left, at the same batch."""

import re
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pod_kit import StandIn
from support import largest_difference, losses, reference, with_vocabulary

from easylm_jax.runtime.monitor.metrics import FILE_NAME, read_metrics

pytestmark = pytest.mark.chaos

QUICK = ("--poll", "0.3", "--pause", "0.1", "--leave", "20", "--shrink", "1", "--grow", "1")


def steps_made(folder: Path) -> int:
    path = folder / FILE_NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("count, batch, steps", [(2, 8, 60), (4, 12, 60)])
def test_a_host_that_is_lost_and_comes_back_costs_at_most_a_step_each_time(count, batch, steps, tmp_path):
    """2 → 1 → 2 and 4 → 3 → 4: losses are those of an undisturbed run on all hosts, to 1e-6."""
    cloud = StandIn(tmp_path / "cloud of hosts")
    recipe, hosts = reference().recipe, cloud.hosts(count)
    changed = (f"pretrain.batch={batch}", f"pretrain.steps={steps}", "mesh=dp=-1", "--only", "pretrain")
    quiet, out = with_vocabulary(tmp_path / "quiet runs"), with_vocabulary(tmp_path / "runs")
    try:
        cloud.works("elsewhere/ssh.sh", "setup", hosts)
        run = ("elsewhere/ssh.sh", "supervise", hosts, *QUICK, "--elastic", "1")
        cloud.works(*run, "--job", "quiet", "--", recipe, "--out", quiet, *changed, timeout=500)
        process = cloud.start(*run, "--", recipe, "--out", out, *changed)
        folder = out / "tiny" / "pretrain"

        def until(reached: int) -> None:
            end = time.monotonic() + 300
            while steps_made(folder) < reached:
                assert process.poll() is None and time.monotonic() < end, process.communicate()
                time.sleep(0.02)

        until(steps // 6)
        cloud.goes_down(count - 1)
        down = time.time()
        lost = steps_made(folder)
        until(lost + steps // 10)
        cloud.comes_back(count - 1)
        back = time.time()
        _, err = process.communicate(timeout=500)
    finally:
        cloud.close()
    assert process.returncode == 0, err
    left = ", ".join(map(str, range(count - 1)))
    assert re.search(rf"worker {count - 1} does not answer for \d+ s", err)
    assert f"on worker{'s' * (count > 2)} {left}\n" in err and "restart 2 on all workers" in err, err
    lines = losses(folder)
    assert list(lines) == list(range(1, steps + 1))
    assert largest_difference(lines, losses(quiet / "tiny" / "pretrain")) <= 1e-6
    log = (cloud.folder / "hosts" / "host-0" / "easylm/jobs/run/log.txt").read_text()
    resumed = [int(step) for step in re.findall(r"resuming at step (\d+) of", log)]
    assert len(resumed) == 2 and resumed[0] >= lost - 1, (resumed, lost)
    made = {line["step"]: line["time"] for line in read_metrics(folder)}
    seconds = [made[step + 1] - since for step, since in zip(resumed, (down, back), strict=True)]
    print(f"{count} hosts: {seconds[0]:.0f} s from the loss to the next step on {count - 1}, {seconds[1]:.0f} s from "
          f"the return to the next step on {count}; {lost - resumed[0]} steps made again after the loss")  # fmt: skip
