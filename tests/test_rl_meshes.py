"""Reinforcement learning is the same on every mesh: the same tokens are sampled, and parameters move alike."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import rl_kit

from easylm_jax.config import PPO
from easylm_jax.train.rl.trainer import RolloutLoop
from models.errors import UserError

# With a large epsilon an update is about proportional to its gradient, so that rounding is not blown up to a sign.
SMOOTH = dataclasses.replace(rl_kit.RATE, lr="1.0", eps=1.0)
STAGES = (
    rl_kit.ppo("ppo", batch=16, mini_batch=8, optimizer=SMOOTH, whiten="mini_batch", sampler_correction=2.0),
    rl_kit.online_dpo("online", batch=8, samples=2, optimizer=SMOOTH),
)
# Slow ones, since in tests/test_rl_processes.py two processes on four devices do what one device does.
CASES = [("dp=2,fsdp=2,tp=2", "ppo"), ("fsdp=8", "ppo"), ("fsdp=8", "online")]
# What trains on the first mesh writes on the second one.
TWO = [("fsdp=2,cp=2,tp=2", "dp=-1,tp=4", "ppo")]


def trained(folder, text, name, devices, decode_mesh=None, **more):
    """What two rollouts on a mesh sampled, their metrics, and the last state's parameters."""
    stages = [dataclasses.replace(stage, **more) if stage.name == name else stage for stage in STAGES]
    made = []
    original = RolloutLoop._collect

    def keep(self, *arguments):
        found = original(self, *arguments)
        made.append(found[0].rollout)
        return found

    with pytest.MonkeyPatch.context() as patch, rl_kit.devices(devices):
        patch.setattr(RolloutLoop, "_collect", keep)
        ready = rl_kit.experiment(folder, *stages, mesh=text, decode_mesh=decode_mesh)
        stage = ready.recipe.stage(name)
        ready.run(stage)
    params = rl_kit.params_of(ready, name)
    if isinstance(stage, PPO):
        params |= rl_kit.params_of(ready, name, "value.params")
    return made, ready.done(stage)["metrics"], params


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return functools.cache(
        lambda name, asynchronous=0: trained(tmp_path_factory.mktemp(name), "dp=1", name, 1, asynchronous=asynchronous)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_rollouts_and_updates_equal_those_of_one_device(layout, name, one_device, tmp_path, record_property):
    assert_equal(trained(tmp_path, layout, name, 8), one_device(name), record_property)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "writes", "name"), TWO)
def test_rollouts_written_on_a_mesh_of_another_shape_are_the_same(
    layout, writes, name, one_device, tmp_path, record_property
):
    assert_equal(trained(tmp_path, layout, name, 8, decode_mesh=writes), one_device(name), record_property)


def test_a_mesh_that_cannot_write_is_told_in_one_line(tmp_path):
    ready = rl_kit.experiment(tmp_path, *STAGES, mesh="fsdp=4,cp=2")
    with rl_kit.devices(8), pytest.raises(UserError, match="over cp=2; give .* decode_mesh") as told:
        ready.run(ready.recipe.stage("ppo"))
    assert "\n" not in str(told.value)
    ready = rl_kit.experiment(tmp_path / "six", *STAGES, decode_mesh="dp=-1,tp=4")
    with rl_kit.devices(6), pytest.raises(UserError, match="^decode_mesh: mesh .* multiple of 4 devices, but .* 6"):
        ready.run(ready.recipe.stage("ppo"))


def assert_equal(found, expected, record_property):
    """The same rollouts, and metrics and parameters as close as rounding lets them be."""
    rollouts, line, params = found
    expected_rollouts, expected_line, expected = expected
    assert len(rollouts) == len(expected_rollouts) == 2
    for made, want in zip(rollouts, expected_rollouts, strict=True):
        np.testing.assert_array_equal(made.responses, want.responses)
        np.testing.assert_array_equal(made.lengths, want.lengths)
        np.testing.assert_allclose(made.scores, want.scores, atol=1e-5)
    worst = max(np.abs(params[leaf] - expected[leaf]).max() / np.abs(expected[leaf]).max() for leaf in expected)
    record_property("largest difference, relative to the leaf's largest element", float(worst))
    assert params.keys() == expected.keys() and worst <= 1e-5
    assert line["loss"] == pytest.approx(expected_line["loss"], rel=1e-4, abs=1e-6)
    assert line["kl"] == pytest.approx(expected_line["kl"], rel=1e-3, abs=1e-5) and line["kl"] > 0


def test_models_and_moments_are_split_and_memory_is_told_for_one_device(tmp_path):
    from easylm_jax.runtime.sharding import bytes_of

    with rl_kit.devices(8):
        ready = rl_kit.experiment(tmp_path, *STAGES, mesh="fsdp=4,tp=2")
        loop = rl_kit.loop_of(ready, "ppo")
    with rl_kit.begun(loop) as state:
        trees = [
            state.params,
            state.opt,
            state.value.params,
            state.value.opt,
            loop.job.reference,
            loop.job.scorer.params,
        ]
        for tree in trees:
            leaves = jax.tree.leaves(tree)
            on_one = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
            assert bytes_of(tree) == on_one
            assert on_one < sum(leaf.nbytes for leaf in leaves) / 6  # norms and counters are whole, the rest in eighths
