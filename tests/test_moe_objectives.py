"""Every objective trains a mixture of experts: its loss falls, and its routers are balanced on the way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pair_batches
import pytest
from test_moe import QUICK, TINY, alone

import models
from easylm_jax.config import SFT, DataSpec, LoraConfig, OptimizerConfig, Source
from easylm_jax.objectives import (
    language_modelling,
    policy_optimization,
    preference_optimization,
    reward_modelling,
    target_scores,
)
from easylm_jax.train import lora
from easylm_jax.train.state import with_router_losses
from easylm_jax.train.step import gradients

ONE_LAYER = TINY.replace(layers=1)
ADAPTER = LoraConfig(rank=2, alpha=4.0, targets=("moe.up", "attn.q"))


@functools.cache
def fresh(scalar_head=False):
    model = models.build(ONE_LAYER.replace(scalar_head=scalar_head))
    return model, jax.jit(model.init).lower(jax.random.key(0)).compile(QUICK)(jax.random.key(0))


def sft():
    model, params = fresh()
    return language_modelling(model), params, alone(), {}


def sft_with_an_adapter():
    """Of experts and attention, beside frozen routers."""
    model, base = fresh()
    objective = language_modelling(model)
    adapter = lora.init_lora(jax.random.key(1), base, ADAPTER)
    assert adapter["layers"]["moe"]["up"]["lora_a"].shape == (1, 8, 32, 2)

    def on_adapter(adapter, batch, key, frozen):
        return objective(lora.merge(frozen["base"], adapter, ADAPTER), batch, key, {})

    return on_adapter, adapter, alone(), {"base": base}


def dpo():
    model, params = fresh()
    objective = preference_optimization(model, "dpo", beta=0.5, reference="model")
    return objective, params, pair_batches.packed(), {"reference": params}


def reward_model():
    model, params = fresh(scalar_head=True)
    return reward_modelling(model), params, pair_batches.packed(), {}


def grpo():
    """The first answers are better than the others; their log-probabilities are those of the first parameters."""
    model, params = fresh()
    batch = {name: jnp.asarray(column) for name, column in alone().items()}
    batch["mask"] = batch.pop("loss_weights")
    batch["old_logprobs"] = jax.jit(lambda params: target_scores(model, params, batch).logprobs)(params)
    batch["advantages"] = jnp.where(jnp.arange(8) < 4, 1.0, -1.0)[:, None] * batch["mask"]
    return policy_optimization(model), params, batch, {}


@pytest.mark.parametrize(
    "prepare", (sft, sft_with_an_adapter, dpo, pytest.param(reward_model, marks=pytest.mark.slow), grpo)
)
def test_an_objective_trains_a_mixture_and_its_routers(prepare):
    objective, params, batch, frozen = prepare()
    step = jax.jit(functools.partial(gradients, objective)).lower(params, batch, jax.random.key(0), frozen)
    step, losses = step.compile(QUICK), []
    for number in range(6):
        grads, loss, metrics = jax.device_get(step(params, batch, jax.random.key(0), frozen))
        losses.append(float(loss))
        if number == 0 and "router" in grads["layers"]["moe"]:
            assert np.abs(grads["layers"]["moe"]["router"]["kernel"]).max() > 0
        params = jax.tree.map(lambda leaf, grad: leaf - 0.03 * np.sign(grad) * (grad != 0), params, grads)
    assert losses[-1] < losses[0] - 0.02, losses
    assert metrics["dropped_copies"] == 0
    assert metrics["load_balancing"] > 0.5 and metrics["router_z"] > 0 and metrics["expert_load_max"] >= 1


def test_a_stage_sets_the_weights_of_the_routers_losses():
    data = DataSpec((Source("chats.jsonl"),), "sp:none", 8, kind="chat", template="tulu")
    common = {"init": "hf:none", "data": data, "batch": 4, "steps": 2, "optimizer": OptimizerConfig("1e-5")}
    plain, off = SFT("sft", **common), SFT("sft", **common, load_balancing=0.0)
    assert with_router_losses(plain, TINY) == TINY
    experts = with_router_losses(off, TINY).experts
    assert (experts.load_balancing, experts.router_z) == (0.0, TINY.experts.router_z)
    assert with_router_losses(off, TINY).architecture == TINY.architecture
    with pytest.raises(models.UserError, match="stage sft: load_balancing: this model .olmo2. has no experts"):
        with_router_losses(off, models.preset("olmo2-14m"))
