"""Tiny models of every family, of odd shapes, with weights that are the same on every machine.

Parity tests compare them with public implementations; the golden arrays hold what those computed.
"""

from __future__ import annotations

import numpy as np

from models import trees
from models.config import DecoderConfig, Experts, RopeScaling
from models.families import gemma2, llama, mistral, olmo, olmoe, qwen2

VOCAB = 67
# A large eps, so that a model with another one computes visibly different logits.
_ODD = {"layers": 3, "width": 40, "heads": 5, "ffn": 52, "vocab": VOCAB, "context": 128, "norm_eps": 1e-2}
_OLMO1 = {**_ODD, **olmo.ARCHITECTURES["olmo"], "rope_theta": 10_000.0}
_OLMO2 = {**_ODD, **olmo.ARCHITECTURES["olmo2"]}
_OLMO3 = {**_ODD, **olmo.ARCHITECTURES["olmo3"]}
_LLAMA = {**_ODD, **llama.ARCHITECTURE}
_QWEN2 = {**_ODD, **qwen2.ARCHITECTURE, "rope_theta": 1e6}
_MISTRAL = {**_ODD, **mistral.ARCHITECTURE, "rope_theta": 1e6}
# Soft caps far below the scores and logits of these weights, so that leaving one out shows.
_GEMMA2 = {
    **_ODD, **gemma2.ARCHITECTURE, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 12, "rope_theta": 10_000.0,
    "tie_embeddings": True, "window": 6, "full_attention_every": 2, "attention_softcap": 1.5, "logits_softcap": 3.0,
}  # fmt: skip
_YARN = RopeScaling("yarn", factor=4.0, original_context=16)

CASES: dict[str, DecoderConfig] = {
    "olmo": DecoderConfig("olmo", **_OLMO1),
    "olmo-clipped-tied": DecoderConfig("olmo", **_OLMO1, qkv_clip=0.5, tie_embeddings=True),
    "olmo2": DecoderConfig("olmo2", **_OLMO2),
    "olmo2-grouped-wide-heads": DecoderConfig("olmo2", **{**_OLMO2, "heads": 6}, kv_heads=2, head_dim=12),
    "olmo3": DecoderConfig("olmo3", **{**_OLMO3, "layers": 5}, window=5),
    "olmo3-grouped-yarn": DecoderConfig(
        "olmo3", **{**_OLMO3, "layers": 4, "heads": 4}, kv_heads=2, window=7, rope_theta=1000.0, rope_scaling=_YARN
    ),
    "olmo3-irregular": DecoderConfig(
        "olmo3", **{**_OLMO3, "layers": 5}, window=5, full_attention_layers=(0, 3), rope_scaling=_YARN
    ),
    "olmoe": DecoderConfig(
        "olmoe", **{**_ODD, **olmoe.ARCHITECTURE, "ffn": 12}, rope_theta=10_000.0, experts=Experts(7, 3)
    ),
    "llama2": DecoderConfig("llama", **_LLAMA, rope_theta=10_000.0),
    # Rotations of head_dim 24 fall in all three ranges of the frequency rule.
    "llama3-grouped-tied": DecoderConfig(
        "llama", **{**_LLAMA, "heads": 4}, kv_heads=2, head_dim=24, tie_embeddings=True,
        rope_scaling=RopeScaling("llama3", factor=8.0, original_context=64),
    ),
    "llama-linear": DecoderConfig("llama", **_LLAMA, rope_scaling=RopeScaling("linear", factor=3.0)),
    "qwen2-grouped-tied": DecoderConfig("qwen2", **{**_QWEN2, "heads": 4}, kv_heads=1, tie_embeddings=True),
    "qwen2-yarn": DecoderConfig("qwen2", **_QWEN2, head_dim=16, rope_scaling=_YARN),
    "qwen2-windows": DecoderConfig("qwen2", **_QWEN2, head_dim=16, window=6, full_attention_layers=(0,)),
    "mistral-grouped": DecoderConfig("mistral", **{**_MISTRAL, "heads": 4}, kv_heads=2, head_dim=10),
    "mistral-windows": DecoderConfig("mistral", **_MISTRAL, head_dim=8, window=6, full_attention_every=4),
    "gemma2": DecoderConfig("gemma2", **_GEMMA2, query_scalar=7.0),
    "gemma2-without-caps": DecoderConfig(
        "gemma2", **{**_GEMMA2, "attention_softcap": None, "logits_softcap": None}, query_scalar=12.0
    ),
}  # fmt: skip


def uniform(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in [-1, 1): a hash of each element's index (splitmix64), so no generator's version matters."""
    start = np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64) + start
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)).reshape(shape)


def random_params(model, seed: int = 0) -> dict:
    """Parameters whose every leaf is random, norm scales and biases too, so that swapped tensors change the logits."""
    leaves = {}
    for i, (path, leaf) in enumerate(sorted(trees.flatten(model.abstract_params()).items())):
        noise = uniform(1000 * seed + i, leaf.shape)
        if path.endswith(".scale"):
            leaves[path] = 1 + noise / 2
        elif path.endswith(".kernel"):
            leaves[path] = noise * np.float32(leaf.shape[-2] ** -0.5 * 1.7)
        elif path == "embed.table" and model.config.norm == "layernorm":
            leaves[path] = noise * np.float32(0.05)  # OLMo 1 fixes eps at 1e-5: small inputs let it show
        else:
            leaves[path] = noise
    return trees.unflatten(leaves)


def random_tokens(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """int32 token ids."""
    return ((uniform(seed + 7, shape) + 1) / 2 * VOCAB).astype(np.int32)
