"""A run whose model is of no use does not end as done: one line says why, and its checkpoints are kept."""

import dataclasses

import numpy as np
import pytest
import rl_kit

from easylm_jax.checkpoint import Checkpointer, store
from easylm_jax.config import SFT, OptimizerConfig
from easylm_jax.config.recipe import Recipe
from easylm_jax.experiment import Experiment
from models.errors import UserError

FOREVER = dataclasses.replace(rl_kit.RATE, abort_after=None)  # skipped updates alone do not end the run


@pytest.fixture(scope="module", autouse=True)
def in_process():
    with rl_kit.devices(1):
        yield


def broken_policy(folder) -> str:
    """The SFT model with one parameter that is NaN, as `run:<folder>`."""
    ready = Experiment(Recipe("rl", rl_kit.base_stages(rl_kit.home())), rl_kit.made().out)
    params = rl_kit.nested_params(ready, "sft")
    params["final_norm"]["scale"] = np.full_like(params["final_norm"]["scale"], np.nan)
    with Checkpointer(folder / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(1, {"params": params}, store.read_meta(store.resolve(ready.folder("sft"))))
    return f"run:{folder}"


def sft(name: str, **more) -> SFT:
    data = rl_kit.base_stages(rl_kit.home())[2].data
    return SFT(name, **{"init": "sft", "data": data, "batch": 8, "steps": 3, "optimizer": FOREVER, **more})


def refused(ready: Experiment, name: str, *says: str) -> None:
    """The stage ends in one line, keeps its last checkpoint, and does so again when it is run again."""
    stage = ready.recipe.stage(name)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            ready.run(stage)
        message = str(caught.value)
        assert f"stage {name}: training ended at step {stage.steps}, but" in message and "\n" not in message
        assert all(part in message for part in (*says, "it is not done and its checkpoints are kept in"))
        assert ready.done(stage) is None
        folder = ready.folder(name) / "checkpoints"
        steps = store.committed_steps(folder)
        assert steps[-1] == stage.steps and store.damage(folder / str(steps[-1])) == []


def test_a_run_whose_updates_were_all_skipped_is_not_done(tmp_path):
    rl_kit.made()
    ready = rl_kit.experiment(tmp_path / "runs", sft("dead", init=broken_policy(tmp_path / "broken")))
    says = "the loss of its last step is nan", "all 3 updates of the model were skipped", "are not finite"
    refused(ready, "dead", *says)


def test_a_run_whose_parameters_overflow_in_its_last_update_is_not_done(tmp_path):
    rl_kit.made()
    rate = OptimizerConfig("3e38", weight_decay=1000.0)
    ready = rl_kit.experiment(tmp_path / "runs", sft("blown", steps=1, optimizer=rate))
    refused(ready, "blown", "parameters of the model are not finite")


def test_a_value_model_that_was_never_updated_is_not_done(tmp_path):
    rl_kit.made()
    stage = rl_kit.ppo(steps=1, value_optimizer=FOREVER, value=rl_kit.broken_reward(tmp_path / "broken"))
    refused(rl_kit.experiment(tmp_path / "runs", stage), "ppo", "updates of the value model were skipped")


def test_a_run_whose_updates_were_made_is_done(tmp_path):
    rl_kit.made()
    ready = rl_kit.experiment(tmp_path / "runs", sft("fine"))
    ready.run(ready.recipe.stage("fine"))
    assert ready.done(ready.recipe.stage("fine"))["metrics"]["skipped_total"] == 0
