"""A stage that was stopped or broken off between rollouts goes on and ends bit for bit as one that was not."""

import dataclasses
import os
import signal

import pytest
import rl_kit
from rl_kit import finished as run
from rl_kit import lines, without_clocks

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.tools import diff
from easylm_jax.config import Checkpoints, LoraConfig, OptimizerConfig, Validation
from easylm_jax.runtime.monitor.metrics import read_metrics
from easylm_jax.train.loop import Stopped
from easylm_jax.train.rl.trainer import RolloutLoop
from models.reading import read_lines

STEPS = 5
DEFAULT = ("ppo",)  # the others are much the same and are run with -m slow
COMMON = {
    "steps": STEPS, "rollout_epochs": 2, "checkpoints": Checkpoints(every=1, latest=3),
    "validation": Validation(rl_kit.prompts(rl_kit.home(), seed=1), every=2), "check": rl_kit.VERIFIER,
    "optimizer": OptimizerConfig("3e-3 linear to 0", weight_decay=0.0),
}  # fmt: skip
STAGES = {
    "ppo": rl_kit.ppo("ppo", **COMMON, kl_target=0.02, value_only=1, sampler_correction=2.0),
    "grpo": rl_kit.grpo("grpo", **COMMON, kl=0.1, mini_batch=4),
    "online": rl_kit.online_dpo("online", **COMMON, mini_batch=6),
    "adapter": rl_kit.grpo("adapter", **COMMON, lora=LoraConfig(rank=2, alpha=4.0)),
}


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1):
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return rl_kit.experiment(tmp_path_factory.mktemp("undisturbed"), *STAGES.values())


class Broken(Exception):
    """What ends a run here."""


def at_rollout(number, what, monkeypatch):
    """Does something when that rollout's updates are made and its metrics and checkpoint are not."""
    original = RolloutLoop._next_kl

    def patched(self, kl, observed):
        if patched.left == 1:
            what()
        patched.left -= 1
        return original(self, kl, observed)

    patched.left = number
    monkeypatch.setattr(RolloutLoop, "_next_kl", patched)


def fail():
    raise Broken


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in STAGES]
)
def test_a_stage_that_broke_off_after_some_updates_ends_bit_identical(name, undisturbed, tmp_path, monkeypatch):
    expected = run(undisturbed, name)
    ready = rl_kit.experiment(tmp_path, *STAGES.values())
    stage, folder = ready.recipe.stage(name), ready.folder(name)
    with monkeypatch.context() as patch:
        at_rollout(4, fail, patch)
        with pytest.raises(Broken):
            ready.run(stage)
    assert store.committed_steps(folder / "checkpoints")[-1] in (2, 3)  # the third may have been under way
    ready.run(stage)
    found = diff(folder, expected)
    assert found.identical, found.differ
    assert lines(folder) == lines(expected)
    assert [line["step"] for line in lines(folder)] == list(range(STEPS + 1))
    assert [line["step"] for line in lines(folder) if "validation_score" in line] == [0, 2, 4, STEPS]
    mine, theirs = (it.done(stage)["metrics"] for it in (ready, undisturbed))
    assert without_clocks(mine) == without_clocks(theirs)
    for step in store.committed_steps(folder / "checkpoints"):
        assert store.damage(folder / "checkpoints" / str(step)) == []
    if name == "adapter":
        assert diff(folder / "merged", expected / "merged").identical
    kept = [f"{n}.jsonl" for n in range(1, STEPS + 1)] + [f"held_out/{n}.jsonl" for n in (0, 2, 4, STEPS)]
    samples = folder / "samples"
    assert sorted(str(path.relative_to(samples)) for path in samples.rglob("*.jsonl")) == kept
    for name in kept:
        assert (samples / name).read_bytes() == (expected / "samples" / name).read_bytes()


def test_the_policy_is_evaluated_before_its_first_update_also_if_it_broke_off_there(undisturbed, tmp_path, monkeypatch):
    expected = run(undisturbed, "adapter")
    ready = rl_kit.experiment(tmp_path, *STAGES.values())
    stage, folder = ready.recipe.stage("adapter"), ready.folder("adapter")
    with monkeypatch.context() as patch:
        at_rollout(1, fail, patch)
        with pytest.raises(Broken):
            ready.run(stage)
    assert [line["step"] for line in lines(folder)] == [0]
    ready.run(stage)  # there was no checkpoint, so it begins again
    assert diff(folder, expected).identical and lines(folder) == lines(expected)
    # The first evaluation is of the policy that the stage starts from, and every response is kept.
    first = lines(folder)[0]
    kept = list(read_lines(folder / "samples" / "held_out" / "0.jsonl"))
    done = ready.done(stage)
    assert len(kept) == first["validation_prompts"] == done["held_out"]["prompts"]
    assert first["validation_score"] == pytest.approx(sum(line["score"] for line in kept) / len(kept))
    assert all(line["score"] == rl_kit.share_of_e(line["response"], {}) for line in kept)
    assert [line["label"] for line in kept] == [rl_kit.prompt(line["record"])["ground_truth"] for line in kept]
    rollouts = list(read_lines(folder / "samples" / "1.jsonl"))
    assert {line["label"] for line in rollouts} <= {rl_kit.prompt(record)["ground_truth"] for record in range(32)}
    for facts in (done["held_out"], done["data"]):
        assert facts["read"] == 32 == facts["prompts"] + facts["left_out"]["too long"] > facts["prompts"]


def test_a_signal_ends_a_stage_after_its_rollout_and_it_goes_on_to_the_same_end(undisturbed, tmp_path, monkeypatch):
    expected = run(undisturbed, "ppo")
    ready = rl_kit.experiment(tmp_path, *STAGES.values())
    stage, folder = ready.recipe.stage("ppo"), ready.folder("ppo")
    for number in (2, 1):  # at the second rollout, then at the first after that
        with monkeypatch.context() as patch:
            at_rollout(number, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
            with pytest.raises(Stopped, match="is saved; run again to resume"):
                ready.run(stage)
    assert store.committed_steps(folder / "checkpoints")[-1] == 3
    ready.run(stage)
    assert diff(folder, expected).identical and lines(folder) == lines(expected)


def test_the_price_of_divergence_and_the_value_model_are_in_the_checkpoint(undisturbed):
    folder = run(undisturbed, "ppo")
    names = store.read_manifest(folder / "checkpoints" / str(STEPS)).leaves
    assert {"kl", "step", "updates", "value.step", "value.params.score.kernel"} <= names.keys()
    assert {"value.opt.mu.score.kernel", "opt.nu.head.kernel", "rng", "value.rng"} <= names.keys()
    prices = [line["kl_coefficient"] for line in read_metrics(folder) if line["step"]]
    assert len(set(prices)) == STEPS  # it moved at every rollout, and came back each time


def test_another_seed_makes_another_run(undisturbed, tmp_path):
    stage = dataclasses.replace(STAGES["adapter"], seed=1, steps=1, validation=None, check=None)
    ready = rl_kit.experiment(tmp_path, stage)
    ready.run(ready.recipe.stage("adapter"))
    (mine,), (_, theirs, *_) = lines(ready.folder("adapter")), lines(run(undisturbed, "adapter"))
    assert mine["step"] == theirs["step"] == 1 and mine["score"] != theirs["score"]
