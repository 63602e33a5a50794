"""Qwen 2 and Qwen 2.5 (general and Math): sizes, tensor names and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import DecoderConfig
from models.errors import UserError
from models.hf import names

ARCHITECTURE = {name: value for name, value in names.LLAMA_ARCHITECTURE.items() if name != "window"}
ARCHITECTURE |= {"qkv_bias": True}
MODEL_TYPES = ("qwen2",)

_SMALL = {"vocab": 151936, "tie_embeddings": True}
_LARGE = {"vocab": 152064}

# Layers, width, heads, key-value heads, ffn. Base models of 14B and above were trained with eps 1e-5, all others (and
# all instruct models) with 1e-6; for a checkpoint, its config.json decides.
_SIZES: dict[str, tuple[int, int, int, int, int, dict[str, Any]]] = {
    "0.5b": (24, 896, 14, 2, 4864, _SMALL),
    "1.5b": (28, 1536, 12, 2, 8960, _SMALL),
    "3b": (36, 2048, 16, 2, 11008, _SMALL),
    "7b": (28, 3584, 28, 4, 18944, _LARGE),
    "14b": (48, 5120, 40, 8, 13824, {**_LARGE, "norm_eps": 1e-5}),
    "32b": (64, 5120, 40, 8, 27648, {**_LARGE, "norm_eps": 1e-5}),
    "72b": (80, 8192, 64, 8, 29568, {**_LARGE, "norm_eps": 1e-5}),
}


def _qwen(size: str, *, context: int, vocab_used: int, rope_theta: float = 1_000_000.0) -> DecoderConfig:
    layers, width, heads, kv_heads, ffn, rest = _SIZES[size]
    shape: dict[str, Any] = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "ffn": ffn,
        "context": context,
    }
    fields: dict[str, Any] = {"rope_theta": rope_theta, "vocab_used": vocab_used, "eos_id": 151643, "pad_id": 151643}
    return DecoderConfig("qwen2", **shape, **fields, **ARCHITECTURE, **rest)


PRESETS: dict[str, DecoderConfig] = {
    **{f"qwen2-{size}": _qwen(size, context=131072, vocab_used=151646) for size in ("0.5b", "1.5b", "7b", "72b")},
    **{f"qwen2.5-{size}": _qwen(size, context=32768, vocab_used=151665) for size in ("0.5b", "1.5b", "3b")},
    **{f"qwen2.5-{size}": _qwen(size, context=131072, vocab_used=151665) for size in ("7b", "14b", "32b", "72b")},
    **{
        f"qwen2.5-math-{size}": _qwen(size, context=4096, vocab_used=151665, rope_theta=10_000.0)
        for size in ("1.5b", "7b", "72b")
    },
}


def hf_table(config: DecoderConfig) -> tuple[names.Row, ...]:
    """The name table of a model of this family."""
    return names.DENSE + names.PRE_NORM


def from_hf(config_json: Mapping[str, Any]) -> DecoderConfig:
    """The model that a `qwen2` `config.json` describes; raises `UserError` when it cannot be built."""
    window = config_json.get("sliding_window", 4096) if config_json.get("use_sliding_window") else None
    layers, first = config_json.get("num_hidden_layers") or 0, config_json.get("max_window_layers", 28)
    kinds = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    kinds = config_json.get("layer_types") or kinds
    windows = names.read_windows({**config_json, "layer_types": kinds}, window)
    return _check_scaling(names.read_config(config_json, ARCHITECTURE, norm_eps=1e-6, **windows))


def to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a model of this family with weights stored as `dtype`."""
    fields = names.write_config(_check_scaling(config), ARCHITECTURE, "Qwen2ForCausalLM", dtype)
    del fields["attention_bias"]  # the class always has biases on queries, keys and values, and has no such field
    if config.window is None:
        return {**fields, "use_sliding_window": False}
    windows = {"sliding_window": config.window, "layer_types": names.layer_types(config)}
    return {**fields, "use_sliding_window": True, **windows}


def _check_scaling(config: DecoderConfig) -> DecoderConfig:
    """Raises `UserError` for windows with YaRN, which scales all layers of Qwen 2 but only some of the models here."""
    if config.window is not None and config.rope_scaling is not None and config.rope_scaling.kind == "yarn":
        raise UserError("a qwen2 model with sliding windows and rotary scaling by yarn is not supported")
    return config
