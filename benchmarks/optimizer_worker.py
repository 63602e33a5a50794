"""One side of benchmarks/optimizer.py: a train step, and its update alone, of easylm_jax in a given checkout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import burst, document_batch, serve, take_stdout

CHANNEL = take_stdout()
SPEC = json.loads(Path(sys.argv[1]).read_text())
sys.path.insert(0, SPEC["checkouts"][sys.argv[2]])  # before this script's own checkout, which `common` puts first

import jax  # noqa: E402 - what these print must not reach the channel
import jax.numpy as jnp  # noqa: E402

import easylm_jax  # noqa: E402
import models  # noqa: E402
from easylm_jax.config import fields  # noqa: E402
from easylm_jax.config.optimizer import OptimizerConfig  # noqa: E402
from easylm_jax.objectives import language_modelling  # noqa: E402
from easylm_jax.runtime.host_memory import keep_freed_memory  # noqa: E402
from easylm_jax.train.optimizer import make_optimizer  # noqa: E402
from easylm_jax.train.step import State, make_train_step, new_state  # noqa: E402
from models.config import DecoderConfig  # noqa: E402


class Side:
    """A model, its train state and one batch; whole steps, and updates with fixed gradients, both in place."""

    def __init__(self) -> None:
        config = DecoderConfig(family="olmo2", context=SPEC["length"], qk_norm=True, **SPEC["shape"])
        model = models.build(config)
        optimizer = OptimizerConfig(3e-4)
        for setting in SPEC["settings"]:
            name, _, value = setting.partition("=")
            optimizer = fields.override(optimizer, name, value)
        self.optimizer = make_optimizer(optimizer, total_steps=10**6)
        params = jax.jit(model.init)(jax.random.key(0))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.state = new_state(params, self.optimizer.init(params), 0)
        self.batch = jax.device_put(document_batch(SPEC["tokens"]))
        step = make_train_step(language_modelling(model), self.optimizer)
        self.step = step.lower(self.state, self.batch, {}).compile()
        # Gradients of the size of a model's after some training; the update's work does not depend on them.
        self.grads = jax.tree.map(lambda p: 1e-3 * jax.random.normal(jax.random.key(1), p.shape), params)
        update = jax.jit(self._updated, donate_argnums=0)
        self.update = update.lower(self.state, self.grads).compile()

    def _updated(self, state: State, grads: Any) -> tuple[State, Any]:
        params, opt, info = self.optimizer.update(grads, jnp.ones(()), state.opt, state.params, state.step)
        return State(state.step + 1, params, opt, state.rng), info

    def whole(self) -> float:
        """One step; its loss."""
        self.state, metrics = self.step(self.state, self.batch, {})
        return float(metrics["loss"])

    def alone(self) -> float:
        """One update; the norm of the parameters after it."""
        self.state, info = self.update(self.state, self.grads)
        return float(info["param_norm"])


def _memory(program: Any) -> dict[str, int]:
    """Of a compiled program: bytes beside its arguments and at its peak, operations, bytes read and written by them."""
    found, cost = program.memory_analysis(), program.cost_analysis() or {}
    return {
        "temporary": found.temp_size_in_bytes, "peak": int(getattr(found, "peak_memory_in_bytes", 0)),
        "flops": int(cost.get("flops", 0)), "touched": int(cost.get("bytes accessed", 0)),
    }  # fmt: skip


def main() -> None:
    keep_freed_memory()  # as `easylm run` does
    began = time.perf_counter()
    side = Side()
    losses = [side.whole() for _ in range(3)]
    side.alone()
    about = {
        "code": str(Path(easylm_jax.__file__).parent), "jax": jax.__version__, "platform": jax.default_backend(),
        "parameters": side.parameters, "losses": losses,
        "memory": {"step": _memory(side.step), "update": _memory(side.update)},
        "ready_seconds": time.perf_counter() - began,
    }  # fmt: skip
    works: dict[str, Callable[[], float]] = {"step": side.whole, "update": side.alone}
    serve(about, {name: lambda steps, work=work: burst(work, steps) for name, work in works.items()}, CHANNEL)


if __name__ == "__main__":
    main()
