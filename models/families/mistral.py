"""Mistral 7B (arXiv 2310.06825), versions 0.1 to 0.3: sizes, tensor names and `config.json`.

Version 0.1 has a sliding window of 4096 in every layer; later versions have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import DecoderConfig
from models.errors import UserError
from models.hf import names

ARCHITECTURE = {name: value for name, value in names.LLAMA_ARCHITECTURE.items() if name != "window"}
MODEL_TYPES = ("mistral",)


def _mistral(vocab: int, **changes: Any) -> DecoderConfig:
    shape: dict[str, Any] = {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336, "context": 32768}
    rest: dict[str, Any] = {"norm_eps": 1e-5, "bos_id": 1, "eos_id": 2}
    return DecoderConfig("mistral", **shape, **rest, **ARCHITECTURE, vocab=vocab, **changes)


PRESETS: dict[str, DecoderConfig] = {
    "mistral-7b-v0.1": _mistral(32000, rope_theta=10_000.0, window=4096, full_attention_every=33),
    "mistral-7b-v0.2": _mistral(32000, rope_theta=1_000_000.0),
    "mistral-7b-v0.3": _mistral(32768, rope_theta=1_000_000.0),
}


def hf_table(config: DecoderConfig) -> tuple[names.Row, ...]:
    """The name table of a model of this family."""
    return names.DENSE + names.PRE_NORM


def from_hf(config_json: Mapping[str, Any]) -> DecoderConfig:
    """The model that a `mistral` `config.json` describes; raises `UserError` when it cannot be built."""
    kinds = ["sliding_attention"] * (config_json.get("num_hidden_layers") or 0)
    windows = names.read_windows({**config_json, "layer_types": kinds}, config_json.get("sliding_window", 4096))
    defaults = {"norm_eps": 1e-6, "kv_heads": 8, **windows}
    return _check(names.read_config(config_json, ARCHITECTURE, **defaults))


def to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a model of this family with weights stored as `dtype`."""
    fields = names.write_config(_check(config), ARCHITECTURE, "MistralForCausalLM", dtype)
    head_dim = {
        "head_dim": config.head_dim
    }  # null would be width / heads, but old readers want it left out or a number
    return {**fields, **head_dim, "sliding_window": config.window}


def _check(config: DecoderConfig) -> DecoderConfig:
    """Raises `UserError` for what the class of transformers does not compute in the same way."""
    if config.window is not None and None in config.pattern:
        raise UserError("a mistral model has a sliding window in all layers or in none; export as another family")
    if config.window is not None and config.rope_scaling is not None and config.rope_scaling.kind == "yarn":
        raise UserError("a mistral model with sliding windows and rotary scaling by yarn is not supported")
    return config
