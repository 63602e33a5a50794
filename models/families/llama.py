"""Llama 2 (the base models of Tülu 2), 3, 3.1, 3.2 and 3.3: sizes, tensor names and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import DecoderConfig, RopeScaling
from models.hf import names

ARCHITECTURE = names.LLAMA_ARCHITECTURE
MODEL_TYPES = ("llama",)


def _llama2(layers: int, width: int, heads: int, ffn: int, **changes: Any) -> DecoderConfig:
    shape: dict[str, Any] = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "ffn": ffn,
        "vocab": 32000,
        "context": 4096,
    }
    rest: dict[str, Any] = {"norm_eps": 1e-5, "rope_theta": 10_000.0, "bos_id": 1, "eos_id": 2}
    return DecoderConfig("llama", **shape, **rest, **ARCHITECTURE, **changes)


def _llama3(
    layers: int, width: int, heads: int, ffn: int, factor: float | None = None, **changes: Any
) -> DecoderConfig:
    """`factor` extends 8192 trained positions (Llama 3.1: 8, Llama 3.2: 32); None is Llama 3.0."""
    shape: dict[str, Any] = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "ffn": ffn,
        "vocab": 128256,
        "kv_heads": 8,
    }
    rest: dict[str, Any] = {"norm_eps": 1e-5, "rope_theta": 500_000.0, "bos_id": 128000, "eos_id": 128001}
    scaling = None if factor is None else RopeScaling("llama3", factor, original_context=8192)
    context = 8192 if factor is None else 131072
    return DecoderConfig("llama", **shape, context=context, rope_scaling=scaling, **rest, **ARCHITECTURE, **changes)


PRESETS: dict[str, DecoderConfig] = {
    "llama2-7b": _llama2(32, 4096, 32, 11008),
    "llama2-13b": _llama2(40, 5120, 40, 13824),
    "llama2-70b": _llama2(80, 8192, 64, 28672, kv_heads=8),
    "llama3-8b": _llama3(32, 4096, 32, 14336),
    "llama3-70b": _llama3(80, 8192, 64, 28672),
    "llama3.1-8b": _llama3(32, 4096, 32, 14336, factor=8.0),
    "llama3.1-70b": _llama3(80, 8192, 64, 28672, factor=8.0),
    "llama3.1-405b": _llama3(126, 16384, 128, 53248, factor=8.0),
    "llama3.2-1b": _llama3(16, 2048, 32, 8192, factor=32.0, tie_embeddings=True),
    "llama3.2-3b": _llama3(28, 3072, 24, 8192, factor=32.0, tie_embeddings=True),
    "llama3.3-70b": _llama3(80, 8192, 64, 28672, factor=8.0),
}


def hf_table(config: DecoderConfig) -> tuple[names.Row, ...]:
    """The name table of a model of this family."""
    return names.DENSE + names.PRE_NORM


def from_hf(config_json: Mapping[str, Any]) -> DecoderConfig:
    """The model that a `llama` `config.json` describes; raises `UserError` when it cannot be built."""
    return names.read_config(config_json, ARCHITECTURE, norm_eps=1e-6)


def to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a model of this family with weights stored as `dtype`."""
    return {**names.write_config(config, ARCHITECTURE, "LlamaForCausalLM", dtype), "mlp_bias": False}
