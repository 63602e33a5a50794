"""The models that are trained and evaluated. A model is a set of pure functions of its parameters.

    model = models.build("olmo2-1b")            # or a DecoderConfig
    params = model.init(jax.random.key(0))
    logits = models.logits(model, params, tokens)

    model, params = models.load_hf("path/to/OLMo-2-0425-1B")
    models.save_hf(model, params, "path/to/export")

| file | contents |
|---|---|
| `model.py` | `Model`, the protocol that every architecture implements |
| `config.py` | `DecoderConfig` (shape), `Compute` (how it is computed), `Placement` (mesh axes) |
| `decoder.py`, `layers.py`, `attention.py`, `heads.py` | the decoder-only transformer |
| `decode_attention.py` | the TPU kernel for attention of one new token over the cache |
| `moe.py`, `grouped_matmul.py` | mixtures of experts: routing, auxiliary losses; the products of the experts |
| `families/` | one file for each family: released sizes, tensor names and `config.json` |
| `registry.py` | names to configurations and models |
| `molmo/` | pictures: crops and tokens, vision towers, the connector, and the decoder that sees |
| `hf/` | import from and export to Hugging Face folders |
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from models.config import Compute, DecoderConfig, Experts, Placement, RopeScaling, VisionConfig
from models.errors import UserError
from models.registry import build, family_modules, preset, presets

if TYPE_CHECKING:
    import jax

    from models.decoder import Decoder, Output, Params
    from models.heads import TokenScores, head_logits, scalar_head, token_scores
    from models.hf.convert import load_hf, save_hf
    from models.model import Model
    from models.molmo.batch import Pictures


# Public names whose modules import JAX. They are imported on first use, so that the command line starts quickly.
_LAZY = {
    "Decoder": "decoder", "Output": "decoder", "Params": "decoder", "TokenScores": "heads", "head_logits": "heads",
    "scalar_head": "heads", "token_scores": "heads", "load_hf": "hf.convert", "save_hf": "hf.convert",
}  # fmt: skip

__all__ = [
    "Compute",
    "Decoder",
    "DecoderConfig",
    "Experts",
    "Output",
    "Params",
    "Placement",
    "RopeScaling",
    "TokenScores",
    "UserError",
    "VisionConfig",
    "build",
    "family_modules",
    "head_logits",
    "load_hf",
    "logits",
    "preset",
    "presets",
    "save_hf",
    "scalar_head",
    "token_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"models.{_LAZY[name]}"), name)


def logits(
    model: Model,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    images: Sequence[Pictures] | None = None,
) -> jax.Array:
    """Logits of every position, float32 [B, S, V]. For tests and small inputs; training uses `token_scores`.

    Args:
        tokens, positions, segment_ids: int32 [B, S]; segment 0 is padding. Without positions, they restart in each
            segment; without segment ids, each row is one document.
        images: for each row what `models.molmo.image.tokenize` returned (or a list of these, or None); the row has
            their `tokens`. For models that see pictures.

    Outside of `jax.set_mesh(mesh)` a model that was loaded for a mesh leaves the sharding of its activations to JAX.
    """
    import jax

    if jax.sharding.get_abstract_mesh().empty:
        model = dataclasses.replace(model, placement=Placement())  # type: ignore[type-var]
    if images is None and model.config.vision is not None and not isinstance(tokens, jax.core.Tracer):
        images = [None] * len(tokens)  # tokens of a picture without it are an error
    seen = {} if images is None else {"images": _collated(model, tokens, images)}
    return _scored()(model, params, tokens, positions, segment_ids, seen)


@functools.cache
def _scored() -> Callable[..., jax.Array]:
    """What `logits` computes as one program: less to compile than each of its operations by itself."""
    import jax

    from models.heads import head_logits

    def scored(
        model: Model, params: Params, tokens: jax.Array, positions: Any, segment_ids: Any, seen: dict[str, Any]
    ) -> jax.Array:
        output = model(params, tokens, positions=positions, segment_ids=segment_ids, **seen)
        return head_logits(output.hidden, model.head_kernel(params), model.config.logits_softcap)

    return jax.jit(scored, static_argnums=0)


def _collated(model: Model, tokens: jax.Array, images: Sequence[Pictures]) -> Any:
    import numpy as np

    from models.molmo.batch import collate

    if model.config.vision is None:
        raise UserError(f"a {model.config.family} model sees no pictures; leave images out")
    return collate(np.asarray(tokens), images, model.config.vision)
