"""OLMo 1, 2 and 3: sizes, tensor names and `config.json`.

OLMo 1 (arXiv 2402.00838) normalises the inputs of sub-layers with a LayerNorm without parameters. OLMo 2 (arXiv
2501.00656) normalises the outputs of sub-layers, and whole query and key projections (QK-norm). OLMo 3 is OLMo 2 with
sliding windows in three of four layers, and YaRN on the fourth for long context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import DecoderConfig, RopeScaling
from models.errors import UserError
from models.hf import names

_OLMO1 = {**names.LLAMA_ARCHITECTURE, "norm": "layernorm", "norm_eps": 1e-5}
del _OLMO1["qkv_clip"]
_OLMO2 = {**names.LLAMA_ARCHITECTURE, "norm_placement": "post", "qk_norm": True}
_OLMO3 = {name: value for name, value in _OLMO2.items() if name != "window"}

ARCHITECTURES = {"olmo": _OLMO1, "olmo2": _OLMO2, "olmo3": _OLMO3}
MODEL_TYPES = tuple(ARCHITECTURES)

POST_NORM = (
    names.Row("model.layers.{layer}.post_attention_layernorm.weight", "layers.post_attn_norm.scale"),
    names.Row("model.layers.{layer}.post_feedforward_layernorm.weight", "layers.post_ffn_norm.scale"),
)

_NEOX: dict[str, Any] = {"vocab": 50304, "vocab_used": 50280, "eos_id": 50279, "pad_id": 1}
_DOLMA2: dict[str, Any] = {"vocab": 100352, "vocab_used": 100278, "eos_id": 100257, "pad_id": 100277}
_YARN = RopeScaling("yarn", factor=8.0, original_context=8192, attention_factor=1.2079441541679836)


def _olmo1(layers: int, width: int, heads: int, ffn: int, context: int, **changes: Any) -> DecoderConfig:
    shape: dict[str, Any] = {"layers": layers, "width": width, "heads": heads, "ffn": ffn, "context": context}
    return DecoderConfig("olmo", **shape, rope_theta=10_000.0, init="mitchell", **_OLMO1, **_NEOX, **changes)


def _olmo2(layers: int, width: int, heads: int, ffn: int, **changes: Any) -> DecoderConfig:
    shape: dict[str, Any] = {"layers": layers, "width": width, "heads": heads, "ffn": ffn, "context": 4096}
    return DecoderConfig("olmo2", **shape, rope_theta=500_000.0, norm_eps=1e-6, **_OLMO2, **_DOLMA2, **changes)


def _olmo3(base: DecoderConfig, long: bool = False) -> DecoderConfig:
    """OLMo 3 with the shape of an OLMo 2: windows of 4096, trained at 8192 tokens, then extended to 65536 by YaRN."""
    config = base.replace(family="olmo3", window=4096, context=8192)
    return config.replace(context=65536, rope_scaling=_YARN) if long else config


# Scaling ladder of OLMo-core: width, layers, heads. Its "1M" (width 12, 4 heads) is left out: rotary embeddings need an
# even head size, and its heads have 3. The ladder's 1B is the released OLMo 2 1B.
_LADDER = {
    "14m": (128, 4, 8),
    "30m": (256, 4, 8),
    "60m": (384, 8, 8),
    "100m": (512, 12, 8),
    "190m": (768, 12, 12),
    "370m": (1024, 16, 16),
    "600m": (1344, 16, 16),
    "760m": (1536, 16, 16),
    "3b": (3328, 16, 16),
}


def _rung(width: int, layers: int, heads: int) -> DecoderConfig:
    hidden = 3 * (8 * width // 3) // 2
    return _olmo2(layers, width, heads, ffn=-(-hidden // 256) * 256)


# Names of the presets whose vocabulary is that of the tokenizer that they are trained with (`registry.fits_tokenizer`).
LADDER = frozenset(f"{family}-{size}" for family in ("olmo2", "olmo3") for size in _LADDER)
_RUNGS = {size: _rung(*shape) for size, shape in _LADDER.items()}
_OLMO2_RELEASED = {
    "1b": _olmo2(16, 2048, 16, 8192),
    "7b": _olmo2(32, 4096, 32, 11008),
    "13b": _olmo2(40, 5120, 40, 13824),
    "32b": _olmo2(64, 5120, 40, 27648, kv_heads=8),
}

PRESETS: dict[str, DecoderConfig] = {
    "olmo-1b": _olmo1(16, 2048, 16, 8192, context=2048, tie_embeddings=True),
    "olmo-1b-0724": _olmo1(16, 2048, 16, 8192, context=4096),
    "olmo-7b": _olmo1(32, 4096, 32, 11008, context=2048),
    "olmo-7b-0424": _olmo1(32, 4096, 32, 11008, context=4096, qkv_clip=8.0),
    "olmo-7b-0724": _olmo1(32, 4096, 32, 11008, context=4096, qkv_clip=8.0),
    **{f"olmo2-{size}": config for size, config in {**_RUNGS, **_OLMO2_RELEASED}.items()},
    **{f"olmo3-{size}": _olmo3(config) for size, config in _RUNGS.items() if size != "600m"},
    "olmo3-600m": _olmo3(_rung(1280, 16, 16)),
    "olmo3-1b": _olmo3(_OLMO2_RELEASED["1b"]),
    "olmo3-7b": _olmo3(_OLMO2_RELEASED["7b"], long=True),
    "olmo3-32b": _olmo3(_OLMO2_RELEASED["32b"], long=True),
    # As in stage 1 and mid-training: 8192 tokens, rotary embeddings without scaling.
    "olmo3-7b-8k": _olmo3(_OLMO2_RELEASED["7b"]),
    "olmo3-32b-8k": _olmo3(_OLMO2_RELEASED["32b"]),
}


def hf_table(config: DecoderConfig) -> tuple[names.Row, ...]:
    """The name table of a model of this family."""
    return names.DENSE + (POST_NORM if config.norm_placement == "post" else ())


def from_hf(config_json: Mapping[str, Any]) -> DecoderConfig:
    """The model that an `olmo`, `olmo2` or `olmo3` `config.json` describes; `UserError` when it cannot be built."""
    kind = str(config_json.get("model_type"))
    architecture = ARCHITECTURES[kind]
    if kind == "olmo":
        return names.read_config(config_json, architecture, init="mitchell", qkv_clip=config_json.get("clip_qkv"))
    if kind == "olmo2":
        return names.read_config(config_json, architecture, norm_eps=1e-5)
    windows = names.read_windows(config_json, config_json.get("sliding_window", 4096))
    defaults = {"norm_eps": 1e-5, **windows}
    return _check_scaling(names.read_config(config_json, architecture, theta=500_000.0, **defaults))


def to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a model of this family with weights stored as `dtype`."""
    _check_scaling(config)
    class_name = {"olmo": "OlmoForCausalLM", "olmo2": "Olmo2ForCausalLM", "olmo3": "Olmo3ForCausalLM"}[config.family]
    fields = names.write_config(config, ARCHITECTURES[config.family], class_name, dtype)
    if config.family == "olmo":
        fields["clip_qkv"] = config.qkv_clip
        del fields["rms_norm_eps"]  # the class fixes 1e-5
    if config.family == "olmo3":
        fields["sliding_window"] = config.window
        fields["layer_types"] = names.layer_types(config)
        plain = {"rope_type": "default", "rope_theta": config.rope_theta}
        fields["rope_parameters"] = {"sliding_attention": plain, "full_attention": fields["rope_parameters"]}
    return fields


def _check_scaling(config: DecoderConfig) -> DecoderConfig:
    """Raises `UserError` for a model with windows whose rotary scaling is not YaRN (on full-attention layers)."""
    if config.window is not None and config.rope_scaling is not None and config.rope_scaling.kind != "yarn":
        raise UserError(
            f"models with sliding windows support rotary scaling by yarn only, not {config.rope_scaling.kind}"
        )
    return config
