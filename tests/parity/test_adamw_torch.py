"""AdamW beside torch's over 50 updates: clip, decay on some parameters, a rate that changes at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm_jax.config.optimizer import OptimizerConfig
from easylm_jax.train.optimizer import make_optimizer
from models.trees import leaf_names

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity

SHAPES = {
    "embed": {"table": (64, 32)},
    "layers": {"up": {"kernel": (3, 32, 48)}, "norm": {"scale": (3, 32)}},
    "head": {"kernel": (32, 64)},
}


def draw(seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: random.normal(size=s).astype(np.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple)
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"b2": 0.999, "clip": None, "lr": "1e-2 constant"}, {"decay_norms_and_biases": False, "eps": 1e-5}],
    ids=["olmo2", "slow second moment", "tulu25"],
)
def test_fifty_updates_are_those_of_torch(fields, record_property):
    config = OptimizerConfig(**{"lr": "1e-2 cosine to 10% warmup 5 steps from 10%", **fields})
    opt = make_optimizer(config, total_steps=50)
    params = jax.tree.map(jnp.asarray, draw(0))
    names = leaf_names(params)
    theirs = {
        name: torch.nn.Parameter(torch.tensor(np.asarray(x)))
        for name, x in zip(names, jax.tree.leaves(params), strict=True)
    }
    spared = {"embed.table"} | (set() if config.decay_norms_and_biases else {"layers.norm.scale"})
    groups = [
        {"params": [theirs[name] for name in names if name not in spared], "weight_decay": config.weight_decay},
        {"params": [theirs[name] for name in names if name in spared], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(config.b1, config.b2), eps=config.eps)
    run, state = jax.jit(functools.partial(opt.update)), opt.init(params)
    for step in range(50):
        grads = jax.tree.map(lambda x, step=step: x * np.float32(0.02 if step % 3 else 1.0), draw(100 + step))
        params, state, info = run(grads, 1.0, state, params, step)
        for name, grad in zip(names, jax.tree.leaves(grads), strict=True):
            theirs[name].grad = torch.tensor(np.asarray(grad))
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), config.clip)
        for group in reference.param_groups:
            group["lr"] = float(info["lr"])
        reference.step()
    worst = 0.0
    for name, mine in zip(names, jax.tree.leaves(params), strict=True):
        want = theirs[name].detach().numpy()
        worst = max(worst, float(np.linalg.norm(mine - want) / np.linalg.norm(want)))
        np.testing.assert_allclose(mine, want, rtol=1e-6, atol=1e-6, err_msg=name)
    record_property("largest relative difference of a parameter", worst)
    assert worst <= 1e-6
