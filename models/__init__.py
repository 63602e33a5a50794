"""What is trained: models as pure functions of their parameters.

model = models.build("olmo2-1b")            # or a DecoderConfig
params = model.init(jax.random.key(0))
logits = models.logits(model, params, tokens)

model, params = models.load_hf("path/to/OLMo-2-0425-1B")
models.save_hf(model, params, "path/to/export")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from models.config import Compute, DecoderConfig, Placement, RopeScaling
from models.errors import UserError
from models.registry import build, families, preset, presets

if TYPE_CHECKING:
    import jax

    from models.decoder import Decoder, Output, Params
    from models.heads import TokenScores, head_logits, scalar_head, token_scores
    from models.hf.convert import load_hf, save_hf


# Public names whose modules import JAX: looked up on first use, so that the command line can answer at once.
_HOMES = {
    "Decoder": "decoder", "Output": "decoder", "Params": "decoder", "TokenScores": "heads", "head_logits": "heads",
    "scalar_head": "heads", "token_scores": "heads", "load_hf": "hf.convert", "save_hf": "hf.convert",
}  # fmt: skip

__all__ = [
    "Compute",
    "Decoder",
    "DecoderConfig",
    "Output",
    "Params",
    "Placement",
    "RopeScaling",
    "TokenScores",
    "UserError",
    "build",
    "families",
    "head_logits",
    "load_hf",
    "logits",
    "preset",
    "presets",
    "save_hf",
    "scalar_head",
    "token_scores",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"models.{_HOMES[name]}"), name)


def logits(
    model: Decoder,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Whole logits, float32 [B, S, V], for tests and small work; training uses `token_scores`."""
    from models.heads import head_logits

    output = model(params, tokens, positions=positions, segment_ids=segment_ids)
    return head_logits(output.hidden, model.head_kernel(params))
