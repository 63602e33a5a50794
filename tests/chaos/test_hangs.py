"""One of two processes stops answering, in each phase: found within its deadline, named, stacks printed, restarted."""

import re
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rl_kit
from local_pod import LocalPod, Trouble

from easylm_jax.checkpoint.tools import diff
from easylm_jax.runtime import barriers
from easylm_jax.runtime.launch.supervisor import Limits, Supervisor

pytestmark = pytest.mark.chaos

FROZEN, BARRIER = 25.0, 15.0  # seconds; a heartbeat comes every five
LIMITS = Limits(poll=0.2, pause=0.05, leave=3.0, frozen=FROZEN)
STAGES = """
    grpo("grpo", steps=4, batch=4, samples=2, check="rl_kit:share_of_e",
         validation=Validation(prompts(HOME), every=2), checkpoints=Checkpoints(every=1, latest=3)),
"""
FROZEN_LINE = r"worker 1 hangs (in phase \w+ )?at step \w+: its process has not run for \d+ s"
PHASES = {
    "start": ("easylm_jax.runtime.processes:barrier:1", r"barrier 'start': process 1 \(host \S+\) is not there"),
    "step": ("easylm_jax.train.rl.trainer:RolloutLoop._update:3", FROZEN_LINE),
    "save": ("easylm_jax.train.loop:Loop._save:2", r"barrier 'save of step 2': process 1 \(host "),
    "rollout": ("easylm_jax.train.rl.collector:RolloutCollector.collect:3", FROZEN_LINE),
    "evaluation": ("easylm_jax.train.rl.trainer:RolloutLoop.validate:2", FROZEN_LINE),
}


def supervised(pod):
    said, times = [], []
    status = Supervisor(pod, LIMITS, say=lambda text: (said.append(text), times.append(time.time()))).run()
    assert status == 0, (said, pod.said()[-3000:])
    return said, times


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe, out = rl_kit.recipe_file(folder, STAGES), rl_kit.copy_of_run(folder / "runs")
    said, _ = supervised(LocalPod(folder / "pod", 2, "run", recipe, "--out", out))
    assert said[-1] == "finished after 0 restarts"
    return recipe, out / "rl" / "grpo"


@pytest.mark.parametrize("phase", PHASES)
def test_a_process_that_stops_is_found_and_named_and_the_run_goes_on(phase, undisturbed, tmp_path):
    recipe, expected = undisturbed
    at, found = PHASES[phase]
    troubles = iter([Trouble(phase, signal.SIGSTOP, worker=1, at=at)])
    out = rl_kit.copy_of_run(tmp_path / "runs")
    pod = LocalPod(
        tmp_path / "pod", 2, "run", recipe, "--out", out, trouble=lambda: next(troubles, None),
        environment={barriers.VARIABLE: str(BARRIER)},
    )  # fmt: skip
    said, times = supervised(pod)
    first, second = pod.lives[0]
    stopped = re.search(r"^stopped at (\S+)$", second.err, re.MULTILINE)
    reason = next(i for i, text in enumerate(said) if re.search(found, text))
    print(f"{phase}: found {times[reason] - float(stopped[1]):.0f} s after it stopped: {said[reason]}")
    # Both print their stacks: the one that was stopped when it is killed, and shows the call in which it was.
    assert "most recent call first" in first.err and "most recent call first" in second.err
    assert "in patched" in second.err and said[-1] == "finished after 1 restart", said
    difference = diff(out / "rl" / "grpo", expected)
    assert difference.identical, difference.differ
