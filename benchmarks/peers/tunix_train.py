"""The peer `tunix`: Google's Tunix training its Llama, as a worker of benchmarks/train.py.

Runs in `.peers/tunix`. The model has the shape asked for, but is Llama (norms before the sub-layers, no QK-norm): a
little less work than OLMo 2. The step is the compiled one of Tunix's own trainer, called without the trainer's loop and
with its graph cached, which is the quickest way that Tunix offers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import burst, serve, take_stdout

CHANNEL = take_stdout()

import importlib.metadata  # noqa: E402 - after standard output is redirected

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.models.llama3 import model as llama  # noqa: E402
from tunix.sft import peft_trainer, utils  # noqa: E402


def train_step(spec: dict[str, Any]):
    """A function that performs one update and returns its loss."""
    shape = spec["shape"]
    config = llama.ModelConfig(
        num_layers=shape["layers"], vocab_size=shape["vocab"], embed_dim=shape["width"], hidden_dim=shape["ffn"],
        num_heads=shape["heads"], head_dim=shape["width"] // shape["heads"], num_kv_heads=shape["heads"],
        rope_theta=500_000, norm_eps=1e-6,
    )  # fmt: skip
    model = llama.Llama3(config, rngs=nnx.Rngs(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    optimizer = optax.chain(
        optax.clip_by_global_norm(spec["clip"]),
        optax.adamw(spec["lr"], spec["b1"], spec["b2"], spec["eps"], weight_decay=spec["weight_decay"]),
    )
    # An optimizer over the model's parameters; the trainer writes neither checkpoints nor metrics here.
    trainer = peft_trainer.PeftTrainer(
        model, optimizer, peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=10**9)
    )

    def inputs(batch: peft_trainer.TrainingInput) -> dict[str, jax.Array]:
        mask = batch.input_tokens >= 0
        return {
            "input_tokens": batch.input_tokens,
            "input_mask": batch.input_mask,
            "positions": utils.build_positions_from_mask(mask),
            "attention_mask": utils.make_causal_attn_mask(mask),
        }

    trainer = trainer.with_gen_model_input_fn(inputs)
    rows = jnp.asarray(spec["tokens"], jnp.int32)[:, : spec["length"]]
    batch = peft_trainer.TrainingInput(input_tokens=rows, input_mask=jnp.ones(rows.shape, bool))
    run, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    return lambda: float(run(batch)[0])


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    step = train_step(spec)
    first_loss = step()
    about = {
        "tunix": importlib.metadata.version("google-tunix"), "jax": jax.__version__, "first_loss": first_loss,
        "ready_seconds": time.perf_counter() - began,
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(step, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
