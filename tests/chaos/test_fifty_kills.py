"""SFT, PPO and GRPO under the supervisor, fifty times killed or told to stop at random moments of every phase.

The run ends without a hand, with the parameters and metrics of the run that nothing disturbed; no prompt is skipped or
trained on twice; each time at most one step that was recorded is run again. The seed of the moments is printed;
EASYLM_CHAOS_SEED repeats one. EASYLM_CHAOS_KILLS is another number of kills.
"""

import collections
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rl_kit
from local_pod import LocalPod, Trouble
from support import rows_read

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.tools import diff
from easylm_jax.runtime.launch.supervisor import Limits, Supervisor
from easylm_jax.runtime.monitor.metrics import FILE_NAME, read_metrics

pytestmark = pytest.mark.chaos

KILLS = int(os.environ.get("EASYLM_CHAOS_KILLS", 50))
STEPS = {"tune": KILLS, "ppo": KILLS, "grpo": 2 * KILLS}  # the last has room for kills that the others left
LIMITS = Limits(poll=0.1, pause=0.05, longest_pause=1.0, leave=20.0)
STAGES = f"""
    SFT("tune", init="sft", batch=8, steps={STEPS["tune"]}, epochs=1000, optimizer=rl_kit.RATE, dropout=0.1,
        data=DataSpec((Source(f"{{HOME}}/chats.jsonl"),), "stage:tokenizer", 48, kind="chat", template="tulu"),
        validation=Validation(DataSpec((Source(f"{{HOME}}/chats.jsonl"),), "stage:tokenizer", 48, kind="chat",
                                       template="tulu"), every=3),
        checkpoints=Checkpoints(every=1, latest=3)),
    ppo("ppo", steps={STEPS["ppo"]}, batch=4, mini_batch=2, kl_target=0.05, check="rl_kit:share_of_e",
        validation=Validation(prompts(HOME), every=3), checkpoints=Checkpoints(every=1, latest=3),
        reward=Reward(model="reward", verifier="model + 'rl_kit:share_of_e'", missing_end=-1.0)),
    grpo("grpo", steps={STEPS["grpo"]}, batch=2, samples=2, asynchronous=1, refill=1, check="rl_kit:share_of_e",
         validation=Validation(prompts(HOME), every=3), checkpoints=Checkpoints(every=1, latest=3)),
"""
CALLS = {
    "in a save": "easylm_jax.checkpoint.checkpointer:Checkpointer.save",
    "before a commit": "easylm_jax.checkpoint.store:write_manifest",
    "in an evaluation": "easylm_jax.train.loop:Loop._validate",
    "in a rollout": "easylm_jax.train.rl.collector:RolloutCollector.collect",
}
STUCK = ("at a launch", "in an evaluation")


class Plan:
    """Chooses at each start what happens to it, and notes how far each stage was."""

    def __init__(self, root, seed):
        self.root, self.rng, self.pod = root, random.Random(seed), None
        self.before = []  # by start, the last step that each stage had logged
        self.stuck = False  # whether the last trouble came before a new step was saved

    def step(self, stage):
        lines = read_metrics(self.root / stage) if (self.root / stage / FILE_NAME).exists() else []
        return lines[-1]["step"] if lines else 0

    def progress(self):
        stage = next((name for name in reversed(STEPS) if self.step(name)), None)
        return {"stage": stage, "step": None if stage is None else self.step(stage)}

    def stage(self):
        """The stage that is under way; the next one, where this one has had its share of the kills."""
        left = [name for name in STEPS if not (self.root / name / "done.json").exists()]
        had = len(self.pod.struck)
        while len(left) > 1 and had >= KILLS * (len(STEPS) - len(left) + 1) // len(STEPS):
            left = left[1:]
        return left[0]

    def __call__(self):
        self.before.append({stage: self.step(stage) for stage in STEPS})
        if len(self.pod.struck) == KILLS:
            return None
        stage, rng, begun = self.stage(), self.rng, time.monotonic()
        under_way = self.step(stage) > 0
        number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        kinds = ["at a launch", "in a step", "in a step", *CALLS]
        if self.stuck or not under_way:
            kinds = [kind for kind in kinds if kind not in STUCK]
        if stage == "tune":
            kinds.remove("in a rollout")
        kind = rng.choice(kinds) if under_way else "in a step"
        self.stuck = kind in STUCK
        name = f"{stage} {kind}"
        if kind == "at a launch":
            after = rng.uniform(0.0, 4.0)
            return Trouble(name, number, when=lambda: time.monotonic() - begun > after)
        if kind == "in a step":
            steps = self.step(stage) + rng.randint(1, 2)
            return Trouble(name, number, when=lambda: self.step(stage) >= steps, delay=rng.uniform(0.0, 0.3))
        return Trouble(name, number, at=f"{CALLS[kind]}:{rng.randint(1, 2) if self.stuck else rng.randint(2, 3)}")


def supervised(pod):
    """Runs to the end; what the supervisor said."""
    said = []
    status = Supervisor(pod, LIMITS, say=said.append).run()
    assert status == 0, (said[-12:], pod.said()[-3000:])
    return said


def steps_lost(pod, plan):
    """By start that resumed a stage: steps that were logged before it and are run again."""
    lost = []
    for before, life in zip(plan.before, pod.lives, strict=True):
        for stage, step in re.findall(r"\[(\w+)\] resuming at step (\d+) of", life[0].err):
            lost.append((stage, max(0, before[stage] - int(step))))
    return lost


def test_fifty_kills_of_sft_ppo_and_grpo_change_nothing(tmp_path):
    seed = int(os.environ.get("EASYLM_CHAOS_SEED", random.randrange(10**6)))
    print(f"EASYLM_CHAOS_SEED={seed}", flush=True)
    recipe = rl_kit.recipe_file(tmp_path, STAGES)
    quiet, out = (rl_kit.copy_of_run(tmp_path / name) for name in ("quiet", "killed"))
    began = time.monotonic()
    undisturbed = LocalPod(tmp_path / "q", 1, "run", recipe, "--out", quiet, batches=tmp_path / "quiet.jsonl")
    said = supervised(undisturbed)
    assert said == ["finished after 0 restarts"], (said, undisturbed.said(0)[-2000:])
    quiet_seconds, began = time.monotonic() - began, time.monotonic()

    root, expected = out / "rl", quiet / "rl"
    plan = Plan(root, seed)
    pod = LocalPod(
        tmp_path / "k", 1, "run", recipe, "--out", out, batches=tmp_path / "killed.jsonl", trouble=plan,
        progress=plan.progress,
    )  # fmt: skip
    plan.pod = pod
    said = supervised(pod)
    seconds = time.monotonic() - began

    struck = collections.Counter(f"{trouble.name}, {signal.Signals(trouble.number).name}" for trouble, _ in pod.struck)
    lost = steps_lost(pod, plan)
    for name, count in sorted(struck.items()):
        print(f"{count:3d} {name}")
    for stage in STEPS:
        own = [count for name, count in lost if name == stage]
        kills = sum(trouble.name.startswith(stage) for trouble, _ in pod.struck)
        goodput = [read_metrics(folder / stage)[-1]["goodput"] for folder in (root, expected)]
        print(f"{stage}: {kills} kills, steps lost by resumption {own}, goodput {goodput[0]:.2f} "
              f"(undisturbed {goodput[1]:.2f})")  # fmt: skip
    print(f"{len(pod.struck)} kills; {seconds:.0f} s, undisturbed {quiet_seconds:.0f} s; {said[-1]}")

    assert len(pod.struck) == KILLS
    assert max(count for _, count in lost) <= 1
    for stage in STEPS:
        found = diff(root / stage, expected / stage)
        assert found.identical, (stage, found.differ)
        assert rl_kit.lines(root / stage) == rl_kit.lines(expected / stage)
        for step in store.committed_steps(root / stage / "checkpoints"):
            assert store.damage(root / stage / "checkpoints" / str(step)) == []
    # The same prompts and texts at every step, and no others.
    assert rows_read(tmp_path / "killed.jsonl") == rows_read(tmp_path / "quiet.jsonl")
