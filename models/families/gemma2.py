"""Gemma 2 (arXiv 2408.00118): sizes, tensor names and `config.json`.

It normalises inputs and outputs of sub-layers by scales stored around 0, gates by GELU, scales embeddings, bounds
attention scores and logits by soft caps, and alternates sliding windows with full attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import DecoderConfig
from models.errors import UserError
from models.hf import names

_OWN = ("window", "query_scalar", "attention_softcap", "logits_softcap")  # fields that config.json gives
ARCHITECTURE = {name: value for name, value in names.LLAMA_ARCHITECTURE.items() if name not in _OWN}
ARCHITECTURE |= {
    "norm_placement": "sandwich", "activation": "gelu_tanh", "norm_offset": 1.0, "scale_embeddings": True,
}  # fmt: skip
MODEL_TYPES = ("gemma2",)

_ACTIVATION = "gelu_pytorch_tanh"
_CAPS = {"attn_logit_softcapping": "attention_softcap", "final_logit_softcapping": "logits_softcap"}
_NORMS = {
    "input_layernorm": "pre_attn_norm", "post_attention_layernorm": "post_attn_norm",
    "pre_feedforward_layernorm": "pre_ffn_norm", "post_feedforward_layernorm": "post_ffn_norm",
}  # fmt: skip
SANDWICH_NORM = tuple(
    names.Row(f"model.layers.{{layer}}.{theirs}.weight", f"layers.{ours}.scale") for theirs, ours in _NORMS.items()
)


def _gemma2(layers: int, width: int, heads: int, ffn: int, head_dim: int, query_scalar: float) -> DecoderConfig:
    shape: dict[str, Any] = {
        "layers": layers, "width": width, "heads": heads, "kv_heads": heads // 2, "ffn": ffn, "head_dim": head_dim,
        "vocab": 256000, "context": 8192,
    }  # fmt: skip
    rest: dict[str, Any] = {
        "rope_theta": 10_000.0, "norm_eps": 1e-6, "window": 4096, "full_attention_every": 2, "tie_embeddings": True,
        "attention_softcap": 50.0, "logits_softcap": 30.0, "bos_id": 2, "eos_id": 1, "pad_id": 0,
    }  # fmt: skip
    return DecoderConfig("gemma2", **shape, **rest, **ARCHITECTURE, query_scalar=query_scalar)


PRESETS: dict[str, DecoderConfig] = {
    "gemma2-2b": _gemma2(26, 2304, 8, 9216, 256, 256.0),
    "gemma2-9b": _gemma2(42, 3584, 16, 14336, 256, 256.0),
    "gemma2-27b": _gemma2(46, 4608, 32, 36864, 128, 144.0),
}


def hf_table(config: DecoderConfig) -> tuple[names.Row, ...]:
    """The name table of a model of this family."""
    return names.DENSE + SANDWICH_NORM


def from_hf(config_json: Mapping[str, Any]) -> DecoderConfig:
    """The model that a `gemma2` `config.json` describes; raises `UserError` when it cannot be built."""
    activation = config_json.get("hidden_activation") or _ACTIVATION  # `hidden_act` is not read by transformers either
    if activation != _ACTIVATION:
        raise UserError(f"config.json has hidden_activation={activation!r}; gemma2 models have {_ACTIVATION!r}")
    if config_json.get("use_bidirectional_attention"):
        raise UserError("config.json has use_bidirectional_attention; gemma2 models here attend to earlier tokens only")
    layers = config_json.get("num_hidden_layers") or 0
    kinds = config_json.get("layer_types") or [
        "full_attention" if i % 2 else "sliding_attention" for i in range(layers)
    ]
    windows = names.read_windows({**config_json, "layer_types": kinds}, config_json.get("sliding_window", 4096))
    own = {
        ours: config_json.get(theirs, value) for (theirs, ours), value in zip(_CAPS.items(), (50.0, 30.0), strict=True)
    }
    own["query_scalar"] = float(config_json.get("query_pre_attn_scalar") or 256)
    tokens = {"bos": 2, "eos": 1, "pad": 0}  # where the file leaves them out; it may also say that there is none
    own |= {f"{name}_id": value for name, value in tokens.items() if f"{name}_token_id" not in config_json}
    defaults = {"norm_eps": 1e-6, "kv_heads": 4, "head_dim": 256, "tie_embeddings": True, **windows, **own}
    plain = {name: value for name, value in config_json.items() if name != "hidden_act"}
    return _check(names.read_config(plain, ARCHITECTURE, **defaults))


def to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a model of this family with weights stored as `dtype`."""
    fields = names.write_config(_check(config), ARCHITECTURE, "Gemma2ForCausalLM", dtype)
    del fields["hidden_act"]
    scalar = config.head_dim if config.query_scalar is None else config.query_scalar
    caps = {theirs: getattr(config, ours) for theirs, ours in _CAPS.items()}
    return {
        **fields, "hidden_activation": _ACTIVATION, "head_dim": config.head_dim, **caps,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "sliding_window": config.window, "layer_types": names.layer_types(config),
    }  # fmt: skip


def _check(config: DecoderConfig) -> DecoderConfig:
    """Raises `UserError` for windows with YaRN, which scales all layers of Gemma 2 but only some of the models here."""
    if config.window is not None and config.rope_scaling is not None and config.rope_scaling.kind == "yarn":
        raise UserError("a gemma2 model with sliding windows and rotary scaling by yarn is not supported")
    return config
