"""From responses to the rows of an update: what belongs to a token stands where the token is the target."""

import dataclasses

import jax
import numpy as np
import pytest
import rl_kit

from easylm_jax.config import GRPO, PPO, OnlineDPO, OptimizerConfig, Reward, Sampling
from easylm_jax.decode import rollout
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.train.rl import advantages as rl_advantages

# Spec tulu25 §12: two responses, of three and four tokens.
VALUES = [[0.5, 0.2, -0.1, 0.0], [0.3, 0.4, 0.1, 0.2]]
DIVERGENCE = [[0.1, -0.05, 0.2, 0.0], [0.0, 0.1, 0.05, 0.3]]
SCORES = [2.0, -10.0]
REWARDS = [[-0.005, 0.0025, 1.99, 0], [0, -0.005, -0.0025, -10.015]]
ADVANTAGES = [[1.2986, 1.688, 2.09, 0], [-8.85984, -9.43141, -9.60675, -10.215]]
RETURNS = [[1.7986, 1.888, 1.99, 0], [-8.55984, -9.03141, -9.50675, -10.015]]
WHITE = [[1.00053, 1.06527, 1.13211, 0], [-0.68835, -0.78338, -0.81253, -0.91365]]


def stage(kind, **more):
    fields = {
        "init": "sft", "data": rl_kit.prompts("nowhere"), "batch": 2, "steps": 1, "optimizer": OptimizerConfig("1e-3"),
        "reward": Reward(verifier="gsm8k"), "sampling": Sampling(4),
    }  # fmt: skip
    return kind("rl", **{**fields, **more})


def batches_of(stage):
    return rl_advantages.make_batch_builder(stage, make_mesh("dp=1", jax.devices()[:1]))


def measured(made, values=None, divergence=None):
    """The rows of a rollout as the trainer measures them, numbers given for each response token [B, T]."""
    columns = rollout.columns_of(made)
    width = columns["tokens"].shape[1]
    zeros = np.zeros(made.responses.shape, np.float32)
    place = {"old_values": values, "old_logprobs": divergence}
    for name, numbers in place.items():
        numbers = zeros if numbers is None else np.asarray(numbers, np.float32)
        columns[name] = rollout.at_targets(numbers, made, width)
    # Rubbish outside the responses, as models say something of every position.
    for name in place:
        columns[name] = np.where(columns["mask"] > 0, columns[name], 777.0).astype(np.float32)
    return {**columns, "reference_logprobs": np.zeros_like(columns["old_logprobs"])}


def ppo_rows(made, columns, kl=0.05, **settings):
    """Advantages and returns of responses [B, T], and the line."""
    settings = {"reward": Reward(verifier="gsm8k", missing_end=None), **settings}
    rows, line = batches_of(stage(PPO, **settings)).rows(made, columns, kl)
    return *(rl_kit.of_responses(rows[name], made) for name in ("advantages", "returns")), line


@pytest.mark.parametrize("prompt_lengths", [(1, 1), (3, 11), (12, 2)])
def test_golden_advantages_of_responses_behind_prompts_of_any_length(prompt_lengths):
    """The spec's table, pushed through the rows; longer prompts in front change nothing."""
    made = rl_kit.a_rollout(list(prompt_lengths), [3, 4], width=4)
    made.scores = np.array(SCORES, np.float32)
    columns = measured(made, VALUES, DIVERGENCE)
    advantages, returns, line = ppo_rows(made, columns, whiten="none")
    np.testing.assert_allclose(advantages, ADVANTAGES, atol=1e-5)
    np.testing.assert_allclose(returns, RETURNS, atol=1e-5)
    white, same_returns, _ = ppo_rows(made, columns)
    np.testing.assert_allclose(white, WHITE, atol=1e-5)
    np.testing.assert_array_equal(same_returns, returns)
    assert line["reward"] == -4.0
    assert line["kl_reward"] == pytest.approx(-0.05 * np.sum(DIVERGENCE) / 2, abs=1e-6)
    # Without a value model and with λ = 0 the advantages are the rewards themselves.
    rewards, _, _ = ppo_rows(made, measured(made, None, DIVERGENCE), lam=0.0, whiten="none")
    np.testing.assert_allclose(rewards, REWARDS, atol=1e-6)


def test_longer_prompts_in_front_change_no_advantage_at_all():
    responses = dict(lengths=[5, 1, 8, 3], width=8)
    short, long = rl_kit.a_rollout([2, 3, 1, 4], **responses), rl_kit.a_rollout([13, 9, 21, 4], **responses)
    rng = np.random.default_rng(3)
    values, divergence = rng.normal(size=(2, 4, 8)).astype(np.float32)
    found = []
    for made in (short, long):
        made.scores = np.array([0.5, -1.0, 0.25, 2.0], np.float32)
        found.append(ppo_rows(made, measured(made, values, divergence)))
    assert short.prompts.shape != long.prompts.shape
    for a, b in zip(found[0][:2], found[1][:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_fractional_score_stands_whole_at_the_last_token():
    made = rl_kit.a_rollout([4, 2, 7], [1, 8, 3])
    made.scores = np.array([0.37, 0.37, -0.37], np.float32)
    rewards, _, _ = ppo_rows(made, measured(made), lam=0.0, whiten="none", batch=3)
    want = np.zeros((3, 8), np.float32)
    want[[0, 1, 2], [0, 7, 2]] = made.scores
    np.testing.assert_array_equal(rewards, want)


def test_a_truncated_response_has_missing_end_at_its_last_token_and_no_end_token_is_added():
    """Row 0 was cut, row 1 ended with its last token, row 2 is an end token alone (spec tulu25 §12)."""
    made = rl_kit.a_rollout([4, 2, 7], [8, 8, 1], ended=[False, True, True])
    made.scores = np.array([5.0, 5.0, 5.0], np.float32)
    columns = measured(made)
    reward = Reward(verifier="gsm8k", missing_end=-10.0)
    rewards, _, _ = ppo_rows(made, columns, lam=0.0, whiten="none", batch=3, reward=reward)
    want = np.zeros((3, 8), np.float32)
    want[[0, 1, 2], [7, 7, 0]] = (-10.0, 5.0, 5.0)
    np.testing.assert_array_equal(rewards, want)
    assert columns["segment_ids"].sum(axis=1).tolist() == [12, 10, 8]  # prompt and response, nothing more
    assert columns["mask"].sum(axis=1).tolist() == [8, 8, 1]
    assert columns["tokens"][0, 11] == made.responses[0, 7] and columns["tokens"][0, 12] == 0
    gain = dataclasses.replace(reward, gain=2.0, bias=1.0)
    rewards, _, _ = ppo_rows(made, columns, lam=0.0, whiten="none", batch=3, reward=gain)
    assert (rewards[0, 7], rewards[2, 0]) == (-19.0, 11.0)


def test_rows_are_next_token_training_with_the_response_masked():
    made = rl_kit.a_rollout([3, 6], [4, 2], width=5)
    columns = rollout.columns_of(made)
    for row, (prompt, response) in enumerate(((3, 4), (6, 2))):
        whole = [*made.prompts[row, :prompt], *made.responses[row, :response]]
        assert columns["tokens"][row, : len(whole)].tolist() == whole
        at = np.flatnonzero(columns["mask"][row])
        assert at.tolist() == list(range(prompt - 1, prompt - 1 + response))
        assert columns["targets"][row, at].tolist() == made.tokens_of(row)
        assert columns["positions"][row, : len(whole)].tolist() == list(range(len(whole)))
        assert columns["segment_ids"][row].sum() == len(whole)
    for name in ("sampler_logprobs", "untruncated_logprobs"):
        np.testing.assert_array_equal(rl_kit.of_responses(columns[name], made), getattr(made, name))
        assert (columns[name][columns["mask"] == 0] == 0).all()


@pytest.mark.parametrize("width", (16, 21, 64))
def test_values_go_to_their_targets_and_come_back(width):
    made = rl_kit.a_rollout([1, 5, 8, 2], [8, 1, 3, 6])
    values = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    there = rollout.at_targets(values, made, width)
    assert there.shape == (4, width)
    real = np.arange(8)[None] < made.lengths[:, None]
    np.testing.assert_array_equal(rl_kit.of_responses(there, made), np.where(real, values, 0))
    assert np.count_nonzero(there) == made.lengths.sum()


def test_tokens_that_look_like_padding_are_trained_as_any_other():
    """Masks come from lengths: an end token of id 0, where padding is 0 too, and a prompt full of zeros."""
    made = rl_kit.a_rollout([3, 2], [4, 1])
    zeros = dataclasses.replace(made, prompts=made.prompts * 0, responses=made.responses * 0)
    ours, theirs = rollout.columns_of(made), rollout.columns_of(zeros)
    for name in ("mask", "segment_ids", "positions", "sampler_logprobs"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    made.scores = zeros.scores = np.array([1.0, 2.0], np.float32)
    found = [ppo_rows(it, measured(it, np.ones((2, 8)))) for it in (made, zeros)]
    np.testing.assert_array_equal(found[0][0], found[1][0])


def test_whitening_of_a_rollout_does_not_depend_on_how_it_is_cut_into_updates():
    made = rl_kit.a_rollout([3, 2, 5, 4], [4, 1, 8, 6])
    made.scores = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
    columns = measured(made, np.random.default_rng(1).normal(size=(4, 8)))
    whole, _, _ = ppo_rows(made, columns, batch=4)
    cut, _, _ = ppo_rows(made, columns, batch=4, mini_batch=2)
    np.testing.assert_array_equal(whole, cut)
    real = np.arange(8)[None] < made.lengths[:, None]
    assert whole[real].mean() == pytest.approx(0, abs=1e-6) and whole[real].std(ddof=1) == pytest.approx(1, abs=1e-5)
    # By mini-batch, each has mean 0 of its own.
    own = batches_of(stage(PPO, batch=4, mini_batch=2, whiten="mini_batch"))
    rows, _ = own.rows(made, columns, 0.05)
    for part in (slice(0, 2), slice(2, 4)):
        batch = own.batch({name: array[part] for name, array in rows.items()})
        on = batch["mask"] > 0
        assert batch["advantages"][on].mean() == pytest.approx(0, abs=1e-6)
        assert batch["advantages"][on].std(ddof=1) == pytest.approx(1, abs=1e-5)
        assert (batch["advantages"][~on] == 0).all()


def grpo_rows(scores, ended=None, **settings):
    made = rl_kit.a_rollout([2, 2, 5, 5], [4, 1, 8, 6], ended=ended)
    made.scores = np.array(scores, np.float32)
    it = batches_of(stage(GRPO, **{"samples": 2, "reward": Reward(verifier="gsm8k", missing_end=None), **settings}))
    rows, line = it.rows(made, measured(made), 0.0)
    return made, it.batch(rows), line


def test_group_advantages_stand_at_every_token_of_a_response():
    made, batch, line = grpo_rows([1.0, 0.0, 0.5, 0.5], advantages="mean")
    spread = rl_kit.of_responses(batch["advantages"], made)
    for row, value in enumerate((0.5, -0.5, 0.0, 0.0)):
        assert spread[row, : made.lengths[row]].tolist() == [value] * made.lengths[row]
    assert line["equal_groups"] == 0.5 and line["kept"] == 1.0 and line["reward"] == 0.5
    assert batch["mask"].sum() == made.lengths.sum()


def test_equal_groups_and_truncated_responses_are_left_out_where_that_is_asked_for():
    made, batch, line = grpo_rows([1.0, 0.0, 0.5, 0.5], drop_equal=True)
    assert batch["mask"].sum(axis=1).tolist() == [4, 1, 0, 0] and line["kept"] == 0.5
    made, batch, line = grpo_rows([1.0, 0.0, 2.0, 0.5], ended=[True, False, True, True], mask_truncated=True)
    assert batch["mask"].sum(axis=1).tolist() == [4, 0, 8, 6] and line["kept"] == 0.75
    assert np.abs(batch["advantages"][0][batch["mask"][0] > 0]).min() > 0  # still against the one that is left out


def test_a_score_above_the_float_noise_of_its_group_is_no_equal_group():
    _, batch, line = grpo_rows([0.1, 0.1, 0.3, 0.3 + 1e-6], drop_equal=True)
    assert line["equal_groups"] == 0.5 and batch["mask"].sum(axis=1).tolist() == [0, 0, 8, 6]


def test_pairs_put_the_best_answer_before_the_worst_and_skip_equal_ones():
    made = rl_kit.a_rollout([3, 3, 3, 6, 6, 6], [4, 1, 8, 6, 2, 3])
    made.scores = np.array([0.2, 0.9, 0.1, 0.5, 0.5, 0.5], np.float32)
    columns = measured(made)
    columns["reference_logprobs"] = np.random.default_rng(0).normal(size=columns["mask"].shape).astype(np.float32)
    it = batches_of(stage(OnlineDPO, samples=3, reward=Reward(verifier="gsm8k", missing_end=None)))
    rows, line = it.rows(made, columns, 0.0)
    batch = it.batch(rows)
    assert batch["pair_index"].tolist() == [[0], [-1]] and line["equal_groups"] == 0.5
    width = columns["tokens"].shape[1]
    for name in ("tokens", "targets", "positions"):
        np.testing.assert_array_equal(batch[name][0, :width], columns[name][1])  # 0.9
        np.testing.assert_array_equal(batch[name][0, width:], columns[name][2])  # 0.1
    np.testing.assert_array_equal(batch["segment_ids"][0, :width], columns["segment_ids"][1])
    np.testing.assert_array_equal(batch["segment_ids"][0, width:], 2 * columns["segment_ids"][2])
    np.testing.assert_array_equal(batch["loss_weights"][0, :width], columns["mask"][1])
    for name, row in (("reference_chosen", 1), ("reference_rejected", 2)):
        want = (columns["reference_logprobs"][row] * columns["mask"][row]).sum()
        assert batch[name][0, 0] == pytest.approx(want, abs=1e-6)
    shapes = it.abstract(width)
    assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
        name: ((2, *x.shape[1:]), x.dtype) for name, x in batch.items()
    }


@pytest.mark.parametrize("kind", (PPO, GRPO))
def test_the_shapes_that_are_compiled_are_those_that_come(kind):
    more = {"samples": 2, "kl": 0.1, "sampler_correction": 2.0} if kind is GRPO else {"sampler_correction": 2.0}
    made = rl_kit.a_rollout([3, 3, 5, 5], [4, 1, 8, 6])
    own = stage(kind, **{"batch": 2, "samples": 2, **more})
    it = batches_of(own)
    rows, line = it.rows(made, measured(made), 0.05)
    batch = it.batch(rows)
    shapes = it.abstract(batch["tokens"].shape[1])
    assert {name: (x.shape, str(x.dtype)) for name, x in shapes.items()} == {
        name: (x.shape, str(x.dtype)) for name, x in batch.items()
    }
    assert line["weight"] > 0 and (batch["weights"][batch["mask"] == 0] == 0).all()
    assert (batch["weights"] <= 2.0).all()


def test_rows_are_as_wide_as_a_few_shapes_allow():
    widths = {length: rollout.bucket(length) for length in range(1, 600)}
    assert all(0 <= width - length < max(16, length / 4) for length, width in widths.items())
    assert len(set(widths.values())) <= 24
