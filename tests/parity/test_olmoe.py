"""OLMoE beside `transformers`: auxiliary losses, gradients, and the losses of thirty updates with torch's AdamW.

Logits and the format are compared with those of the dense families, in `test_dense_logits.py`.
"""

import re

import jax
import numpy as np
import pytest
from tiny_models import CASES, random_params, random_tokens

import models
from easylm_jax.config.optimizer import OptimizerConfig
from easylm_jax.objectives import language_modelling
from easylm_jax.train.optimizer import make_optimizer
from easylm_jax.train.step import gradients, make_train_step, new_state
from models.hf.convert import family_of, iter_hf_tensors
from models.moe import aux_losses

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
BAR = 2e-4


def with_losses_of_transformers(config):
    """`transformers` has no z-loss and pools layers before it balances them."""
    if config.experts is None:
        return config
    made = models.Experts(config.experts.count, config.experts.active, load_balancing=0.1, router_z=0.0, form="hf")
    return config.replace(experts=made)


def both(name, folder):
    """A model, its parameters, and the same in `transformers`, which reports the routers' losses."""
    config = with_losses_of_transformers(CASES[name])
    model = models.build(config)
    params = random_params(model)
    models.save_hf(model, params, folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    reference.config.output_router_logits = True
    return model, params, reference


def batch_of(seed, rows=3, length=21):
    """Whole rows of one document each."""
    tokens = random_tokens((rows, length + 1), seed=seed)
    return {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
        "loss_weights": np.ones((rows, length), np.float32),
    }  # fmt: skip


def loss_of(reference, batch):
    tokens, targets = (torch.as_tensor(batch[name].astype(np.int64)) for name in ("tokens", "targets"))
    return reference(input_ids=tokens, labels=targets, shift_labels=targets)


def as_kept_by_transformers(model, tree):
    """Our tree under the names of `transformers` in memory, where the experts of a layer are one tensor."""
    kept = {}
    for name, tensor in iter_hf_tensors(family_of(model.config).hf_table(model.config), tree):
        found = re.fullmatch(r"(.*\.experts)\.\d+\.(\w+)_proj\.weight", name)
        kept.setdefault(found.groups() if found else (name, ""), []).append(tensor)
    joined = {}
    for (name, part), tensors in kept.items():
        if not part:
            joined[name] = tensors[0]
        elif part == "down":
            joined[f"{name}.down_proj"] = np.stack(tensors)
        elif part == "gate":
            joined[f"{name}.gate_up_proj"] = np.concatenate([np.stack(tensors), np.stack(kept[name, "up"])], axis=1)
    return joined


@pytest.mark.parametrize("masked", (False, True))
def test_the_balancing_loss_is_that_of_transformers(masked):
    layers, rows, length, experts, k = 3, 2, 17, 8, 3
    logits = np.random.default_rng(0).normal(size=(layers, rows * length, experts)).astype(np.float32)
    mask = (np.arange(length) < 12) * np.ones((rows, 1), np.int64) if masked else None
    want = transformers.models.olmoe.modeling_olmoe.load_balancing_loss_func(
        tuple(map(torch.as_tensor, logits)), experts, k, None if mask is None else torch.as_tensor(mask)
    )
    got = aux_losses(logits, k, "hf", None if mask is None else mask.reshape(-1))
    np.testing.assert_allclose(got.load_balancing, want.numpy(), rtol=1e-5)


def test_loss_auxiliary_loss_and_gradients_are_those_of_transformers(tmp_path, record_property):
    model, params, reference = both("olmoe", tmp_path / "model")
    batch = batch_of(0)
    output = loss_of(reference, batch)
    output.loss.backward()
    step = jax.jit(lambda params: gradients(language_modelling(model), params, batch, jax.random.key(0), {}))
    grads, loss, metrics = step(params)
    assert abs(loss - output.loss.item()) <= BAR * abs(output.loss.item())
    assert abs(metrics["load_balancing"] - output.aux_loss.item()) <= BAR
    ours = as_kept_by_transformers(model, grads)
    theirs = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    assert ours.keys() == theirs.keys()
    worst = max(float(np.abs(ours[name] - want).max() / np.abs(want).max()) for name, want in theirs.items())
    record_property("largest difference of a gradient, relative to its largest element", worst)
    print(f"largest difference of a gradient, relative to its largest element: {worst:.1e}")
    assert worst <= BAR


@pytest.mark.parametrize("name", ("olmoe", "olmo2"))
def test_thirty_updates_have_the_losses_of_transformers_with_torchs_adamw(name, tmp_path, record_property):
    model, params, reference = both(name, tmp_path / "model")
    config = OptimizerConfig("2e-3 cosine to 10% warmup 5 steps", weight_decay=0.1, decay_embeddings=True)
    optimizer = make_optimizer(config, 30)
    adamw = torch.optim.AdamW(
        reference.parameters(), lr=1.0, betas=(config.b1, config.b2), eps=config.eps, weight_decay=0.1
    )
    params = jax.tree.map(jax.numpy.asarray, params)
    step = make_train_step(language_modelling(model), optimizer)
    state, worst, losses = new_state(params, optimizer.init(params), seed=0), 0.0, []
    for number in range(30):
        batch = batch_of(number % 6)
        state, metrics = step(state, batch, {})
        loss = loss_of(reference, batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), config.clip)
        for group in adamw.param_groups:
            group["lr"] = float(metrics["lr"])
        adamw.step()
        adamw.zero_grad()
        losses.append(float(metrics["loss"]))
        worst = max(worst, abs(losses[-1] - loss.item()) / loss.item())
    record_property("largest relative difference of a loss", worst)
    print(f"{name}: largest relative difference of a loss {worst:.1e}")
    assert losses[-1] < 0.8 * losses[0]
    assert worst <= 1e-4
