"""PPO, best-of-N and an evaluation, killed at random moments, end bit for bit as the run that never was.

The seed of the moments is printed; EASYLM_CHAOS_SEED repeats one.
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

STEPS = 30
STAGES = f"""
    ppo("ppo", steps={STEPS}, rollout_epochs=2, kl_target=0.05, checkpoints=Checkpoints(every=1, latest=3),
        validation=Validation(prompts(HOME), every=10), check="rl_kit:share_of_e",
        reward=Reward(model="reward", verifier="model + 'rl_kit:share_of_e'", missing_end=-1.0)),
    BestOfN("best", init="ppo", data=prompts(HOME), reward=Reward(model="reward", missing_end=None), batch=2,
            sampling=Sampling(8, slots=8)),
    Evaluate("table", title="t", reference="sft", entries=(Entry("sft", ("sft",)), Entry("ppo", ("ppo",), over="sft")),
             tasks=(Task("e", prompts(HOME), "rl_kit:share_of_e", Sampling(8, slots=8)),)),
"""


def rollouts_of(root: Path) -> int:
    path = root / "ppo" / FILE_NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(root: Path) -> bool:
    folder = root / "ppo" / "checkpoints"
    return folder.exists() and any(store.TEMPORARY in path.name for path in folder.iterdir())


def moments(root: Path, rng: random.Random) -> list:
    """What to wait for before each kill, by name; a random delay comes on top."""

    def at(share):
        return lambda: rollouts_of(root) >= max(1, round(STEPS * share))

    middle = at(0.5)
    return [
        ("compiling", lambda: (root / "ppo" / "config.json").exists()),
        ("the first rollouts", at(rng.uniform(0.03, 0.2))),
        ("rollouts", at(rng.uniform(0.25, 0.45))),
        ("saving", lambda: middle() and saving(root)),
        ("later rollouts", at(rng.uniform(0.6, 0.9))),
        ("best-of-N", lambda: len(list((root / "best").glob("parts/*.jsonl"))) >= rng.randint(1, 6)),
        ("the evaluation", lambda: any((root / "table" / "models").glob("*.json"))),
    ]


def test_rollouts_killed_at_random_moments_end_bit_identical(tmp_path):
    seed = int(os.environ.get("EASYLM_CHAOS_SEED", random.randrange(10**6)))
    print(f"EASYLM_CHAOS_SEED={seed}")
    rng = random.Random(seed)
    recipe = rl_kit.recipe_file(tmp_path, STAGES)
    quiet, out = (rl_kit.copy_of_run(tmp_path / name) for name in ("quiet", "killed"))
    undisturbed = launcher().run("run", recipe, "--out", quiet)
    assert undisturbed.status == 0, undisturbed.err
    root, expected = out / "rl", quiet / "rl"
    kills = []
    for name, ready in moments(root, rng):
        life = launcher().start("run", recipe, "--out", out)
        if life.until(ready):
            time.sleep(rng.uniform(0.0, 3.0) if name == "compiling" else rng.uniform(0.0, 0.3))
            life.signal(signal.SIGKILL)
        status = life.wait().status
        assert status in (0, -9), life.err
        kills += [name] if status == -9 else []
        for step in store.committed_steps(root / "ppo" / "checkpoints"):
            assert store.damage(root / "ppo" / "checkpoints" / str(step)) == [], (name, step)
    print("killed while:", ", ".join(kills))
    assert len(kills) >= 4
    ended = launcher().run("run", recipe, "--out", out)
    assert ended.status == 0, ended.err
    found = diff(root / "ppo", expected / "ppo")
    assert found.identical, found.differ
    assert lines(root / "ppo") == lines(expected / "ppo") and len(lines(root / "ppo")) == STEPS + 1  # and step 0
    for name in ("best", "pairs", "answers"):
        assert (root / "best" / f"{name}.jsonl").read_bytes() == (expected / "best" / f"{name}.jsonl").read_bytes()
    tables = [rl_kit.json.loads((folder / "table.json").read_text())["rows"] for folder in (root, expected)]
    assert tables[0] == tables[1]
