"""The memory that a stage of rollouts tells before it begins is that of its compiled programs, at full size."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import rl_kit

import models
from easylm_jax.checkpoint.load import ModelSource
from easylm_jax.config import PPO, Compute, Reward, Sampling
from easylm_jax.decode import Engine
from easylm_jax.decode.generator import Generator
from easylm_jax.runtime import sharding
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.sharding import bytes_of, placement_of
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.rl import stage as rl_stage
from easylm_jax.train.rl.job import RolloutJob
from easylm_jax.train.rl.memory import MIB, memory_of
from easylm_jax.train.rl.programs import RLPrograms
from easylm_jax.train.rl.trainer import RolloutLoop
from easylm_jax.train.state import TrainStateInit
from models.decoder import cast_kernels


def abstract_job(config, mesh, stage) -> RolloutJob:
    """A job of shapes alone: models are neither drawn nor loaded."""
    compute = Compute(dtype=stage.compute.dtype, remat=stage.compute.remat)
    policy_model = ModelSource(models.build(config, compute, placement_of(mesh)), None)
    value_model = ModelSource(models.build(config.replace(scalar_head=True), compute, placement_of(mesh)), None)
    policy, value = (
        TrainStateInit(stage, it, make_optimizer(stage.optimizer, 10), mesh) for it in (policy_model, value_model)
    )

    def frozen(model):
        cast = functools.partial(cast_kernels, dtype=compute.dtype)
        return sharding.with_shardings(jax.eval_shape(cast, model.decoder.abstract_params()), model.layout(mesh))

    programs = RLPrograms(stage, mesh, policy, value)
    stale_policies = jax.eval_shape(programs.policy_of, policy.abstract().params, {})
    generator = Generator(Engine(policy_model.decoder, slots=stage.sampling.slots, mesh=mesh), None, stage.sampling)
    return RolloutJob(
        name="ppo", folder=None, mesh=mesh,
        abstract_state=rl_stage._abstract_state(stage, policy, value, stale_policies),
        layout=rl_stage._state_layout(stage, policy, value, mesh), fresh_state=None, fingerprint="", validates=False,
        validate_every=None, steps=1, checkpoints=stage.checkpoints, monitoring=stage.monitoring, meta={}, stage=stage,
        policy=policy, value=value, programs=programs, generator=generator,
        rollout_layout=policy_model.layout(mesh), decode_mesh=mesh,
        frozen={}, reference=frozen(policy_model), scorer=SimpleNamespace(params=frozen(value_model), mesh=mesh),
        loader=SimpleNamespace(cache=SimpleNamespace(manifest={"spec": {"template": "tulu"}})), held_out=None,
        tokenizer=SimpleNamespace(vocab_size=config.vocab_used, eos_id=1, special=lambda name: 1),
    )  # fmt: skip


@pytest.mark.slow
def test_the_memory_of_a_billion_parameters_over_eight_devices_is_that_of_the_programs(record_property):
    config, mesh = models.preset("olmo2-1b"), make_mesh("fsdp=8")
    stage = PPO(
        "ppo", init="sft", data=rl_kit.prompts("nowhere"), batch=16, mini_batch=16, steps=1, optimizer=rl_kit.RATE,
        reward=Reward(model="reward"), sampling=Sampling(512, slots=16),
        compute=Compute(dtype="bfloat16", remat="full"),
    )  # fmt: skip
    with jax.set_mesh(mesh):
        loop = RolloutLoop(abstract_job(config, mesh, stage))
        programs = loop.compiled(loop.batches.abstract(1024))
        memory = memory_of(loop.job, loop.abstract, loop.engine, programs, 1024)
    analyses = {name: program.memory_analysis() for name, program in programs.items()}
    programs_need = sum(it.argument_size_in_bytes for it in analyses.values())
    programs_need += max(it.temp_size_in_bytes for it in analyses.values())
    frozen = bytes_of(loop.job.reference) + bytes_of(loop.job.scorer.params)
    while_updating = sum(memory.resident.values()) + sum(memory.update.values())
    record_property("MiB estimated and needed", (while_updating / MIB, (programs_need + frozen) / MIB))
    assert while_updating == pytest.approx(programs_need + frozen, rel=0.01)
    assert memory.peak >= while_updating
    # By hand: float32 parameters and two moments in eighths, frozen kernels in bfloat16; norms are whole and float32.
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(loop.model.abstract_params()))
    assert memory.resident["policy"] == pytest.approx(4 * count / 8, rel=0.005)
    assert memory.resident["optimizer state"] == pytest.approx(8 * count / 8, rel=0.005)
    assert memory.resident["reference"] == pytest.approx(2 * count / 8, rel=0.005)
    assert memory.generation["weights"] == pytest.approx(
        2 * count, rel=0.005
    )  # replicated on each device during generation
    assert f"peak {memory.peak / MIB:,.1f}" in str(memory)
