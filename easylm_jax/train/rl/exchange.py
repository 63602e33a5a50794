"""What training and rollout processes of a run give each other: new parameters, and rollouts.

With `rollout_devices` of whole processes, all processes run the same loop (`trainer.RolloutLoop`), but only those with
devices of the training mesh train, and only the others sample. Once a step they meet here:

    training processes   … updates of step n − 1 ─┐ exchange n ┌─ scores and updates of step n …
    rollout processes    … rollout n ─────────────┘            └─ rollout n + 1 …

In exchange n the rollout processes get the parameters after step n − 1 and everybody the rollout n. Everything else
that all processes do together (stopping, saving, validating) comes after both have done their work of the step.
"""

from __future__ import annotations

import pickle
from typing import Any

import jax

from easylm_jax.runtime import processes
from easylm_jax.runtime.transfer import Transfer

PyTree = Any


class Exchange:
    """Moves policies from the training mesh to the rollout mesh, and values of one process to all.

    Args:
        policy: shapes of the parameters that sample rollouts.
        source, target: their shardings on the devices that train, and on those that sample.
        train, rollout: the two meshes, which have no process in common.
    """

    def __init__(
        self, policy: PyTree, source: PyTree, target: PyTree, train: jax.sharding.Mesh, rollout: jax.sharding.Mesh
    ):
        self._trainers, self._samplers = processes.of_mesh(train), processes.of_mesh(rollout)
        self._transfer = Transfer(policy, source, target)

    @property
    def trains(self) -> bool:
        """Whether this process trains; otherwise it samples rollouts."""
        return jax.process_index() in self._trainers

    def policy(self, policy: PyTree | None) -> PyTree:
        """The policy on the devices that sample rollouts; training processes give it, the others None."""
        return self._transfer(policy)

    def from_samplers(self, value: Any) -> Any:
        """The value that the first rollout process gives, on every process."""
        return self._from(self._samplers[0], value)

    def from_trainers(self, value: Any) -> Any:
        """The value that the first training process gives, on every process."""
        return self._from(self._trainers[0], value)

    def _from(self, process: int, value: Any) -> Any:
        given = pickle.dumps(value) if process == jax.process_index() else None
        return pickle.loads(processes.broadcast_bytes(given, process))
