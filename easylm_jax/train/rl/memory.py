"""What a stage of reinforcement learning needs on one device, part by part, before its first step."""

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
    """Bytes on one device by what they are for: `stays` all the time; `writing` and `updating` come and go in turn."""

    stays: dict[str, int]
    writing: dict[str, int]
    updating: dict[str, int]

    @property
    def most(self) -> int:
        """What is needed when most is."""
        return sum(self.stays.values()) + max(sum(self.writing.values()), sum(self.updating.values()))

    def __str__(self) -> str:
        def shown(parts: dict[str, int]) -> str:
            return ", ".join(f"{name} {size / MIB:,.1f}" for name, size in parts.items())

        return (
            f"MiB on a device: {shown(self.stays)}; on top of that {shown(self.writing)} while it writes, "
            f"{shown(self.updating)} while it updates; at most {self.most / MIB:,.1f}"
        )


def memory_of(job: RolloutJob, state: RLState, engine: Engine, programs: dict[str, Any], longest: int) -> Memory:
    """The memory of a stage whose updates are `programs`; its longest prompt and response have `longest` tokens.

    Models and state may be arrays or their shapes with shardings: nothing is allocated.
    """
    stays = {"policy": state.params, "its moments": state.opt, "frozen base": job.frozen.get("base")}
    if state.value is not None:
        stays |= {"value model": state.value.params, "moments of that": state.value.opt}
    stays |= {
        "reference": job.reference,
        "reward model": job.judge.params,
        "older policies": state.stale_policies or None,
    }
    writing = {"weights": _decode_weights(job), "cache": _decode_cache(job, engine, longest)}
    if job.stage.lora is not None or job.policy.model.compute.dtype != "float32":
        writing["policy"] = bytes_of(job.reference)  # merged or cast for the rollout; of the reference's shape and type
    temporary = max(program.memory_analysis().temp_size_in_bytes for program in programs.values())
    return Memory(
        {name: bytes_of(tree) for name, tree in stays.items() if tree is not None}, writing, {"temporaries": temporary}
    )


def _decode_weights(job: RolloutJob) -> int:
    """The engine's own copy of the policy: in the type that is computed in, split over `tp` alone."""
    model, layout = job.policy.model, job.policy.source.layout(job.mesh)
    cast = jax.eval_shape(functools.partial(cast_kernels, dtype=model.compute.dtype), model.abstract_params())

    def size(leaf: jax.ShapeDtypeStruct, place: jax.sharding.NamedSharding) -> int:
        parts = job.decode_mesh.shape["tp"] if "tp" in place.spec else 1
        return leaf.size * leaf.dtype.itemsize // parts

    return sum(jax.tree.leaves(jax.tree.map(size, cast, layout)))


def _decode_cache(job: RolloutJob, engine: Engine, longest: int) -> int:
    """Keys and values of the rows that are decoded at once."""
    config = job.policy.model.config
    item = jnp.dtype(job.policy.model.compute.dtype).itemsize
    per_column = 2 * config.layers * config.kv_heads * config.head_dim * item // job.decode_mesh.shape["tp"]
    return engine.slots // engine.split * engine.bucket(longest) * per_column
