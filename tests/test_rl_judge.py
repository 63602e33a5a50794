"""A language model's opinion in a reward: asked about every response, mixed as the expression says."""

import dataclasses

import numpy as np
import pytest
import rl_kit

from easylm_jax.config import JudgeModel, Reward, Sampling
from easylm_jax.rewards import lm_judge
from easylm_jax.rewards.verify import ExpressionScorer
from models.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1):
        yield


def test_a_judge_stands_beside_verifiers_and_a_reward_model(tmp_path, monkeypatch):
    asked = []

    def load(judge, mesh, seed):
        def scores(conversations, responses, records, step):
            asked.extend(zip(conversations, responses, strict=True))
            return np.arange(len(responses), dtype=np.float32) / 10, {"judge_unread": 1}

        return scores

    monkeypatch.setattr(lm_judge, "load", load)
    judge = JudgeModel(model="sft", sampling=Sampling(4, temperature=0.0))
    reward = Reward(model="reward", judge=judge, verifier="10 * judge + 'rl_kit:constant' + model", missing_end=None)
    loop = rl_kit.loop_of(rl_kit.experiment(tmp_path, rl_kit.grpo("judged", reward=reward)), "judged")
    plain = dataclasses.replace(reward, judge=None, verifier="model")
    other = rl_kit.loop_of(rl_kit.experiment(tmp_path / "plain", rl_kit.grpo("judged", reward=plain)), "judged")
    with rl_kit.begun(loop) as state:
        policy = loop.policy_of(state.params, loop.job.frozen)
        made, line = (lambda collected: (collected.rollout, collected.metrics))(loop.collector.collect(policy, 1, 0))
        model = other.collector.collect(policy, 1, 0).rollout.scores
    np.testing.assert_allclose(made.scores, np.arange(made.rows) + 0.37 + model, atol=1e-5)
    assert len(asked) == made.rows and asked[0][0][-1]["role"] == "user"
    assert line["judge_unread"] == 1 and line["judge_score"] == pytest.approx(np.arange(made.rows).mean() / 10)
    assert line["verdict/rl_kit:constant"] == pytest.approx(0.37) and line["model_score"] == pytest.approx(model.mean())


def test_scores_of_models_stand_in_rewards_alone():
    for text in ("model", "gsm8k + judge"):
        with pytest.raises(UserError, match="which only a reward has"):
            ExpressionScorer(text)
    with pytest.raises(UserError, match="name its model in reward.judge"):
        Reward(verifier="judge")
