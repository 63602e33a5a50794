"""A thousand steps of GRPO with verified rewards, killed ten times, end bit for bit as the run that never was.

Once with every rollout trained on at once, once with rollouts that are written ahead. The seed of the moments is
printed; EASYLM_CHAOS_SEED repeats one.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rl_kit
from rl_kit import lines
from support import launcher

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.tools import diff
from easylm_jax.runtime.monitor.metrics import FILE_NAME

pytestmark = pytest.mark.chaos

STEPS, KILLS = 1000, 10
PATIENCE = 1800  # seconds, on a busy machine


def stages(asynchronous: int) -> str:
    return f"""
    grpo("grpo", steps={STEPS}, asynchronous={asynchronous}, refill=1, drop_equal=True, mini_batch=4, kl=0.05,
         checkpoints=Checkpoints(every=1, latest=2), optimizer=OptimizerConfig("3e-4 linear to 0", weight_decay=0.0),
         reward=Reward(verifier="min(1, 2 * 'rl_kit:share_of_e') if random(0.9) else 0", missing_end=0.0)),
"""


def steps_of(root: Path) -> int:
    path = root / "grpo" / FILE_NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("asynchronous", [0, 1])
def test_a_thousand_steps_killed_ten_times_end_bit_identical(asynchronous, tmp_path):
    seed = int(os.environ.get("EASYLM_CHAOS_SEED", random.randrange(10**6)))
    print(f"EASYLM_CHAOS_SEED={seed}")
    rng = random.Random(seed)
    recipe = rl_kit.recipe_file(tmp_path, stages(asynchronous))
    quiet, out = (rl_kit.copy_of_run(tmp_path / name) for name in ("quiet", "killed"))
    undisturbed = launcher().start("run", recipe, "--out", quiet).wait(PATIENCE)
    assert undisturbed.status == 0, undisturbed.err
    root, expected = out / "rl", quiet / "rl"
    killed = []
    for moment in sorted(rng.uniform(0, 0.97) for _ in range(KILLS)):
        life = launcher().start("run", recipe, "--out", out)
        assert life.until(lambda least=moment * STEPS: steps_of(root) >= least, PATIENCE), life.err
        time.sleep(rng.uniform(0, 0.3))
        life.signal(signal.SIGKILL)
        assert life.wait().status == -9, life.err
        killed.append(steps_of(root))
        for step in store.committed_steps(root / "grpo" / "checkpoints"):
            assert store.damage(root / "grpo" / "checkpoints" / str(step)) == [], step
    print("killed at steps", ", ".join(map(str, killed)))
    ended = launcher().start("run", recipe, "--out", out).wait(PATIENCE)
    assert ended.status == 0, ended.err
    found = diff(root / "grpo", expected / "grpo")
    assert found.identical, found.differ
    assert lines(root / "grpo") == lines(expected / "grpo") and len(lines(root / "grpo")) == STEPS
