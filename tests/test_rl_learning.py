"""PPO, GRPO and online DPO learn what they are rewarded for; seeds are fixed and the bars are low."""

import dataclasses

import numpy as np
import pytest
import rl_kit

from easylm_jax.config import OptimizerConfig, Reward, Validation
from easylm_jax.runtime.monitor.metrics import read_metrics

ROLLOUTS = 15
LEARN = {
    "steps": ROLLOUTS,
    "batch": 16,
    "reward": Reward(verifier=rl_kit.VERIFIER, missing_end=None),
    "optimizer": OptimizerConfig("3e-3", weight_decay=0.0),
}
STAGES = {
    "ppo": rl_kit.ppo("ppo", **{**LEARN, "samples": 4, "mini_batch": 32, "rollout_epochs": 2, "kl": 0.01}),
    "grpo": rl_kit.grpo("grpo", **{**LEARN, "samples": 4, "mini_batch": 32, "rollout_epochs": 2}),
    "online": rl_kit.online_dpo("online", **{**LEARN, "samples": 4, "mini_batch": 32, "beta": 0.1}),
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    held_out = Validation(rl_kit.prompts(rl_kit.home()), every=None)
    coarse = Reward(verifier="rl_kit:coarse", missing_end=None)
    coin = rl_kit.online_dpo("coin", batch=16, samples=2, steps=1, reward=coarse)
    stages = [dataclasses.replace(stage, validation=held_out, check=rl_kit.VERIFIER) for stage in STAGES.values()]
    with rl_kit.devices(1):
        yield rl_kit.experiment(tmp_path_factory.mktemp("learning"), coin, *stages)


@pytest.mark.parametrize("name", STAGES)
def test_the_reward_rises(name, ready, record_property):
    ready.run(ready.recipe.stage(name))
    untrained, *lines = read_metrics(ready.folder(name))
    assert (untrained["step"], untrained["validation_step"], untrained["kl"]) == (0, 0, 0)
    assert [line["step"] for line in lines] == list(range(1, 1 + len(lines))) and "score" not in untrained
    scores = [line["score"] for line in lines]
    first, last = np.mean(scores[:3]), np.mean(scores[-3:])
    record_property("mean score of the first and last rollouts", (first, last))
    print(name, scores)
    assert last > first + 0.3, scores
    assert lines[-1]["validation_score"] > max(first, untrained["validation_score"]) + 0.3
    assert lines[-1]["kl"] > 0.1 > abs(lines[0]["kl"])
    assert all(line["sampler_gap_max"] < 1e-3 for line in lines)


def test_the_first_loss_of_online_dpo_is_that_of_a_coin_over_real_pairs_alone(ready):
    """Policy and reference are equal at first; answers that are worth the same make no pair and count nothing."""
    ready.run(ready.recipe.stage("coin"))
    (line,) = read_metrics(ready.folder("coin"))  # without held-out prompts there is no step 0
    assert line["pairs"] == 16 * (1 - line["equal_groups"]) and 0 < line["pairs"] < 16
    assert line["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert line["kl"] == 0 and line["skipped"] == 0
