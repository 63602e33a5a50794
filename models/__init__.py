"""What is trained: models as pure functions of their parameters.

    model = models.build("olmo2-1b")            # or a DecoderConfig
    params = model.init(jax.random.key(0))
    logits = models.logits(model, params, tokens)

    model, params = models.load_hf("path/to/OLMo-2-0425-1B")
    models.save_hf(model, params, "path/to/export")
"""

from __future__ import annotations

import difflib

import jax

from models import llama, olmo, qwen2
from models.config import Compute, DecoderConfig, RopeScaling
from models.decoder import Decoder, Output, Params
from models.errors import UserError
from models.heads import TokenScores, head_logits, token_scores
from models.hf import load_hf, save_hf

FAMILIES = (olmo, llama, qwen2)

__all__ = [
    "Compute", "Decoder", "DecoderConfig", "Output", "Params", "RopeScaling", "TokenScores", "UserError",
    "build", "load_hf", "logits", "preset", "presets", "save_hf", "token_scores",
]  # fmt: skip


def presets() -> dict[str, DecoderConfig]:
    """Every released size by name."""
    return {name: config for family in FAMILIES for name, config in family.PRESETS.items()}


def preset(name: str) -> DecoderConfig:
    """The configuration called `name`; an unknown name raises `UserError` with the nearest ones."""
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise UserError(f"unknown model {name!r}; {'did you mean ' + ', '.join(near) if near else 'known: ' + ', '.join(known)}")
    return known[name]


def build(name_or_config: str | DecoderConfig, compute: Compute | None = None) -> Decoder:
    """A model from a preset's name or a configuration. Allocates nothing: `model.init(key)` makes parameters."""
    config = preset(name_or_config) if isinstance(name_or_config, str) else name_or_config
    return Decoder(config, compute or Compute())


def logits(
    model: Decoder,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Whole logits, float32 [B, S, V], for tests and small work; training uses `token_scores`."""
    output = model(params, tokens, positions=positions, segment_ids=segment_ids)
    return head_logits(output.hidden, model.head_kernel(params))
