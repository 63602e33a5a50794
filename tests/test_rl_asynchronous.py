"""Rollouts that are written while earlier ones are trained on: by which policy, how exactly, and on which devices."""

import dataclasses
import threading

import numpy as np
import pytest
import rl_kit
from rl_kit import finished as run
from rl_kit import lines

from easylm_jax.checkpoint.tools import diff
from easylm_jax.config import Checkpoints, LoraConfig, OptimizerConfig, Validation
from easylm_jax.decode import rollout
from easylm_jax.runtime.monitor.metrics import read_metrics
from easylm_jax.train.loop import Stopped
from easylm_jax.train.rl.trainer import RolloutLoop
from models.errors import UserError

STEPS = 5
COMMON = {
    "steps": STEPS, "asynchronous": 1, "checkpoints": Checkpoints(every=1, latest=3),
    "optimizer": OptimizerConfig("1e-2", weight_decay=0.0),
}  # fmt: skip
STAGES = {
    "ahead": rl_kit.grpo("ahead", **COMMON, refill=1, drop_equal=True),
    "far": rl_kit.grpo("far", **{**COMMON, "asynchronous": 2}, lora=LoraConfig(rank=2, alpha=4.0)),
    "ppo": rl_kit.ppo("ppo", **COMMON),
}


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1):
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return rl_kit.experiment(tmp_path_factory.mktemp("undisturbed"), *STAGES.values())


@pytest.mark.parametrize("lag", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rollout_is_written_by_the_policy_of_so_many_steps_before(tmp_path, lag):
    """Tokens of rollout n are those that the parameters after step n − 1 − lag write, and no others."""
    stage = dataclasses.replace(STAGES["ahead"], name="own", asynchronous=lag, refill=0)
    loop = rl_kit.loop_of(rl_kit.experiment(tmp_path, stage), "own")
    with rl_kit.begun(loop) as state:
        loop.prepare_rollouts(state, 0)
        policies, written = [rl_kit.copies(loop.policy_of(state.params, loop.job.frozen))], []
        original = loop.batches.rows
        loop.batches.rows = lambda made, *rest: written.append(made) or original(made, *rest)
        for number in range(1, 5):
            state, pending = loop.advance(state, number)
            assert pending.metrics["staleness"] == min(number - 1, lag)
            policies.append(rl_kit.copies(loop.policy_of(state.params, loop.job.frozen)))
        loop.close()
        for number, made in enumerate(written, 1):
            again = loop.collector.collect(policies[max(0, number - 1 - lag)], number, number - 1).rollout
            np.testing.assert_array_equal(again.responses, made.responses)
            np.testing.assert_array_equal(again.sampler_logprobs, made.sampler_logprobs)
            np.testing.assert_array_equal(again.scores, made.scores)
        fresh = loop.collector.collect(policies[3], 4, 3).rollout
        assert (fresh.sampler_logprobs != written[3].sampler_logprobs).any()  # that policy is another by then


@pytest.mark.parametrize("name", ["ahead", *(pytest.param(name, marks=pytest.mark.slow) for name in ("far", "ppo"))])
def test_a_stage_that_broke_off_writes_the_same_rollouts_again(name, undisturbed, tmp_path, monkeypatch):
    expected = run(undisturbed, name)
    ready = rl_kit.experiment(tmp_path, *STAGES.values())
    stage, folder = ready.recipe.stage(name), ready.folder(name)
    original = RolloutLoop._next_kl
    left = [3]

    def breaks(self, kl, observed):
        left[0] -= 1
        if left[0] == 0:
            raise KeyError("broken off")
        return original(self, kl, observed)

    monkeypatch.setattr(RolloutLoop, "_next_kl", breaks)
    with pytest.raises(KeyError, match="broken off"):
        ready.run(stage)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]
    ready.run(stage)
    assert diff(folder, expected).identical and lines(folder) == lines(expected)
    assert [line["staleness"] for line in read_metrics(folder)] == [
        min(number, stage.asynchronous) for number in range(STEPS)
    ]


def test_stale_policies_are_corrected_for_and_the_gap_is_logged(undisturbed):
    told = read_metrics(run(undisturbed, "ahead"))
    assert told[0]["sampler_gap"] < 1e-5 < told[2]["sampler_gap"]
    assert all(line["weight"] > 0 and line["wait_seconds"] >= 0 for line in told)
    assert STAGES["ahead"].correction == 2.0 and rl_kit.grpo("plain").correction is None


def test_the_correction_can_be_off_though_an_older_policy_writes(tmp_path):
    stage = rl_kit.grpo("plain", **{**COMMON, "steps": 3, "sampler_correction": "off"})
    told = read_metrics(run(rl_kit.experiment(tmp_path, stage), "plain"))
    assert stage.correction is None and told[2]["staleness"] == 1 and told[2]["sampler_gap"] > 1e-5
    assert all("weight" not in line for line in told)  # no weights are made, and none reach the update
    assert rl_kit.ppo("ppo", sampler_correction="off", asynchronous=1).correction is None
    assert rl_kit.online_dpo("pairs", sampler_correction="off").correction is None
    for wrong in (0.0, -1.0):
        with pytest.raises(UserError, match=r"sampler_correction: \S+ is not a number above 0"):
            rl_kit.grpo("wrong", sampler_correction=wrong)
    with pytest.raises(UserError, match="sampler_correction"):
        rl_kit.grpo("wrong", sampler_correction="on")


@pytest.mark.slow
def test_online_dpo_may_write_ahead_though_its_loss_has_no_weights(tmp_path):
    stage = rl_kit.online_dpo("pairs", **{**COMMON, "steps": 3})
    told = read_metrics(run(rl_kit.experiment(tmp_path, stage), "pairs"))
    assert [line["step"] for line in told] == [1, 2, 3] and all(np.isfinite(line["loss"]) for line in told)
    assert stage.correction is None


def test_a_signal_ends_it_without_waiting_for_the_rollout_under_way(undisturbed, tmp_path, monkeypatch):
    ready = rl_kit.experiment(tmp_path, *STAGES.values())
    stage = ready.recipe.stage("ahead")
    with monkeypatch.context() as patch:
        patch.setattr("easylm_jax.runtime.monitor.StopRequest.agreed", lambda self, number: number == 2)
        with pytest.raises(Stopped, match="step 2 of 5"):
            ready.run(stage)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]
    ready.run(stage)
    assert diff(ready.folder("ahead"), run(undisturbed, "ahead")).identical


def test_what_a_verifier_finds_wrong_ends_the_run_with_its_words(tmp_path):
    reward = dataclasses.replace(STAGES["ahead"].reward, verifier="rl_kit:not_a_number")
    stage = rl_kit.grpo("bad", **{**COMMON, "reward": reward})
    ready = rl_kit.experiment(tmp_path, stage)
    with pytest.raises(UserError, match="not_a_number gave nan for record"):
        ready.run(ready.recipe.stage("bad"))


SPLIT = {"steps": 2, "batch": 8, "asynchronous": 1}


@pytest.mark.parametrize("each", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_some_devices_sample_while_the_others_train(each, tmp_path):
    checked = {"validation": Validation(rl_kit.prompts(rl_kit.home()), every=2), "check": rl_kit.VERIFIER}
    split = rl_kit.grpo("split", **SPLIT, **checked, rollout_devices=each)
    with rl_kit.devices(2 * each):  # over processes: tests/test_rl_pods.py
        ready = rl_kit.experiment(tmp_path / "split", split, mesh=f"fsdp={each}")
        loop = rl_kit.loop_of(ready, "split")
        assert loop.job.mesh.size == loop.collector.mesh.size == each
        assert not set(loop.job.mesh.devices.flat) & set(loop.collector.mesh.devices.flat)
        ready.run(ready.recipe.stage("split"))
        many = dataclasses.replace(split, rollout_devices=2 * each)
        with pytest.raises(UserError, match=f"rollout_devices is {2 * each}, but there are {2 * each} devices"):
            rl_kit.loop_of(rl_kit.experiment(tmp_path / "all", many), "split")
    one = rl_kit.experiment(tmp_path / "one", dataclasses.replace(split, rollout_devices=None))
    one.run(one.recipe.stage("split"))
    assert_same_parameters(ready, one)
    told = [read_metrics(each.folder("split")) for each in (ready, one)]
    scores = [[line["validation_score"] for line in each if "validation_score" in line] for each in told]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6) and len(scores[0]) == 2  # greedy responses on either


@pytest.mark.slow
def test_all_devices_sample_and_train_in_turn(tmp_path):
    stage = rl_kit.grpo("split", **SPLIT)
    with rl_kit.devices(4):
        together = rl_kit.experiment(tmp_path / "together", stage, mesh="fsdp=4")
        together.run(together.recipe.stage("split"))
    one = rl_kit.experiment(tmp_path / "one", stage)
    one.run(one.recipe.stage("split"))
    assert_same_parameters(together, one)
    assert [line["staleness"] for line in read_metrics(together.folder("split"))] == [0, 1]


def assert_same_parameters(ours, theirs):
    ours, theirs = (rl_kit.params_of(each, "split") for each in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


def test_refill_replaces_zero_variance_groups(tmp_path):
    """With rewards that are mostly equal, later batches fill the rollout; without, equal groups are left in it."""
    reward = dataclasses.replace(STAGES["ahead"].reward, verifier="rl_kit:coarse")
    plain = rl_kit.grpo("plain", batch=8, reward=reward, seed=3)
    more = dataclasses.replace(plain, name="more", refill=4)
    loops = [rl_kit.loop_of(rl_kit.experiment(tmp_path / stage.name, stage), stage.name) for stage in (plain, more)]
    with rl_kit.begun(loops[0]) as state:
        policy = loops[0].policy_of(state.params, loops[0].job.frozen)
        once, filled = (loop.collector.collect(policy, 1, 5) for loop in loops)
    assert once.prompt_batches_used == 6 and filled.prompt_batches_used == 5 + filled.metrics["batches_drawn"] > 6
    before, after = (
        loop.collector._nonzero_variance(it.rollout) for loop, it in zip(loops, (once, filled), strict=True)
    )
    assert before.sum() < after.sum() and len(after) == 8
    # Those of the first batch stand first, as they were drawn.
    first = rollout.select(once.rollout, np.flatnonzero(np.repeat(before, 2)))
    np.testing.assert_array_equal(filled.rollout.responses[: first.rows], first.responses)
    np.testing.assert_array_equal(filled.rollout.scores[: first.rows], first.scores)
    again = loops[1].collector.collect(policy, 1, 5)
    np.testing.assert_array_equal(again.rollout.responses, filled.rollout.responses)


def test_random_rewards_are_functions_of_seed_step_and_attempt(tmp_path):
    stage = rl_kit.grpo("own", batch=8)
    loop = rl_kit.loop_of(rl_kit.experiment(tmp_path, stage), "own")
    with rl_kit.begun(loop) as state:
        made = loop.collector.collect(loop.policy_of(state.params, loop.job.frozen), 1, 0).rollout
    cache, words = loop.job.loader.cache, loop.job.tokenizer

    def draws(**which):
        return [record["_draw"] for record in rollout.responses_and_records(made, cache, words, **which)[1]]

    assert draws(seed=1, step=2) == draws(seed=1, step=2)
    which = ((1, 2, 0), (2, 2, 0), (1, 3, 0), (1, 2, 1))
    numbers = {draw for seed, step, attempt in which for draw in draws(seed=seed, step=step, attempt=attempt)}
    assert len(numbers) == 4 * made.rows and all(0 <= draw < 1 for draw in numbers)
    records = rollout.responses_and_records(made, cache, words, group=True)[1]
    texts = [rollout.text_of(made, row, words) for row in range(made.rows)]
    assert [record["_group"] for record in records[:2]] == [texts[:2]] * 2
    assert [record["_length"] for record in records] == made.lengths.tolist()
