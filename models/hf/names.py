"""Tensor names and `config.json` fields of Hugging Face that families share.

A family's name table is a tuple of `Row`s. Only these tables contain the names of Hugging Face, so a name such as
`post_attention_layernorm`, which is a different norm in different families, never appears in the parameter tree.
`convert.py` reads and writes weights by these tables; the families convert configurations with `read_config` and
`write_config`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from models.config import DecoderConfig, RopeScaling
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter and the tensors that hold it on disk.

    `hf` is the name of the tensors; `{layer}` and `{expert}` stand for indices along the leading axes of the parameter,
    in this order: a parameter [L, E, d, f] under "layers.{layer}.experts.{expert}.up.weight" is L·E tensors. `path` is
    the dotted path of the parameter. `transpose`: the stored linear weight [out, in] is the transpose of the kernel
    [in, out]. `vocab`: the first stored axis is the vocabulary, the only axis that import and export may pad or trim.
    `start`: parameters share the tensor (queries, keys and values in Molmo's files), and this one begins at this index
    of its first axis; the rows of a table name them one after the other.
    """

    hf: str
    path: str
    transpose: bool = False
    vocab: bool = False
    start: int | None = None

    @property
    def stacked(self) -> tuple[str, ...]:
        """Names of the indices of the leading axes, first axis first."""
        found = [(self.hf.find("{" + name + "}"), name) for name in ("layer", "expert")]
        return tuple(name for at, name in sorted(found) if at >= 0)

    def name(self, index: Sequence[int]) -> str:
        """The stored name of the tensor at `index` along the stacked axes."""
        return self.hf.format(**dict(zip(self.stacked, index, strict=True)))

    def stored_shape(self, leaf_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape on disk of one tensor of a parameter of this shape."""
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

# Llama, Qwen 2, Mistral and OLMoE. OLMo 2 and 3 use the second name for a different norm (`olmo.POST_NORM`).
PRE_NORM = (
    Row(f"{_LAYER}input_layernorm.weight", "layers.pre_attn_norm.scale"),
    Row(f"{_LAYER}post_attention_layernorm.weight", "layers.pre_ffn_norm.scale"),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one stored tensor belongs: at `index` along the stacked axes of the parameter of `row`."""

    row: Row
    index: tuple[int, ...]


def rows_for(table: Sequence[Row], leaves: Mapping[str, Any]) -> dict[str, Row]:
    """The row of `table` for each parameter, by path; rows without a parameter (a tied head) are left out.

    Raises:
        ValueError: a parameter has no row or several, which is an error in the table and not of the user.
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

    A name whose tensor several parameters share comes once for each, one after the other.

    `leaves` maps paths to arrays or to anything else with a `shape`.
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


# The architecture of Llama as fields of DecoderConfig; other families are described by their differences from it.
LLAMA_ARCHITECTURE: dict[str, Any] = {
    "norm": "rms",
    "norm_placement": "pre",
    "qk_norm": False,
    "qkv_bias": False,
    "qkv_clip": None,
    "window": None,
    "experts": None,
    "activation": "silu",
    "norm_offset": 0.0,
    "scale_embeddings": False,
    "query_scalar": None,
    "attention_softcap": None,
    "logits_softcap": None,
}


class ConfigFile(TypedDict, total=False):
    """The types of what is read of a `config.json`."""

    model_type: str
    architectures: list[str] | None
    num_hidden_layers: int | None
    hidden_size: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    head_dim: int | None
    intermediate_size: int | None
    vocab_size: int | None
    max_position_embeddings: int | None
    rms_norm_eps: float | None
    initializer_range: float | None
    tie_word_embeddings: bool | None
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    rope_theta: float | None
    rope_scaling: dict[str, float | str | bool | None] | None
    rope_parameters: dict[str, Any] | None
    layer_types: list[str] | None
    sliding_window: int | None
    clip_qkv: float | None
    query_pre_attn_scalar: float | None
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None
    hidden_activation: str | None


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
# Fields that change the mathematics, with the only value that the models here support.
_ONLY = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0, "quantization_config": None}


# In transformers, a reward or value model is a sequence classifier with one label.
_CLASSIFIER = "ForSequenceClassification"


def read_config(
    config_json: Mapping[str, Any], architecture: Mapping[str, Any], *, theta: float = 10_000.0, **defaults: Any
) -> DecoderConfig:
    """The `DecoderConfig` that a `config.json` describes.

    `architecture` holds the fields that are fixed in the family; `theta` and `defaults` replace fields that the file
    leaves out. Of a list of end-of-text ids (instruct models), the first is used.

    Raises:
        UserError: required fields are missing, or a field has a value that the models here do not support.
    """
    kind = str(config_json.get("model_type"))
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


def read_windows(config_json: Mapping[str, Any], window: int | None) -> dict[str, Any]:
    """The fields of `DecoderConfig` for a model whose layers see `window` keys or all, as `layer_types` says.

    Without `layer_types`, one layer in four has full attention.

    Raises:
        UserError: `layer_types` does not name every layer, or names a kind other than these two.
    """
    kinds, layers = config_json.get("layer_types"), config_json.get("num_hidden_layers")
    if kinds is None or layers is None:  # missing layers are reported by `read_config`
        return {"window": window, "full_attention_every": 4}
    known = ("sliding_attention", "full_attention")
    strange = [kind for kind in kinds if kind not in known]
    if strange or len(kinds) != layers:
        what = f"the kind {strange[0]!r}" if strange else f"{len(kinds)} entries for {layers} layers"
        raise UserError(f"config.json has layer_types with {what}; give {' or '.join(known)} for each layer")
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    if len(full) == layers or window is None:
        return {"window": None, "full_attention_every": 4}
    every = full[0] + 1 if full else layers + 1
    if full == list(range(every - 1, layers, every)):
        return {"window": window, "full_attention_every": every}
    return {"window": window, "full_attention_layers": tuple(full)}


def layer_types(config: DecoderConfig) -> list[str]:
    """The kind of attention of each layer, as in `config.json`."""
    return ["full_attention" if window is None else "sliding_attention" for window in config.pattern]


def write_config(
    config: DecoderConfig, architecture: Mapping[str, Any], class_name: str, dtype: str = "float32"
) -> dict[str, Any]:
    """The fields of `config.json` that every family has, as `transformers` 4.4x to 5 read them.

    Raises:
        UserError: fields of the model differ from what `class_name` computes.
    """
    differing = {name: getattr(config, name) for name, value in architecture.items() if getattr(config, name) != value}
    if differing:
        said = ", ".join(f"{name}={value!r}" for name, value in differing.items())
        raise UserError(f"{class_name} of transformers cannot express {said}; export as another family")
    fields = {key: getattr(config, ours) for key, ours in {**_REQUIRED, **_OPTIONAL}.items()}
    if config.head_dim * config.heads == config.width and config.family != "llama":
        del fields["head_dim"]  # only Llama's class declares it; the others accept it
    if config.scalar_head:
        class_name = class_name.replace("ForCausalLM", _CLASSIFIER)
        fields |= {
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
        }  # transformers derives the number of labels from these
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

    Where the layout distinguishes kinds of layers, only full-attention layers may be scaled.
    """
    parameters = dict(config_json.get("rope_parameters") or {})
    theta = config_json.get("rope_theta") or theta
    sliding = parameters.get("sliding_attention") or {}
    if "full_attention" in parameters:
        parameters = dict(parameters["full_attention"])
    parameters |= config_json.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or theta)
    if _rope_kind(sliding) != "default" or float(sliding.get("rope_theta") or theta) != theta:
        raise UserError(
            f"config.json has rotary parameters {sliding} for sliding-window layers; they need theta {theta}, unscaled"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("config.json has a partial_rotary_factor other than 1, which is not supported")
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
        raise UserError(f"config.json scales rotary embeddings with {', '.join(strange)}, which is not supported")
    if parameters.get("factor") is None:
        raise UserError(f"config.json scales rotary embeddings by {kind} without a factor")
    factor = float(parameters["factor"])
    if kind == "linear":
        return RopeScaling("linear", factor)
    original = parameters.get("original_max_position_embeddings") or context
    names = {"low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"}
    given = {name: float(parameters[name]) for name in names if parameters.get(name) is not None}
    return RopeScaling("llama3" if kind == "llama3" else "yarn", factor, original, **given)


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
