"""OLMoE: sizes, tensor names and `config.json`.

OLMoE (arXiv 2409.02060) is a mixture of experts in every layer, with norms on the inputs of sub-layers and QK-norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import DecoderConfig, Experts
from models.errors import UserError
from models.hf import names

ARCHITECTURE = {**names.LLAMA_ARCHITECTURE, "qk_norm": True}
del ARCHITECTURE["qkv_clip"], ARCHITECTURE["experts"]
MODEL_TYPES = ("olmoe",)

_SHARED: dict[str, Any] = {
    "context": 4096, "rope_theta": 10_000.0, "norm_eps": 1e-5, "vocab": 50304, "vocab_used": 50280, "eos_id": 50279,
    "pad_id": 1, **ARCHITECTURE,
}  # fmt: skip


def _olmoe(layers: int, width: int, heads: int, ffn: int, experts: Experts) -> DecoderConfig:
    return DecoderConfig("olmoe", layers=layers, width=width, heads=heads, ffn=ffn, experts=experts, **_SHARED)


# Small models: width, layers and heads of OLMo-core's scaling ladder (`families/olmo.py`). As in OLMoE-1B-7B, the
# active experts together have the hidden size of the dense model's feed-forward layer, so that `olmoe-30m` has the
# active size of `olmo2-30m`.
_LADDER = {
    "14m": (128, 4, 8, 512),
    "30m": (256, 4, 8, 1024),
    "60m": (384, 8, 8, 1536),
    "100m": (512, 12, 8, 2048),
    "190m": (768, 12, 12, 3072),
    "370m": (1024, 16, 16, 4096),
}

PRESETS: dict[str, DecoderConfig] = {
    "olmoe-1b-7b": _olmoe(16, 2048, 16, 1024, Experts(64, 8)),
    # For tests and one CPU: 16 experts, 4 active.
    "olmoe-tiny": _olmoe(4, 128, 4, 128, Experts(16, 4)),
    **{
        f"olmoe-{size}": _olmoe(layers, width, heads, dense // 8, Experts(64, 8))
        for size, (width, layers, heads, dense) in _LADDER.items()
    },
}

_MLP = "model.layers.{layer}.mlp."
_EXPERTS = (
    names.Row(f"{_MLP}gate.weight", "layers.moe.router.kernel", transpose=True),
    *(
        names.Row(f"{_MLP}experts.{{expert}}.{p}_proj.weight", f"layers.moe.{p}.kernel", transpose=True)
        for p in ("gate", "up", "down")
    ),
)


def hf_table(config: DecoderConfig) -> tuple[names.Row, ...]:
    """The name table of a model of this family: every expert's projections are tensors of their own."""
    return (*names.DENSE, *names.PRE_NORM, *_EXPERTS)


def from_hf(config_json: Mapping[str, Any]) -> DecoderConfig:
    """The model that an `olmoe` `config.json` describes; `UserError` when it cannot be built.

    The weight of the load-balancing loss is `router_aux_loss_coef`. That of the router z-loss, which `transformers`
    does not have, is `router_z_loss_coef` in our exports and OLMoE's own otherwise.
    """
    if config_json.get("norm_topk_prob"):
        raise UserError("config.json has norm_topk_prob=True; only weights that are not renormalised are supported")
    given = {"load_balancing": "router_aux_loss_coef", "router_z": "router_z_loss_coef"}
    weights = {ours: config_json[key] for ours, key in given.items() if config_json.get(key) is not None}
    experts = Experts(config_json.get("num_experts", 64), config_json.get("num_experts_per_tok", 8), **weights)
    return names.read_config(
        config_json, ARCHITECTURE, norm_eps=1e-5, qkv_clip=config_json.get("clip_qkv"), experts=experts
    )


def to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a model of this family with weights stored as `dtype`."""
    experts = config.experts
    if experts is None:
        raise UserError(
            "OlmoeForCausalLM of transformers cannot express a model without experts; export as another family"
        )
    return {
        **names.write_config(config, ARCHITECTURE, "OlmoeForCausalLM", dtype),
        "clip_qkv": config.qkv_clip,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "norm_topk_prob": False,
        "output_router_logits": False,
        "router_aux_loss_coef": experts.load_balancing,
        "router_z_loss_coef": experts.router_z,
    }
