"""What was written before optimisers were optax's is still good: checkpoints, their names, settings of runs."""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.config import OptimizerConfig, ParameterGroup, SkipStep, fields
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.step import new_state
from models.errors import UserError
from models.trees import leaf_names

GOLDEN = Path(__file__).parent / "golden"
_SPEC = importlib.util.spec_from_file_location("make_adamw_checkpoint", GOLDEN / "make_adamw_checkpoint.py")
made = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(made)


@pytest.fixture
def folder(tmp_path):
    """A copy: opening a folder of checkpoints may change it."""
    return shutil.copytree(GOLDEN / "adamw_checkpoint", tmp_path / "checkpoints")


def test_a_train_state_from_before_goes_on_to_the_same_end(folder, record_property):
    with Checkpointer(folder, asynchronous=False) as checkpointer:
        state, _ = checkpointer.restore(jax.eval_shape(made.first_state))
    assert (int(state.step), int(state.opt.count), int(state.opt.skipped_total)) == (4, 3, 1)
    after = made.updated(jax.tree.map(jax.numpy.asarray, state), range(4, 7))
    with np.load(GOLDEN / "adamw_after.npz") as expected:
        assert set(leaf_names(after)) == set(expected)
        worst = 0.0
        for name, mine in zip(leaf_names(after), jax.tree.leaves(after), strict=True):
            theirs = expected[name]
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7, err_msg=name)
            if theirs.dtype.kind == "f":
                worst = max(worst, float(np.max(np.abs(mine - theirs)) / np.max(np.abs(theirs))))
    record_property("largest relative difference", worst)


def test_its_parameters_load_whatever_optimizer_comes_next(folder):
    params = restore_params(folder / "4")
    assert leaf_names(params) == leaf_names(made.draw(0))


def test_the_state_of_another_optimizer_is_one_line(folder):
    lion = make_optimizer(OptimizerConfig("1e-3", name="lion", skip_step=made.CONFIG.skip_step), 10)
    params = made.draw(0)
    with Checkpointer(folder, asynchronous=False) as checkpointer, pytest.raises(UserError) as error:
        checkpointer.restore(new_state(params, lion.init(params), 0))
    assert "has in addition opt.nu." in str(error.value) and "\n" not in str(error.value)


def test_the_names_of_adamw_in_a_checkpoint_are_those_of_before():
    stored = store.read_manifest(GOLDEN / "adamw_checkpoint" / "4").leaves
    assert set(leaf_names(jax.eval_shape(made.first_state))) == set(stored)
    assert {"opt.mu.embed.table", "opt.nu.head.kernel", "opt.count", "opt.losses", "opt.skipped_in_row"} <= set(stored)


def test_settings_that_came_later_leave_the_digest_of_a_run_from_before():
    """The JSON and the digest of this configuration as they were written before there were algorithms and groups."""
    config = OptimizerConfig("1e-3 linear to 0", skip_step=SkipStep(window=32, min_values=8))
    written = {
        "class": "OptimizerConfig", "lr": "1e-3 linear to 0", "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1,
        "decay_embeddings": False, "decay_norms_and_biases": True, "clip": 1.0,
        "skip_step": {"class": "SkipStep", "window": 32, "min_values": 8, "sigma": 6.0}, "abort_after": 20,
        "moment_dtype": "float32", "second_moment_dtype": "float32", "trainable": ["*"], "update_norm": False,
        "offload": False,
    }  # fmt: skip
    assert fields.encode(config) == written
    text = json.dumps(written, sort_keys=True, ensure_ascii=False)
    assert fields.digest(config) == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert fields.decode(OptimizerConfig, written) == config


def test_settings_that_came_later_are_told_where_they_are_set():
    group = ParameterGroup("outer", ("embed", "head"), lr="1e-4 linear to 0", clip=None)
    config = OptimizerConfig("1e-3", name="muon", options={"ns_steps": 3, "nesterov": False}, groups=(group,))
    told = fields.encode(config)
    assert told["name"] == "muon" and told["options"] == [["nesterov", False], ["ns_steps", 3]]
    assert fields.decode(OptimizerConfig, json.loads(json.dumps(told))) == config
    assert fields.digest(config) != fields.digest(OptimizerConfig("1e-3"))
