"""What all families share with the format of Hugging Face: tensor names and the fields of `config.json`.

A family's name table is a tuple of `Row`s. Only these tables know the foreign names, so `post_attention_layernorm`,
which means two different norms in two families, never reaches the parameter tree. `convert.py` reads and writes weights
by the tables; the family files translate configurations with `read_config` and `write_config`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.config import DecoderConfig, RopeScaling
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter leaf and the tensors that hold it on disk.

    `hf` names them; `{layer}` and `{expert}` stand for the indices of the leaf's leading axes, in the order they
    appear, so a leaf [L, E, d, f] under "layers.{layer}.experts.{expert}.up.weight" is L·E tensors. `path` is the
    leaf's dotted path. `transpose` turns a stored linear weight [out, in] into a kernel [in, out]. `vocab` marks a
    tensor whose first stored axis counts vocabulary entries, the one axis that import and export may pad or trim.
    """

    hf: str
    path: str
    transpose: bool = False
    vocab: bool = False

    @property
    def stacked(self) -> tuple[str, ...]:
        """The index names of the leaf's leading axes, first axis first."""
        found = [(self.hf.find("{" + name + "}"), name) for name in ("layer", "expert")]
        return tuple(name for at, name in sorted(found) if at >= 0)

    def name(self, index: Sequence[int]) -> str:
        """The stored name of the tensor at `index` along the stacked axes."""
        return self.hf.format(**dict(zip(self.stacked, index, strict=True)))

    def stored_shape(self, leaf_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape on disk of one tensor of a leaf of this shape."""
        tail = tuple(leaf_shape[len(self.stacked) :])
        return tail[::-1] if self.transpose else tail


_LAYER = "model.layers.{layer}."

DENSE = (
    Row("model.embed_tokens.weight", "embed.table", vocab=True),
    *(Row(f"{_LAYER}self_attn.{p}_proj.weight", f"layers.attn.{p}.kernel", transpose=True) for p in "qkvo"),
    *(Row(f"{_LAYER}self_attn.{p}_proj.bias", f"layers.attn.{p}.bias") for p in "qkv"),
    *(Row(f"{_LAYER}self_attn.{p}_norm.weight", f"layers.attn.{p}_norm.scale") for p in "qk"),
    *(Row(f"{_LAYER}mlp.{p}_proj.weight", f"layers.mlp.{p}.kernel", transpose=True) for p in ("gate", "up", "down")),
    Row("model.norm.weight", "final_norm.scale"),
    Row("lm_head.weight", "head.kernel", transpose=True, vocab=True),
    Row("score.weight", "score.kernel", transpose=True),
)

# Llama, Qwen 2, OLMoE. OLMo 2 and 3 use the second name for another norm (`olmo.POST_NORM`).
PRE_NORM = (
    Row(f"{_LAYER}input_layernorm.weight", "layers.pre_attn_norm.scale"),
    Row(f"{_LAYER}post_attention_layernorm.weight", "layers.pre_ffn_norm.scale"),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one stored tensor lives: `index` along the stacked axes of the leaf that `row` names."""

    row: Row
    index: tuple[int, ...]


def rows_for(table: Sequence[Row], leaves: Mapping[str, Any]) -> dict[str, Row]:
    """The one row of `table` for each leaf, keyed by path; rows for absent leaves (a tied head) drop out.

    Raises `ValueError` when a leaf has no row or several: the table is incomplete, no user can mend that.
    """
    found: dict[str, Row] = {}
    for row in table:
        if row.path in leaves:
            if row.path in found:
                raise ValueError(f"two Hugging Face names for {row.path}: {found[row.path].hf} and {row.hf}")
            found[row.path] = row
    unnamed = sorted(set(leaves) - set(found))
    if unnamed:
        raise ValueError(f"no Hugging Face name for {', '.join(unnamed)}")
    return found


def places(table: Sequence[Row], leaves: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    """Every stored name with its place, in the order of the released files: layer by layer, the head last.

    `leaves` maps paths to anything with a `shape`.
    """
    rows = list(rows_for(table, leaves).values())
    for prefix, group in itertools.groupby(rows, key=lambda row: row.hf.partition("{layer}")[0] if row.stacked else ""):
        together = list(group)
        if not prefix:
            yield from ((row.name(()), Place(row, ())) for row in together)
            continue
        ranges = [[range(n) for n in leaves[row.path].shape[: len(row.stacked)]] for row in together]
        for first in ranges[0][0]:
            for row, (_, *rest) in zip(together, ranges, strict=True):
                for index in itertools.product((first,), *rest):
                    yield row.name(index), Place(row, index)


# The architecture of Llama as fields of DecoderConfig; a family states how it differs.
PLAIN = {
    "norm": "rms",
    "norm_placement": "pre",
    "qk_norm": False,
    "qkv_bias": False,
    "qkv_clip": None,
    "window": None,
}

_REQUIRED = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
    "vocab_size": "vocab",
    "max_position_embeddings": "context",
}
_OPTIONAL = {
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "init_std",
    "bos_token_id": "bos_id",
    "eos_token_id": "eos_id",
    "pad_token_id": "pad_id",
}
# Values of fields that would change the mathematics and that no model here computes otherwise.
_ONLY = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0, "quantization_config": None}


# A reward or value model is a sequence classifier with one label there.
_CLASSIFIER = "ForSequenceClassification"


def read_config(
    config_json: Mapping[str, Any], architecture: Mapping[str, Any], *, theta: float = 10_000.0, **defaults: Any
) -> DecoderConfig:
    """The `DecoderConfig` that a `config.json` describes.

    `architecture` is what the family fixes, `theta` and `defaults` what it means when the file leaves a field out.
    A list of end-of-text ids (instruct models) counts by its first. Raises `UserError` naming every missing field, or
    the field that asks for something the family's models here do not compute.
    """
    kind = config_json.get("model_type")
    missing = [key for key in _REQUIRED if config_json.get(key) is None]
    if missing:
        raise UserError(f"config.json of a {kind} model lacks {', '.join(missing)}")
    biased = {} if architecture["qkv_bias"] else {"attention_bias": False}
    for key, value in {**_ONLY, **biased}.items():
        if config_json.get(key, value) != value:
            raise UserError(f"config.json has {key}={config_json[key]!r}; {kind} models here support only {value!r}")
    fields = {ours: config_json[key] for key, ours in _REQUIRED.items()}
    fields |= {ours: config_json[key] for key, ours in _OPTIONAL.items() if config_json.get(key) is not None}
    if isinstance(fields.get("eos_id"), list):
        fields["eos_id"] = fields["eos_id"][0] if fields["eos_id"] else None
    fields["rope_theta"], fields["rope_scaling"] = _read_rope(config_json, theta)
    fields["scalar_head"] = any(name.endswith(_CLASSIFIER) for name in config_json.get("architectures") or ())
    return DecoderConfig(family=kind, **{**defaults, **fields, **architecture})


def write_config(
    config: DecoderConfig, architecture: Mapping[str, Any], class_name: str, dtype: str = "float32"
) -> dict[str, Any]:
    """The fields of `config.json` that every family has; `transformers` 4.4x to 5 read it.

    Raises `UserError` when the model differs from what `class_name` computes, naming the fields.
    """
    differing = {name: getattr(config, name) for name, value in architecture.items() if getattr(config, name) != value}
    if differing:
        said = ", ".join(f"{name}={value!r}" for name, value in differing.items())
        raise UserError(f"{class_name} of transformers cannot express {said}; export as another family")
    fields = {key: getattr(config, ours) for key, ours in {**_REQUIRED, **_OPTIONAL}.items()}
    if config.head_dim * config.heads == config.width and config.family != "llama":
        del fields["head_dim"]  # only Llama's class declares it; the others read it when it is there
    if config.scalar_head:
        class_name = class_name.replace("ForCausalLM", _CLASSIFIER)
        fields |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}  # transformers counts the labels by these
    scaling = _write_scaling(config.rope_scaling)
    return {
        "architectures": [class_name],
        "model_type": config.family,
        **fields,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "attention_dropout": 0.0,
        "use_cache": True,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def _read_rope(config_json: Mapping[str, Any], theta: float) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling from either layout: `rope_theta` with `rope_scaling`, or `rope_parameters` (5.x).

    Where the layout distinguishes kinds of layers, full-attention ones are scaled and sliding ones must be plain.
    """
    parameters = dict(config_json.get("rope_parameters") or {})
    theta = config_json.get("rope_theta") or theta
    sliding = parameters.get("sliding_attention") or {}
    if "full_attention" in parameters:
        parameters = dict(parameters["full_attention"])
    parameters |= config_json.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or theta)
    if _rope_kind(sliding) != "default" or float(sliding.get("rope_theta") or theta) != theta:
        raise UserError(f"config.json rotates sliding-window layers by {sliding}; only theta {theta}, unscaled, works")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("config.json has partial_rotary_factor other than 1; rotary embeddings cover whole heads here")
    return theta, _read_scaling(parameters, config_json["max_position_embeddings"])


def _rope_kind(parameters: Mapping[str, Any]) -> str:
    return parameters.get("rope_type") or parameters.get("type") or "default"


def _read_scaling(parameters: Mapping[str, Any], context: int) -> RopeScaling | None:
    kind = _rope_kind(parameters)
    if kind == "default":
        return None
    if kind not in ("llama3", "yarn", "linear"):
        raise UserError(f"config.json scales rotary embeddings by {kind!r}; supported are llama3, yarn and linear")
    strange = [key for key in ("mscale", "mscale_all_dim") if parameters.get(key)]
    if parameters.get("truncate", True) is not True:
        strange.append("truncate")
    if strange:
        raise UserError(f"config.json scales rotary embeddings with {', '.join(strange)}, which no model here uses")
    if parameters.get("factor") is None:
        raise UserError(f"config.json scales rotary embeddings by {kind} without a factor")
    factor = float(parameters["factor"])
    if kind == "linear":
        return RopeScaling("linear", factor)
    original = parameters.get("original_max_position_embeddings") or context
    names = {"low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"}
    given = {name: float(parameters[name]) for name in names if parameters.get(name) is not None}
    return RopeScaling(kind, factor, original, **given)


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    names = {
        "linear": (),
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow"),
    }[scaling.kind]
    fields = {"rope_type": scaling.kind, "factor": scaling.factor, **{name: getattr(scaling, name) for name in names}}
    if scaling.kind != "linear":
        fields["original_max_position_embeddings"] = scaling.original_context
    if scaling.attention_factor is not None:
        fields["attention_factor"] = scaling.attention_factor
    return fields
