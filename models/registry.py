"""Models by name: the families, their presets, and `build`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from models.config import Compute, DecoderConfig, Placement
from models.errors import UserError

if TYPE_CHECKING:
    from models.decoder import Decoder
    from models.hf.names import Row


# A family is a module of `models/families/` that matches `Family`. To add one, write the file and add its name here. A
# family whose layers compute something else also names its class, MODEL = "module:class"; the others use
# `models.decoder:Decoder`, or `models.moe:MoEDecoder` where a configuration has experts.
FAMILY_NAMES = (
    "olmo",
    "olmoe",
    "llama",
    "qwen2",
    "mistral",
    "gemma2",
    "molmo",
)


class Family(Protocol):
    """What a family's module defines."""

    PRESETS: dict[str, DecoderConfig]  # released sizes by name
    MODEL_TYPES: tuple[str, ...]  # values of `model_type` in config.json, and of `DecoderConfig.family`

    def hf_table(self, config: DecoderConfig) -> Sequence[Row]:
        """The name table: which stored tensors hold which parameters."""
        ...

    def from_hf(self, config_json: Mapping[str, Any]) -> DecoderConfig:
        """The configuration that a `config.json` describes; raises `UserError` when it cannot be built."""
        ...

    def to_hf(self, config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
        """The `config.json` of a model whose weights are stored as `dtype`."""
        ...


def family_modules() -> tuple[Family, ...]:
    """The modules of all families."""
    # An imported module is typed as ModuleType, which says nothing about its functions.
    return tuple(cast(Family, importlib.import_module(f"models.families.{name}")) for name in FAMILY_NAMES)


def presets() -> dict[str, DecoderConfig]:
    """Configurations of all released sizes by name."""
    return {name: config for family in family_modules() for name, config in family.PRESETS.items()}


def preset(name: str) -> DecoderConfig:
    """The configuration called `name`; an unknown name raises `UserError` with similar names."""
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}" if near else f"known: {', '.join(known)}"
        raise UserError(f"unknown model {name!r}; {hint}")
    return known[name]


VOCAB_MULTIPLE = 128  # of rows, so that tiles of a TPU and the usual meshes divide the vocabulary


def fits_tokenizer(name: str) -> bool:
    """Whether a preset takes the vocabulary of its tokenizer: a size of a scaling ladder, without released weights."""
    return any(name in getattr(family, "LADDER", ()) for family in family_modules())


def with_vocabulary(
    config: DecoderConfig, size: int, *, bos_id: int | None, eos_id: int | None, pad_id: int | None
) -> DecoderConfig:
    """The configuration for a tokenizer of `size` entries; rows are padded to a multiple of `VOCAB_MULTIPLE`."""
    rows = -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return config.replace(vocab=rows, vocab_used=size, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)


def build(
    name_or_config: str | DecoderConfig, compute: Compute | None = None, placement: Placement | None = None
) -> Decoder:
    """A model from a preset's name or a configuration. Allocates nothing; `model.init(key)` makes the parameters."""
    config = preset(name_or_config) if isinstance(name_or_config, str) else name_or_config
    family = next((family for family in family_modules() if config.family in family.MODEL_TYPES), None)
    plain = "models.decoder:Decoder" if config.experts is None else "models.moe:MoEDecoder"
    module, _, name = getattr(family, "MODEL", plain).partition(":")
    return getattr(importlib.import_module(module), name)(config, compute or Compute(), placement or Placement())
