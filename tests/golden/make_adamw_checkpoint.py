"""Writes `adamw_checkpoint/` and `adamw_after.npz` with the code of this checkout: a train state, and three updates on.

    python tests/golden/make_adamw_checkpoint.py FOLDER

The files that are kept were written by the optimiser that wrote its moments out by hand, before optax's protocol. They
are not to be made again with later code: what they show is that later code goes on where that one stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.checkpoint.checkpointer import Checkpointer
from easylm_jax.config.optimizer import OptimizerConfig, SkipStep
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.step import State, new_state
from models.trees import leaf_names

CONFIG = OptimizerConfig("1e-2 cosine to 10% warmup 2 steps", skip_step=SkipStep(window=8, min_values=4))
SHAPES = {
    "embed": {"table": (16, 8)},
    "layers": {"mlp": {"up": {"kernel": (2, 8, 16)}}, "post_ffn_norm": {"scale": (2, 8)}},
    "head": {"kernel": (8, 16)},
}


def draw(seed: int):
    """A tree of parameters, or of gradients."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(random.normal(size=s), jnp.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple)
    )


def updated(state: State, steps: range) -> State:
    """The state after these updates; the gradient of step 2 is not finite."""
    optimizer = make_optimizer(CONFIG, 10)
    update = jax.jit(optimizer.update)
    for step in steps:
        grads = draw(100 + step)
        if step == 2:
            grads["head"]["kernel"] = grads["head"]["kernel"].at[0, 0].set(jnp.nan)
        params, opt, _ = update(grads, 2.0 + 0.01 * step, state.opt, state.params, state.step)
        state = State(state.step + 1, params, opt, state.rng)
    return state


def first_state() -> State:
    return new_state(draw(0), make_optimizer(CONFIG, 10).init(draw(0)), 0)


def main() -> None:
    folder = Path(sys.argv[1])
    state = updated(first_state(), range(4))
    with Checkpointer(folder / "adamw_checkpoint", asynchronous=False) as checkpointer:
        checkpointer.save(4, state, {"config": {"optimizer": {"lr": CONFIG.lr}}})
    after = updated(state, range(4, 7))
    np.savez(
        folder / "adamw_after.npz", **dict(zip(leaf_names(after), map(np.asarray, jax.tree.leaves(after)), strict=True))
    )


if __name__ == "__main__":
    main()
