"""Dense models compute what `transformers` computed when tests/golden/make_dense_goldens.py ran."""

import functools
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import CASES, random_params, random_tokens

import models
from models import trees

GOLDEN = Path(__file__).parent / "golden" / "dense_logits.npz"
BAR = 5e-5


@functools.cache
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def logits(config, params):
    model = models.build(config)
    return np.asarray(jax.jit(functools.partial(models.logits, model))(params, random_tokens((1, 23))))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name):
    params = random_params(models.build(CASES[name]))
    assert np.abs(logits(CASES[name], params) - golden()[name]).max() <= BAR


OPTIONS = [
    ("olmo-clipped-tied", {"qkv_clip": None}),
    ("olmo", {"norm_eps": 1e-6}),
    ("olmo", {"rope_theta": 500_000.0}),
    ("olmo2", {"norm_eps": 1e-3}),
    ("olmo3", {"window": 6}),
    ("olmo3", {"full_attention_every": 3}),
    ("olmo3-grouped-yarn", {"rope_scaling": None}),
    ("olmo3-irregular", {"full_attention_layers": (0, 2)}),
    ("llama3-grouped-tied", {"rope_scaling": None}),
    ("llama-linear", {"rope_scaling": None}),
    ("qwen2-yarn", {"rope_scaling": None}),
    ("qwen2-yarn", {"rope_theta": 10_000.0}),
    ("mistral-windows", {"window": 7}),
    ("gemma2", {"attention_softcap": None}),
    ("gemma2", {"logits_softcap": None}),
    ("gemma2", {"query_scalar": None}),
    ("gemma2", {"full_attention_every": 3}),
    ("gemma2", {"activation": "silu"}),
    ("gemma2", {"scale_embeddings": False}),
]


@pytest.mark.parametrize(
    ("name", "change"), OPTIONS, ids=lambda value: value if isinstance(value, str) else next(iter(value))
)
def test_golden_logits_tell_an_option_apart(name, change):
    params = random_params(models.build(CASES[name]))
    assert np.abs(logits(CASES[name].replace(**change), params) - golden()[name]).max() > 20 * BAR


@pytest.mark.parametrize("name", ["olmo2", "llama2", "qwen2-yarn"])
def test_golden_logits_tell_swapped_tensors_apart(name):
    model = models.build(CASES[name])
    leaves = trees.flatten(random_params(model))
    run = jax.jit(functools.partial(models.logits, model))
    pairs = [(a, b) for a, b in itertools.combinations(leaves, 2) if leaves[a].shape == leaves[b].shape]
    assert len(pairs) >= 6
    for a, b in pairs:
        swapped = trees.unflatten({**leaves, a: leaves[b], b: leaves[a]})
        assert np.abs(np.asarray(run(swapped, random_tokens((1, 23)))) - golden()[name]).max() > 20 * BAR, (a, b)
