"""An estimate of the device memory of a reinforcement learning stage, by component, before its first step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from easylm_jax.decode import Engine
from easylm_jax.runtime.sharding import bytes_of
from easylm_jax.train.rl.job import RLState, RolloutJob
from models.decoder import cast_kernels

PyTree = Any
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, by component: `resident` always; `generation` and `update` in turn, during their phase."""

    resident: dict[str, int]
    generation: dict[str, int]
    update: dict[str, int]

    @property
    def peak(self) -> int:
        """The largest total over the phases of a step."""
        return sum(self.resident.values()) + max(sum(self.generation.values()), sum(self.update.values()))

    def __str__(self) -> str:
        def listed(components: dict[str, int]) -> str:
            return ", ".join(f"{name} {size / MIB:,.1f}" for name, size in components.items())

        return (
            f"MiB on a device: {listed(self.resident)}; in addition {listed(self.generation)} during generation, "
            f"{listed(self.update)} during updates; peak {self.peak / MIB:,.1f}"
        )


def memory_of(job: RolloutJob, state: RLState, engine: Engine, programs: dict[str, Any], longest: int) -> Memory:
    """The memory of a stage with the compiled updates `programs`; `longest` is its longest prompt plus response.

    Models and state may be arrays or shapes with shardings: nothing is allocated.
    """
    resident = {"policy": state.params, "optimizer state": state.opt, "frozen base": job.frozen.get("base")}
    if state.value is not None:
        resident |= {"value model": state.value.params, "its optimizer state": state.value.opt}
    resident |= {
        "reference": job.reference,
        "reward model": job.scorer.params,
        "stale policies": state.stale_policies or None,
    }
    generation = {"weights": _decode_weights(job), "cache": _decode_cache(job, engine, longest)}
    if job.stage.lora is not None or job.policy.model.compute.dtype != "float32":
        # Merged or cast for the rollout: the shape and dtype of the reference.
        generation["policy"] = bytes_of(job.reference)
    temporary = max(program.memory_analysis().temp_size_in_bytes for program in programs.values())
    return Memory(
        {name: bytes_of(tree) for name, tree in resident.items() if tree is not None},
        generation,
        {"temporaries": temporary},
    )


def _decode_weights(job: RolloutJob) -> int:
    """The engine's own copy of the policy, in the compute dtype and split over `tp` only."""
    model, layout = job.policy.model, job.policy.source.layout(job.mesh)
    cast = jax.eval_shape(functools.partial(cast_kernels, dtype=model.compute.dtype), model.abstract_params())

    def size(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> int:
        shards = job.decode_mesh.shape["tp"] if "tp" in sharding.spec else 1
        return leaf.size * leaf.dtype.itemsize // shards

    return sum(jax.tree.leaves(jax.tree.map(size, cast, layout)))


def _decode_cache(job: RolloutJob, engine: Engine, longest: int) -> int:
    """The key-value cache of the rows that are decoded at once."""
    config = job.policy.model.config
    item = jnp.dtype(job.policy.model.compute.dtype).itemsize
    per_column = 2 * config.layers * config.kv_heads * config.head_dim * item // job.decode_mesh.shape["tp"]
    return engine.slots // engine.split * engine.bucket(longest) * per_column
