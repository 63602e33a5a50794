"""Our side of benchmarks/train.py: the train step of easylm_jax, and separate programs for its parts."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import burst, document_batch, serve, take_stdout, timed

from easylm_jax.runtime.host_memory import keep_freed_memory

CHANNEL = take_stdout()
keep_freed_memory()  # as `easylm run` does

import jax  # noqa: E402 - after standard output is redirected
import jax.numpy as jnp  # noqa: E402

import models  # noqa: E402
from easylm_jax.config import fields  # noqa: E402
from easylm_jax.config.optimizer import OptimizerConfig  # noqa: E402
from easylm_jax.objectives import language_modelling  # noqa: E402
from easylm_jax.train.optimizer import make_optimizer  # noqa: E402
from easylm_jax.train.step import State, gradients, make_train_step, new_state  # noqa: E402
from models.attention import attention  # noqa: E402
from models.config import Compute, DecoderConfig  # noqa: E402
from models.grouped_matmul import backend_for  # noqa: E402
from models.heads import token_scores  # noqa: E402
from models.moe import ExpertKernels, mixture  # noqa: E402


def shape_of(spec: dict[str, Any]) -> DecoderConfig:
    """The model: an OLMo 2 of a shape, or a preset, with the balancing loss of transformers, which has no z-loss."""
    if spec["model"] is None:
        return DecoderConfig(family="olmo2", context=spec["length"], qk_norm=True, **spec["shape"])
    config = models.preset(spec["model"]).replace(context=spec["length"])
    if config.experts is None:
        return config
    return config.replace(experts=dataclasses.replace(config.experts, form="hf", router_z=0.0))


class Side:
    """A model, its train state, and one batch that every step uses."""

    def __init__(self, spec: dict[str, Any]):
        config = shape_of(spec)
        compute = Compute()
        for setting in spec["compute"]:
            name, _, value = setting.partition("=")
            compute = fields.override(compute, name, value)
        self.model = models.build(config, compute)
        self.objective = language_modelling(self.model)
        self.optimizer = make_optimizer(
            OptimizerConfig(
                spec["lr"], b1=spec["b1"], b2=spec["b2"], eps=spec["eps"], weight_decay=spec["weight_decay"],
                clip=spec["clip"],
            ),
            total_steps=10**6,
        )  # fmt: skip
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        if spec["weights"]:  # a peer starts from the same weights
            models.save_hf(self.model, self.params, spec["weights"])
        self.batch = jax.device_put(document_batch(spec["tokens"]))
        self.state = self._fresh_state()
        self.compiled = make_train_step(self.objective, self.optimizer).lower(self.state, self.batch, {}).compile()

    def _fresh_state(self) -> State:
        params = jax.tree.map(jnp.copy, self.params)  # a step donates the memory of its state
        return new_state(params, self.optimizer.init(params), 0)

    def step(self) -> float:
        """One update; returns its loss."""
        self.state, metrics = self.compiled(self.state, self.batch, {})
        return float(metrics["loss"])

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Programs for the parts of a step; `benchmarks/train.py` combines them."""
        key, (rows, length), c = jax.random.key(0), self.batch["tokens"].shape, self.model.config
        forward = jax.jit(lambda p: self.objective(p, self.batch, key, {}).total)
        gradient = jax.jit(lambda p: gradients(self.objective, p, self.batch, key, {})[0])
        hidden = jax.random.normal(key, (rows, length, c.width))
        kernel = self.model.head_kernel(self.params)
        return {
            "forward": lambda: jax.block_until_ready(forward(self.params)),
            "gradient": lambda: jax.block_until_ready(gradient(self.params)),
            "attention": self._attention(),
            "head": self._head(hidden, kernel),
            "optimizer": self._update(gradient(self.params)),
            **({} if c.experts is None else {"experts": self._experts(hidden, c.experts.active)}),
        }

    def _attention(self) -> Callable[[], Any]:
        """Attention of one layer without projections, forward and backward."""
        c, (rows, length) = self.model.config, self.batch["tokens"].shape
        q = jax.random.normal(jax.random.key(1), (rows, length, c.heads, c.head_dim))
        k = v = q[:, :, : c.kv_heads]

        def run(q, k, v, cotangent):
            out, back = jax.vjp(
                lambda q, k, v: attention(
                    q, k, v, segment_ids=self.batch["segment_ids"], window=c.pattern[0],
                    kernel=self.model.compute.attention, platform=self.model.platform,
                ), q, k, v,
            )  # fmt: skip
            return out, back(cotangent)

        compiled = jax.jit(run)
        return lambda: jax.block_until_ready(compiled(q, k, v, q))

    def _experts(self, x: jax.Array, active: int) -> Callable[[], Any]:
        """The router and the experts of the first layer, forward and backward."""
        layer = jax.tree.map(lambda leaf: leaf[0], self.params["layers"]["moe"])
        kernels = ExpertKernels(**{name: layer[name]["kernel"] for name in ExpertKernels._fields})
        backend = backend_for(self.model.platform)

        def run(x, kernels, cotangent):
            out, back = jax.vjp(lambda x, kernels: mixture(x, kernels, active, backend=backend)[0], x, kernels)
            return out, back(cotangent)

        compiled = jax.jit(run)
        return lambda: jax.block_until_ready(compiled(x, kernels, x))

    def _head(self, hidden: jax.Array, kernel: jax.Array) -> Callable[[], Any]:
        """The vocabulary head and its loss, forward and backward."""

        def loss(hidden, kernel):
            scores = token_scores(hidden, kernel, self.batch["targets"], chunk=self.model.compute.logits_chunk)
            return -scores.logprobs.mean()

        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return lambda: jax.block_until_ready(compiled(hidden, kernel))

    def _update(self, grads: Any) -> Callable[[], Any]:
        """The optimiser's update, in place as in a step."""

        def update(state: State, grads: Any) -> tuple[State, Any]:
            loss = jnp.ones(())
            params, opt, info = self.optimizer.update(grads, loss, state.opt, state.params, state.step)
            return State(state.step + 1, params, opt, state.rng), info

        compiled, kept = jax.jit(update, donate_argnums=0), [self._fresh_state()]

        def run() -> None:
            kept[0], info = compiled(kept[0], grads)
            jax.block_until_ready((kept[0], info))

        return run


class Products:
    """Matrix products alone: y = x W, dx = dy Wᵀ and dW = xᵀ dy of [tokens, inputs] by [inputs, outputs]."""

    def __init__(self) -> None:
        self._runs: dict[tuple[int, ...], list[Callable[[], Any]]] = {}

    def __call__(self, shapes: list[list[int]], times: int) -> dict[str, Any]:
        return {"seconds": [[timed(run, times) for run in self._made(tuple(shape))] for shape in shapes]}

    def _made(self, shape: tuple[int, ...]) -> list[Callable[[], Any]]:
        if shape not in self._runs:
            (m, k, n), key = shape, jax.random.key(0)
            x, w, dy = (jax.random.normal(key, size) for size in ((m, k), (k, n), (m, n)))
            forms = ((x, w, 1, 0), (dy, w, 1, 1), (x, dy, 0, 0))
            self._runs[shape] = [_product(*form) for form in forms]
        return self._runs[shape]


def _product(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> Callable[[], Any]:
    compiled = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ()))))
    return lambda: compiled(a, b).block_until_ready()


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    keep_freed_memory()  # as `easylm run` does
    began = time.perf_counter()
    side = Side(spec)
    about = {
        "jax": jax.__version__, "platform": jax.default_backend(), "first_loss": side.step(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(side.params)),
        "temporary_bytes": side.compiled.memory_analysis().temp_size_in_bytes,
        "ready_seconds": time.perf_counter() - began,
    }  # fmt: skip
    made: dict[str, Callable[[], Any]] = {}

    def parts(times: int) -> dict[str, Any]:
        made.update(made or {"step": side.step, **side.parts()})
        return {"seconds": {name: timed(run, times) for name, run in made.items()}}

    serve(about, {"burst": lambda steps: burst(side.step, steps), "parts": parts, "products": Products()}, CHANNEL)


if __name__ == "__main__":
    main()
