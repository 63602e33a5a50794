"""Decode attention as a TPU kernel, interpreted: what the cache holds, attended by the definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import VOCAB, random_params

import models
from easylm_jax.decode import Engine, forward
from easylm_jax.runtime.mesh import BATCH_AXES, make_mesh
from models.config import DecoderConfig, Placement
from models.decode_attention import _tiles, decode_attention, fits_kernel

LAYERS, HEAD = 3, 128


def case(rows, heads, kv, columns, dtype, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    shape = (LAYERS, rows, kv, columns, HEAD)
    return draw(rows, heads, HEAD), draw(*shape), draw(*shape)


def reference(q, keys, values, layer, counts, clock, window, softcap=None):
    q, k, v = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q, keys[layer], values[layer]))
    out, group = np.zeros_like(q), q.shape[1] // k.shape[1]
    for b, h in np.ndindex(*q.shape[:2]):
        low = max(0, clock - min(counts[b], counts[b] if window is None else window - 1))
        scores = k[b, h // group, low : clock + 1] @ q[b, h] / np.sqrt(HEAD)
        scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
        p = np.exp(scores - scores.max())
        out[b, h] = p @ v[b, h // group, low : clock + 1] / p.sum()
    return out


def apart(got, want):
    return np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()


@pytest.mark.parametrize(
    ("rows", "heads", "kv", "columns", "window", "block"),
    [
        (3, 8, 8, 256, None, 128),  # a query a head
        (4, 8, 2, 384, None, 128),  # groups of four
        (6, 2, 1, 384, 100, 128),  # one head, several rows a block, a window
        (2, 4, 4, 320, None, 128),  # ragged: the last block is half there
        (4, 4, 4, 256, 3, None),
    ],
)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 6e-3)])
def test_the_kernel_attends_to_a_rows_own_columns(rows, heads, kv, columns, window, block, dtype, bound):
    q, keys, values = case(rows, heads, kv, columns, dtype)
    clock = columns - 21
    counts = np.linspace(0, clock, rows).astype(np.int32)  # the first row has nothing but its own new token
    layer = rows % LAYERS
    out = decode_attention(q, keys, values, layer, counts, clock, window=window, block=block, interpret=True)
    assert out.dtype == q.dtype
    assert apart(out.astype(jnp.float32), reference(q, keys, values, layer, counts, clock, window)) <= bound


def test_the_kernel_bounds_scores_by_a_soft_cap():
    q, keys, values = case(3, 4, 2, 256, "float32")
    counts = np.array([0, 100, 200], np.int32)
    out = decode_attention(q, keys, values, 1, counts, 230, softcap=0.7, block=128, interpret=True)
    assert apart(out, reference(q, keys, values, 1, counts, 230, None, 0.7)) <= 1e-6
    assert apart(out, reference(q, keys, values, 1, counts, 230, None)) > 1e-3


def test_what_no_row_can_see_is_never_used():
    """Columns before a row's span and behind the clock hold NaN, where blocks of them are left out."""
    q, keys, values = case(2, 8, 8, 512, "float32")
    hidden = np.ones(512, bool)
    hidden[128:384] = False
    bad = [jnp.where(hidden[:, None], np.nan, x) for x in (keys, values)]
    counts = np.array([150, 200], np.int32)
    out = decode_attention(q, *bad, 1, counts, 350, block=128, interpret=True)
    assert apart(out, reference(q, keys, values, 1, counts, 350, None)) <= 1e-6


@pytest.mark.parametrize("mesh", ["dp=8", "fsdp=4,tp=2"])
def test_a_mesh_attends_as_one_device_does(mesh):
    q, keys, values = case(8, 8, 4, 128, "float32")
    counts = np.arange(8, dtype=np.int32) * 11
    run = functools.partial(decode_attention, layer=1, clock=100, interpret=True)
    want = run(q, keys, values, counts=counts)
    with jax.set_mesh(make_mesh(mesh)):
        got = jax.jit(functools.partial(run, placement=Placement(BATCH_AXES, None, "tp")))(
            q, keys, values, counts=counts
        )
    assert apart(got, np.asarray(want, np.float64)) <= 1e-6


def test_the_kernel_is_for_tpus_and_whole_tiles():
    assert fits_kernel("tpu", 128, 512, "bfloat16") and fits_kernel("tpu", 256, 640, "float32")
    assert not fits_kernel("cpu", 128, 512, "bfloat16") and not fits_kernel("gpu", 128, 512, "bfloat16")
    assert not fits_kernel("tpu", 64, 512, "bfloat16") and not fits_kernel("tpu", 128, 544, "bfloat16")


def test_blocks_fill_fast_memory_and_divide_the_cache():
    assert _tiles(64, 8, 1, 2048, 256, None) == (1, 8, 1024)
    assert _tiles(64, 2, 1, 2048, 256, None) == (2, 2, 2048)
    assert _tiles(64, 1, 4, 512, 256, None) == (8, 1, 512)
    assert _tiles(6, 40, 1, 2048, 256, None)[1] == 40
    assert _tiles(3, 12, 1, 2048, 256, None) == (1, 12, 640)


def test_generation_through_the_kernel_gives_the_tokens_of_the_plain_path(monkeypatch):
    config = DecoderConfig(
        "olmo3", layers=2, width=256, heads=2, kv_heads=1, ffn=64, vocab=VOCAB, context=256, qk_norm=True, window=9,
        full_attention_every=2,
    )  # fmt: skip
    model = models.build(config)
    params = random_params(model)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, n).tolist() for n in (3, 40, 17)]

    def generated():
        engine = Engine(model, slots=4, block=8, unroll=False)
        engine.least_bucket = 64  # columns in whole tiles of 128
        return engine.generate(params, prompts, max_new_tokens=12, samples=2, seed=1)

    plain = generated()
    calls = []
    attend = forward.attend_cached

    def interpreted(*args, platform, **more):
        calls.append(args[4][0].shape)
        return attend(*args, platform="tpu", interpret=True, **more)

    monkeypatch.setattr(forward, "attend_cached", interpreted)
    monkeypatch.setattr("easylm_jax.decode.engine._round_up", lambda n, m: -(-n // (128 if m == 32 else m)) * (
        128 if m == 32 else m))  # fmt: skip
    kernel = generated()
    assert calls and all(shape[3] % 128 == 0 for shape in calls)
    assert kernel.tokens.tolist() == plain.tokens.tolist()
    assert np.abs(kernel.logprobs - plain.logprobs).max() <= 1e-5
