"""Configuration of a model: its shape (`DecoderConfig`), how it is computed (`Compute`) and sharded (`Placement`).

A family's file (`models/families/olmo.py`, `llama.py`, …) defines a `DecoderConfig` for every released size and
converts it to and from the `config.json` of Hugging Face. This module does not import JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from models import reading
from models.errors import UserError

# Segment s + k · BRANCH is the k-th of several texts that continue segment s: it sees segment s and itself. Texts about
# a picture do not see each other, although they are in one row behind one copy of the picture (spec molmo §7.2).
BRANCH = 1 << 16
MAX_LAYERS, MAX_SIZE = 10_000, (1 << 31) - 1


def _check_fields(what: str, value: RopeScaling | Experts | VisionConfig | DecoderConfig) -> None:
    """Raises `UserError` for a field of another type than annotated, or a number that is not finite."""
    found = reading.fault_of_fields(value)
    if found is None:
        numbers = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        found = next((f"{name} is {x}" for name, x in numbers.items() if isinstance(x, float) and not math.isfinite(x)),
                     None)  # fmt: skip
    if found is not None:
        raise UserError(f"{what} cannot have these values: {found}")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Context extension by changed rotary frequencies."""

    kind: Literal["llama3", "yarn", "linear"]
    """"linear" divides all frequencies by `factor`, "llama3" interpolates by wavelength (Llama 3.1 and later), "yarn"
    ramps between interpolated and original frequencies (OLMo 3's long context, layers with full attention only)."""
    factor: float
    """How many times longer the context becomes."""
    original_context: int = 8192
    """Tokens of the context before the extension."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_context / this are interpolated."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_context / this stay as they are."""
    beta_fast: float = 32.0
    """yarn: dimensions that rotate more often than this within the original context stay as they are."""
    beta_slow: float = 1.0
    """yarn: dimensions that rotate less often than this are interpolated."""
    attention_factor: float | None = None
    """yarn: scales cosine and sine; None for 0.1 ln(factor) + 1."""

    def __post_init__(self):
        _check_fields("rope_scaling", self)
        _check_above_zero(self, "rope_scaling.", ("factor", "original_context", "low_freq_factor", "high_freq_factor"))

    @property
    def magnitude(self) -> float:
        """The factor on cosine and sine: `attention_factor` where given, else 0.1 ln(factor) + 1 for YaRN, else 1."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.kind == "yarn" and self.factor > 1 else 1.0


def added_later(default: Any) -> Any:
    """A field that was added after runs had been saved: at its default it is left out of JSON and of digests.

    Settings that do not use it therefore keep their digest, and earlier run folders stay valid.
    """
    return dataclasses.field(default=default, metadata={"added_later": True})


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of each feed-forward layer (`models/moe.py`; spec olmo §13)."""

    count: int
    """Experts in each layer."""
    active: int
    """Experts that compute a token: those with the largest router probabilities."""
    load_balancing: float = 0.01
    """Weight of the load-balancing loss."""
    router_z: float = 0.001
    """Weight of the router's z-loss."""
    form: Literal["olmoe", "hf"] = "olmoe"
    """Normalisation of the auxiliary losses (`models.moe.aux_losses`): "olmoe" as OLMoE was trained, "hf" as
    `transformers` computes them."""

    def __post_init__(self):
        _check_fields("experts", self)
        for name in ("count", "active"):
            if not getattr(self, name) > 0:
                raise UserError(f"experts: {name} must be a positive whole number, not {getattr(self, name)!r}")
        if self.active > self.count:
            raise UserError(f"experts: active {self.active} is larger than count {self.count}")
        for name in ("load_balancing", "router_z"):
            if getattr(self, name) < 0:
                raise UserError(f"experts: {name} is a weight and must be at least 0, not {getattr(self, name)!r}")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """What a decoder sees pictures with: a vision transformer, the connector behind it, and tokens of pictures
    (`models/molmo/`; spec molmo §3 to §5). The defaults are the released models' with Qwen 2's vocabulary."""

    encoder: Literal["clip", "siglip", "dino", "metaclip"] = "clip"
    """The family of the vision transformer, which decides its equations, how pictures are resized and normalised."""
    image: int = 336
    """Pixels on a side of a crop."""
    patch: int = 14
    """Pixels on a side of a patch."""
    margin: int = 4
    """Patches on each side of a crop that its neighbours show too."""
    width: int = 1024
    """Size of the vision transformer's residual stream."""
    heads: int = 16
    """Number of its heads."""
    ffn: int = 4096
    """Hidden size of its feed-forward layer."""
    layers: int = 23
    """Number of its layers."""
    features: tuple[int, ...] = (-2, -9)
    """The layers whose outputs are a patch's features, one after the other; negative ones count from the last."""
    connector_ffn: int = 18944
    """Hidden size of the projector from pooled features to the decoder's width."""
    init_std: float = 0.02
    """Standard deviation of fresh weights of tower and connector. Narrow towers need a larger one: the connector
    multiplies two projections, and at width 64 with 0.02 what reaches the decoder is 10⁻⁵ of what a word is."""
    max_crops: int = 12
    """The most crops of a picture, besides the small copy of the whole."""
    start_id: int = 152064
    """Id of <im_start>."""
    end_id: int = 152065
    """Id of <im_end>."""
    patch_id: int = 152066
    """Id of <im_patch>, at which features are added."""
    column_id: int = 152067
    """Id of <im_col>, which ends a row of patches."""
    image_id: int = 152068
    """Id of <|image|>, which stands in a text for a picture."""
    extra_rows: int = 128
    """Rows of the embedding of added tokens, whose ids begin at the decoder's `vocab`."""
    legacy_image_mask: bool = False
    """Whether padding is reported one crop late, as released weights were trained."""
    legacy_tiny_side: bool = False
    """Whether a picture with a side shorter than the margins (112 pixels) is one crop whatever the other side is, as
    released weights were trained."""

    def __post_init__(self):
        _check_fields("vision", self)
        object.__setattr__(self, "features", tuple(self.features))
        for name in ("image", "patch", "width", "heads", "ffn", "layers", "connector_ffn", "max_crops"):
            if not getattr(self, name) > 0:
                raise UserError(f"vision: {name} must be a positive whole number, not {getattr(self, name)!r}")
        if not 0 < self.init_std < math.inf:
            raise UserError(f"vision: init_std {self.init_std!r} must be a number above 0")
        if self.image % self.patch:
            raise UserError(f"vision: image {self.image} is not a multiple of patch {self.patch}")
        if self.width % self.heads:
            raise UserError(f"vision: width {self.width} is not divisible by heads {self.heads}")
        if not 0 <= 2 * self.margin < self.grid:
            raise UserError(f"vision: margins of {self.margin} leave nothing of {self.grid} patches on a side")
        if not self.features or any(not -self.layers <= i < self.layers for i in self.features):
            raise UserError(f"vision: features {self.features} must name some of the {self.layers} layers")

    @property
    def grid(self) -> int:
        """Patches on a side of a crop."""
        return self.image // self.patch

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """`features` as numbers from 0."""
        return tuple(i % self.layers for i in self.features)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only transformer. Every model family is a set of values of these fields."""

    family: str
    """The family, which decides the names of tensors on the hub: a `model_type`, such as "olmo2"."""
    layers: int
    """Number of layers."""
    width: int
    """Size d of the residual stream."""
    heads: int
    """Number of query heads."""
    ffn: int
    """Hidden size f of the SwiGLU feed-forward layer."""
    vocab: int
    """Rows of the embedding table, padding rows included."""
    context: int
    """The most tokens of a sequence."""
    kv_heads: int = 0
    """Number of key and value heads; 0 for `heads`."""
    head_dim: int = 0
    """Size of a head; 0 for `width / heads`."""
    norm: Literal["rms", "layernorm"] = "rms"
    """RMSNorm or LayerNorm."""
    norm_eps: float = 1e-6
    """Added to the variance in a norm."""
    norm_placement: Literal["pre", "post", "sandwich"] = "post"
    """"pre" is h = x + A(N x), "post" is h = x + N(A(x)) (OLMo 2 and 3), "sandwich" is h = x + N(A(N x)) (Gemma 2)."""
    qk_norm: bool = False
    """One RMSNorm over the whole projected query and key, all heads together, before the rotation."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias (Qwen 2)."""
    qkv_clip: float | None = None
    """Bounds the absolute value of queries, keys and values (OLMo 1); None for no bound."""
    rope_theta: float = 500_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Context extension by changed frequencies; None for none."""
    window: int | None = None
    """Keys that a sliding-window layer sees, the token's own included; None for full attention everywhere."""
    full_attention_every: int = 4
    """With a window, every so many-th layer (1-based) has full attention."""
    tie_embeddings: bool = False
    """Whether the vocabulary head is the embedding table."""
    scalar_head: bool = False
    """A scalar output in place of the vocabulary head, for reward and value models."""
    dropout: float = 0.0
    """Probability that an activation is left out."""
    init: Literal["normal", "mitchell"] = "normal"
    """How parameters are initialised: "normal" with `init_std`, or "mitchell" (OLMo 1), which depends on width and
    depth."""
    init_std: float = 0.02
    """Standard deviation of "normal"."""
    vocab_used: int = 0
    """Tokens of the tokenizer, the used rows of `vocab`; 0 for all of them."""
    bos_id: int | None = None
    """Id of the token that begins a text; None where it is not known."""
    eos_id: int | None = None
    """Id of the token that ends a text; None where it is not known."""
    pad_id: int | None = None
    """Id of the padding token; None where it is not known."""
    experts: Experts | None = added_later(None)
    """A mixture of experts in place of each feed-forward layer, where `ffn` is the hidden size of one expert; None for
    a dense model."""
    full_attention_layers: tuple[int, ...] | None = added_later(None)
    """With a window, the layers (0-based) that have full attention, in place of `full_attention_every`; layers whose
    pattern does not repeat are compiled one by one."""
    activation: Literal["silu", "gelu_tanh"] = added_later("silu")
    """The activation of the gate in the feed-forward layer: "silu" (SwiGLU) or "gelu_tanh" (GeGLU with the tanh
    approximation, Gemma)."""
    norm_offset: float = added_later(0.0)
    """Added to the scale of an RMSNorm: Gemma stores scales around 0 and has 1."""
    scale_embeddings: bool = added_later(False)
    """Whether embeddings are multiplied by √width, rounded to the activation type (Gemma)."""
    query_scalar: float | None = added_later(None)
    """Attention scores are divided by its square root; None for `head_dim`."""
    attention_softcap: float | None = added_later(None)
    """Bounds attention scores s to c · tanh(s / c) (Gemma 2); None for no bound."""
    logits_softcap: float | None = added_later(None)
    """Bounds the logits of the vocabulary in the same way; None for no bound."""
    vision: VisionConfig | None = added_later(None)
    """What the model sees pictures with (Molmo); None for a model of text alone."""

    def __post_init__(self):
        _check_fields("a model", self)
        set_default = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - frozen dataclass
        if self.heads < 1:
            raise UserError(f"heads must be a positive whole number, not {self.heads!r}")
        if self.kv_heads == 0:
            set_default("kv_heads", self.heads)
        if self.head_dim == 0:
            if self.width % self.heads:
                raise UserError(f"width {self.width} is not divisible by heads {self.heads}; set head_dim")
            set_default("head_dim", self.width // self.heads)
        if self.vocab_used == 0:
            set_default("vocab_used", self.vocab)
        for name in ("layers", "width", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context"):
            most = MAX_LAYERS if name == "layers" else MAX_SIZE
            if not 0 < getattr(self, name) <= most:
                raise UserError(f"{name} must be a whole number from 1 to {most:,}, not {getattr(self, name)!r}")
        positive = ("norm_eps", "rope_theta", "full_attention_every", "query_scalar", "attention_softcap")
        _check_above_zero(self, "", (*positive, "logits_softcap"))
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout {self.dropout} must be at least 0 and below 1")
        if self.heads % self.kv_heads:
            raise UserError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; rotary embeddings need an even size")
        if self.vocab_used > self.vocab:
            raise UserError(f"vocab_used {self.vocab_used} is larger than vocab {self.vocab}")
        if self.window is not None and self.window < 1:
            raise UserError(f"window {self.window} must be at least 1 (a token attends to itself)")
        if self.full_attention_layers is not None:
            set_default("full_attention_layers", tuple(self.full_attention_layers))
            strange = [i for i in self.full_attention_layers if not (isinstance(i, int) and 0 <= i < self.layers)]
            if strange:
                raise UserError(f"full_attention_layers names layer {strange[0]!r}; there are 0 to {self.layers - 1}")

    @property
    def pattern(self) -> tuple[int | None, ...]:
        """Attention window of each layer, `None` for full attention; length `layers`."""
        if self.window is None:
            return (None,) * self.layers
        full: Sequence[int] | None = self.full_attention_layers
        if full is None:
            full = range(self.full_attention_every - 1, self.layers, self.full_attention_every)
        return tuple(None if i in full else self.window for i in range(self.layers))

    @property
    def architecture(self) -> DecoderConfig:
        """A copy without what matters in training only: dropout, and the weights and form of routers' losses."""
        experts = self.experts and Experts(self.experts.count, self.experts.active)
        return dataclasses.replace(self, dropout=0.0, experts=experts)

    def with_router_losses(self, **weights: float | None) -> DecoderConfig:
        """A copy with other weights of the routers' losses, `load_balancing` and `router_z`; None leaves one as it is.

        Raises:
            UserError: a weight is given, but the model has no experts.
        """
        given: dict[str, Any] = {name: weight for name, weight in weights.items() if weight is not None}
        if given and self.experts is None:
            raise UserError(f"{', '.join(given)}: this model ({self.family}) has no experts; leave it out")
        return self.replace(experts=dataclasses.replace(self.experts, **given)) if self.experts else self

    def replace(self, **changes) -> DecoderConfig:
        """A copy with fields changed; an unknown name raises `UserError`."""
        known = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                raise UserError(f"a model has no field {name!r}; it has {', '.join(sorted(known))}")
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed. Changes speed, memory use and rounding, but not the mathematics."""

    # Removed fields with the only values that they ever had. Digests of settings still include them, so that run
    # folders of earlier versions stay valid.
    FORMER_FIELDS: ClassVar[dict[str, None]] = {"batch_axes": None, "sequence_axis": None}

    dtype: str = "float32"
    """Type of activations. Parameters keep their own type and are cast where they are used."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Where the program will run, which may differ from where it is traced (ahead-of-time compilation); None for JAX's
    default backend."""
    remat: Literal["none", "full", "attention", "outputs", "dots"] = "none"
    """What a layer stores for its backward pass; the rest is recomputed. "none" stores everything, "full" only the
    layer's input, "attention" also queries, keys, values and the output of attention, "outputs" also the results of
    both residual branches, "dots" the results of all matrix products with weights."""
    attention: str = "auto"
    """"auto" or a kernel of `models/attention.py`. With "blocked" or "dense" decoding uses no kernel either."""
    unroll: int = 1
    """Layers in one iteration of the scan over layers."""
    logits_chunk: int = 1024
    """The most tokens of a device whose vocabulary logits are in memory at once."""
    tile_kib: int | None = None
    """VMEM that one operation of a TPU may use, in KiB. A larger limit (65536) allows larger tiles and runs matrix
    products nearer to peak FLOPs, but doubles compile time; None leaves it to the compiler."""

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"compute.dtype {self.dtype!r} must be float32, bfloat16 or float16")
        _check_above_zero(self, "compute.", ("unroll", "logits_chunk", "tile_kib"))


def _check_above_zero(config: object, where: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise UserError(f"{where}{name} {value!r} must be a number above 0")


@dataclasses.dataclass(frozen=True)
class Placement:
    """How the axes of a model's arrays are sharded over the axes of a mesh. Derived from the mesh, never configured.

    `batch` names the mesh axes that rows are sharded over (None: there is no mesh). `sequence` is the axis that
    sequences are sharded over, or None. `tensor` is the axis for heads, feed-forward width and vocabulary. `experts` is
    the axis, one of `batch`, that the experts of a mixture are sharded over.
    """

    batch: tuple[str, ...] | None = None
    sequence: str | None = None
    tensor: str | None = None
    experts: str | None = None
