"""Every model by name: the family files, their presets, and `build`."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from models.config import Compute, DecoderConfig, Placement
from models.errors import UserError

if TYPE_CHECKING:
    from models.decoder import Decoder


# A family is a file with PRESETS, MODEL_TYPES, hf_table, from_hf and to_hf; a new one is a file and a name here. One
# whose layers compute something else also names its class, MODEL = "module:class"; the others are `models.decoder`'s.
FAMILY_NAMES = (
    "olmo",
    "llama",
    "qwen2",
)


def families() -> tuple:
    """The family modules."""
    return tuple(importlib.import_module(f"models.families.{name}") for name in FAMILY_NAMES)


def presets() -> dict[str, DecoderConfig]:
    """Every released size by name."""
    return {name: config for family in families() for name, config in family.PRESETS.items()}


def preset(name: str) -> DecoderConfig:
    """The configuration called `name`; an unknown name raises `UserError` with the nearest ones."""
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}" if near else f"known: {', '.join(known)}"
        raise UserError(f"unknown model {name!r}; {hint}")
    return known[name]


def build(
    name_or_config: str | DecoderConfig, compute: Compute | None = None, placement: Placement | None = None
) -> Decoder:
    """A model from a preset's name or a configuration. Allocates nothing: `model.init(key)` makes parameters."""
    config = preset(name_or_config) if isinstance(name_or_config, str) else name_or_config
    family = next((family for family in families() if config.family in family.MODEL_TYPES), None)
    module, _, name = getattr(family, "MODEL", "models.decoder:Decoder").partition(":")
    return getattr(importlib.import_module(module), name)(config, compute or Compute(), placement or Placement())
