"""Molmo (arXiv 2409.17146): released sizes, tensor names and `config.json`.

A Molmo is an OLMo, OLMoE or Qwen 2 that sees. In the released files queries, keys and values share a tensor, and so do
`up` and `gate`. Their `config.json` says nothing of the vision transformer, which is CLIP's ViT-L/14 at 336 pixels;
another one is written below `vision` and read from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from models.config import DecoderConfig, Experts, VisionConfig
from models.errors import UserError
from models.hf import names

MODEL = "models.molmo.model:molmo"
MODEL_TYPES = ("molmo",)
TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")  # in the order of their ids
_IDS = ("start_id", "end_id", "patch_id", "column_id", "image_id")

TOWERS: dict[str, VisionConfig] = {
    "clip": VisionConfig(),
    "siglip": VisionConfig("siglip", image=378, width=1152, ffn=4304, layers=27, features=(-3, -9)),
    "dino": VisionConfig("dino", layers=24, features=(-3, -9)),
    "metaclip": VisionConfig("metaclip", layers=24, features=(-3, -9)),
}


def with_ids(vision: VisionConfig, first: int) -> VisionConfig:
    """The configuration with the ids of the five tokens of pictures from `first` on, in the order of `TOKENS`."""
    ids: dict[str, Any] = {name: first + i for i, name in enumerate(_IDS)}
    return dataclasses.replace(vision, **ids)


def _molmo(layers: int, width: int, heads: int, ffn: int, vocab: int, used: int, **more: Any) -> DecoderConfig:
    projector = more.pop("connector_ffn", ffn)
    vision = with_ids(VisionConfig(connector_ffn=projector), used)
    shape: dict[str, Any] = {"layers": layers, "width": width, "heads": heads, "ffn": ffn, "vocab": vocab}
    return DecoderConfig("molmo", **shape, vocab_used=used, context=4096, vision=vision, **more)


_QWEN2: dict[str, Any] = {
    "norm_placement": "pre", "qkv_bias": True, "rope_theta": 1_000_000.0, "eos_id": 151643, "pad_id": 151643,
}  # fmt: skip

# Spec molmo §1. The inner width of MolmoE is that of one expert, its connector's the same.
PRESETS: dict[str, DecoderConfig] = {
    "molmoe-1b": _molmo(
        16, 2048, 16, 1024, 50304, 50280, norm_placement="pre", qk_norm=True, norm_eps=1e-5, rope_theta=10_000.0,
        experts=Experts(64, 8, load_balancing=0.0, router_z=0.0), eos_id=50279, pad_id=1,
    ),
    "molmo-7b-o": _molmo(
        32, 4096, 32, 11008, 100352, 100278, norm_placement="post", qk_norm=True, norm_eps=1e-6, rope_theta=500_000.0,
        eos_id=100257, pad_id=100277,
    ),
    "molmo-7b-d": _molmo(28, 3584, 28, 18944, 152064, 152064, kv_heads=4, norm_eps=1e-6, **_QWEN2),
    "molmo-72b": _molmo(80, 8192, 64, 29568, 152064, 152064, kv_heads=8, norm_eps=1e-5, **_QWEN2),
}  # fmt: skip

_BLOCK = "model.transformer.blocks.{layer}."
_VIT = "model.vision_backbone.image_vit."
_RES = f"{_VIT}transformer.resblocks.{{layer}}."
_CONNECTOR = "model.vision_backbone."


def hf_table(config: DecoderConfig) -> tuple[names.Row, ...]:
    """The name table of a model of this family (spec molmo §16)."""
    return (*_text_rows(config), *_tower_rows(), *_connector_rows())


def _text_rows(config: DecoderConfig) -> tuple[names.Row, ...]:
    where = "post" if config.norm_placement == "post" else "pre"
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    starts = {"q": 0, "k": q, "v": q + kv}
    rows = [
        names.Row("model.transformer.wte.embedding", "embed.table", vocab=True),
        names.Row("model.transformer.wte.new_embedding", "embed.new.table"),
        *(names.Row(f"{_BLOCK}att_proj.weight", f"layers.attn.{p}.kernel", transpose=True, start=at)
          for p, at in starts.items()),
        *(names.Row(f"{_BLOCK}att_proj.bias", f"layers.attn.{p}.bias", start=at) for p, at in starts.items()),
        names.Row(f"{_BLOCK}attn_out.weight", "layers.attn.o.kernel", transpose=True),
        *(names.Row(f"{_BLOCK}{p}_norm.weight", f"layers.attn.{p}_norm.scale") for p in "qk"),
        names.Row(f"{_BLOCK}attn_norm.weight", f"layers.{where}_attn_norm.scale"),
        names.Row(f"{_BLOCK}ff_norm.weight", f"layers.{where}_ffn_norm.scale"),
    ]  # fmt: skip
    if config.experts is None:
        rows += [
            names.Row(f"{_BLOCK}ff_proj.weight", "layers.mlp.up.kernel", transpose=True, start=0),
            names.Row(f"{_BLOCK}ff_proj.weight", "layers.mlp.gate.kernel", transpose=True, start=config.ffn),
            names.Row(f"{_BLOCK}ff_out.weight", "layers.mlp.down.kernel", transpose=True),
        ]
    else:
        rows += [
            names.Row(f"{_BLOCK}mlp.gate.weight", "layers.moe.router.kernel", transpose=True),
            *(names.Row(f"{_BLOCK}mlp.experts.{{expert}}.{p}_proj.weight", f"layers.moe.{p}.kernel", transpose=True)
              for p in ("gate", "up", "down")),
        ]  # fmt: skip
    return (
        *rows,
        names.Row("model.transformer.ln_f.weight", "final_norm.scale"),
        names.Row("model.transformer.ff_out.weight", "head.kernel", transpose=True, vocab=True),
    )


def _tower_rows() -> tuple[names.Row, ...]:
    attention = {"q": "attention.wq", "k": "attention.wk", "v": "attention.wv", "o": "attention.wo"}
    linears = {f"attn.{ours}": theirs for ours, theirs in attention.items()}
    linears |= {"mlp.up": "feed_forward.w1", "mlp.down": "feed_forward.w2"}
    return (
        names.Row(f"{_VIT}class_embedding", "vision.class_token.table"),
        names.Row(f"{_VIT}positional_embedding", "vision.positions.table"),
        names.Row(f"{_VIT}patch_embedding.weight", "vision.patch.kernel", transpose=True),
        names.Row(f"{_VIT}patch_embedding.bias", "vision.patch.bias"),
        names.Row(f"{_VIT}pre_ln.weight", "vision.pre_norm.scale"),
        names.Row(f"{_VIT}pre_ln.bias", "vision.pre_norm.bias"),
        *(names.Row(f"{_RES}{theirs}.weight", f"vision.blocks.{ours}.kernel", transpose=True)
          for ours, theirs in linears.items()),
        *(names.Row(f"{_RES}{theirs}.bias", f"vision.blocks.{ours}.bias") for ours, theirs in linears.items()),
        *(names.Row(f"{_RES}{theirs}.{kind}", f"vision.blocks.{ours}.{leaf}")
          for ours, theirs in (("attn_norm", "attention_norm"), ("ffn_norm", "ffn_norm"))
          for leaf, kind in (("scale", "weight"), ("bias", "bias"))),
        names.Row(f"{_RES}lambda1", "vision.blocks.attn_scale.scale"),
        names.Row(f"{_RES}lambda2", "vision.blocks.ffn_scale.scale"),
    )  # fmt: skip


def _connector_rows() -> tuple[names.Row, ...]:
    pool = {f"connector.pool.{p}": f"{_CONNECTOR}image_pooling_2d.w{p}" for p in "qkvo"}
    projector = {"gate": "w1", "up": "w3", "down": "w2"}
    return (
        names.Row(f"{_CONNECTOR}pad_embed", "connector.padding.table"),
        *(names.Row(f"{theirs}.weight", f"{ours}.kernel", transpose=True) for ours, theirs in pool.items()),
        *(names.Row(f"{theirs}.bias", f"{ours}.bias") for ours, theirs in pool.items()),
        *(
            names.Row(f"{_CONNECTOR}image_projector.{theirs}.weight", f"connector.projector.{ours}.kernel", True)
            for ours, theirs in projector.items()
        ),
    )


_FIELDS = {
    "num_hidden_layers": "layers", "hidden_size": "width", "num_attention_heads": "heads",
    "max_position_embeddings": "context", "layer_norm_eps": "norm_eps", "rope_theta": "rope_theta",
    "qkv_bias": "qkv_bias", "attention_layer_norm": "qk_norm",
}  # fmt: skip
_OPTIONAL = {
    "num_key_value_heads": "kv_heads", "initializer_range": "init_std", "eos_token_id": "eos_id",
    "bos_token_id": "bos_id", "pad_token_id": "pad_id",
}  # fmt: skip
_DEFAULTS = {"layer_norm_eps": 1e-5, "rope_theta": 10_000.0, "qkv_bias": False, "attention_layer_norm": False}


def from_hf(config_json: Mapping[str, Any]) -> DecoderConfig:
    """The model that a `molmo` `config.json` describes.

    Without `vision`, the file is a released one: the legacy masks of padding and of small pictures are on. The ids of
    the tokens of pictures follow `vocab_size`; the embedding has `embedding_size` rows.

    Raises:
        UserError: required fields are missing, or it has a value that the models here do not support.
    """
    found = {**_DEFAULTS, **{key: value for key, value in config_json.items() if value is not None}}
    needed = [*_FIELDS, "intermediate_size", "vocab_size"]
    missing = [key for key in needed if key not in found]
    if missing:
        raise UserError(f"config.json of a molmo model lacks {', '.join(missing)}")
    only = {"layer_norm_type": "rms", "weight_tying": False, "tie_word_embeddings": False, "clip_qkv": None}
    for key, value in only.items():
        if found.get(key, value) != value:
            raise UserError(f"config.json has {key}={found[key]!r}; molmo models here support only {value!r}")
    fields = {ours: found[key] for key, ours in _FIELDS.items()}
    fields |= {ours: found[key] for key, ours in _OPTIONAL.items() if key in found}
    used = found["vocab_size"]
    vision = _vision(found, used)
    experts = found.get("moe_num_experts")
    inner = found["intermediate_size"] // 2  # of `up` and `gate` together
    return DecoderConfig(
        "molmo", **fields, ffn=inner, vocab=found.get("embedding_size", used), vocab_used=used, vision=vision,
        norm_placement="post" if found.get("norm_after") else "pre",
        experts=Experts(experts, found.get("moe_top_k", 8), load_balancing=0.0, router_z=0.0) if experts else None,
    )  # fmt: skip


def _vision(found: Mapping[str, Any], first: int) -> VisionConfig:
    described = found.get("vision")
    if described is None:
        released = VisionConfig(
            connector_ffn=found["intermediate_size"] // 2, legacy_image_mask=True, legacy_tiny_side=True
        )
        return with_ids(released, first)
    known = {field.name for field in dataclasses.fields(VisionConfig)}
    if not isinstance(described, Mapping) or set(described) - known:
        raise UserError(f"config.json has a vision with unknown fields; known are {', '.join(sorted(known))}")
    return VisionConfig(**{**described, "features": tuple(described.get("features", (-2, -9)))})


def to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a model of this family with weights stored as `dtype`."""
    if config.vision is None or config.norm != "rms" or config.tie_embeddings or config.scalar_head:
        raise UserError("MolmoForCausalLM cannot express a model without vision, or with tied or scalar heads")
    experts = config.experts
    fields = {key: getattr(config, ours) for key, ours in {**_FIELDS, **_OPTIONAL}.items()}
    more = {} if experts is None else {"moe_num_experts": experts.count, "moe_top_k": experts.active}
    return {
        "architectures": ["MolmoForCausalLM"],
        "model_type": "molmo",
        **fields,
        "intermediate_size": 2 * config.ffn,
        "vocab_size": config.vision.start_id,
        "embedding_size": config.vocab,
        "layer_norm_type": "rms",
        "norm_after": config.norm_placement == "post",
        "position_embedding_type": "rope",
        "tie_word_embeddings": False,
        "weight_tying": False,
        "clip_qkv": None,
        "use_cache": True,
        **more,
        "vision": dataclasses.asdict(config.vision),
        "torch_dtype": dtype,
    }
