"""Generation over eight simulated devices gives the tokens that one device gives."""

import jax
import numpy as np
import pytest
from tiny_models import VOCAB, random_params

import models
from easylm_jax.decode import Engine
from easylm_jax.runtime import sharding
from easylm_jax.runtime.mesh import batch_split, make_mesh
from models.config import DecoderConfig
from models.errors import UserError

CONFIG = DecoderConfig(
    "olmo2", layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=68, context=128, qk_norm=True, vocab_used=VOCAB
)
SETTINGS = {"max_new_tokens": 20, "samples": 2, "seed": 4, "eos_ids": (3, 9, 27)}


def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, n).tolist() for n in (3, 21, 8, 1, 17, 5, 9, 30, 12)]


@pytest.fixture(scope="module")
def one_device():
    model = models.build(CONFIG)
    params = random_params(model)
    return model, params, Engine(model, slots=8, block=10).generate(params, prompts(), **SETTINGS)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("dp=8", {}),
        ("fsdp=4,tp=2", {}),
        pytest.param("fsdp=4,tp=2", {"unroll": False, "gather_weights": False}, marks=pytest.mark.slow),
    ],
    ids=["dp", "tp", "tp-scanned-ungathered"],
)
def test_a_mesh_generates_what_one_device_does(one_device, text, choices):
    model, params, want = one_device
    mesh = make_mesh(text)
    placed = jax.device_put(params, sharding.parameter_shardings(params, model.sharding_rules, mesh))
    engine = Engine(model, slots=8, block=10, mesh=mesh, **choices)
    caches = []
    decode = engine._decode
    engine._decode = lambda *a: (caches.append(jax.tree.leaves(a[2])[0]), decode(*a))[1]
    out = engine.generate(placed, prompts(), **SETTINGS)
    assert out.lengths.tolist() == want.lengths.tolist()
    assert out.tokens.tolist() == want.tokens.tolist()
    assert np.abs(out.logprobs - want.logprobs).max() <= 1e-5
    for array in caches:  # rows over the batch axes and heads over tp, from the first block to the last
        part, whole = array.sharding.shard_shape(array.shape)[-4:], array.shape[-4:]
        assert part == (whole[0] // batch_split(mesh), whole[1] // mesh.shape["tp"], *whole[2:])


def test_slots_are_rounded_up_to_what_the_mesh_divides(one_device):
    model, params, want = one_device
    engine = Engine(model, slots=3, block=10, mesh=make_mesh("dp=8"))
    assert engine.slots == 8
    out = engine.generate(params, prompts()[:2], **SETTINGS)
    assert out.tokens.tolist() == want.tokens[:4].tolist()


def test_heads_that_tp_cannot_split_are_told():
    with pytest.raises(UserError, match="tp=4 cannot split 2 key-value heads"):
        Engine(models.build(CONFIG), mesh=make_mesh("dp=2,tp=4"))
