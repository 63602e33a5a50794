"""Model configurations and batch shapes of a recipe's stages, without data and weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeGuard

import jax
import jax.numpy as jnp

import models
from easylm_jax.checkpoint import hub
from easylm_jax.checkpoint.load import ModelSource, model_of
from easylm_jax.config import RL, DataSpec, Generate, Recipe, Stage, Tokenizer, Train
from easylm_jax.data import load_tokenizer
from easylm_jax.objectives.base import FORWARD, image_shapes
from easylm_jax.train.state import with_router_losses
from models import registry
from models.config import Compute, DecoderConfig, Placement, VisionConfig
from models.errors import UserError
from models.flops import vision_flops
from models.hf.convert import read_config
from models.molmo.image import layout

Shapes = dict[str, jax.ShapeDtypeStruct]

# Published models by name on the Hub (pattern → preset of the same shape), so that a plan needs no network.
_PUBLISHED: tuple[tuple[str, str], ...] = (
    (r"olmo-2-0425-1b", "olmo2-1b"), (r"olmo-2-1124-7b", "olmo2-7b"), (r"olmo-2-1124-13b", "olmo2-13b"),
    (r"olmo-2-0325-32b", "olmo2-32b"),
    (r"olmoe-1b-7b-0(924|125)", "olmoe-1b-7b"),
    (r"olmo-3-1025-7b|olmo-3-7b", "olmo3-7b"), (r"olmo-3(-1125)?-32b", "olmo3-32b"),
    (r"llama-2-7b|tulu-2-7b|tulu-2-dpo-7b", "llama2-7b"),
    (r"llama-2-13b|tulu-2-13b|tulu-2-dpo-13b|tulu-v2\.5-.*?13b", "llama2-13b"),
    (r"llama-2-70b|tulu-2-70b|tulu-2-dpo-70b|tulu-v2\.5-.*?70b", "llama2-70b"),
    (r"llama-3\.1(-tulu-3(\.1)?)?-8b", "llama3.1-8b"), (r"llama-3\.1(-tulu-3)?-70b", "llama3.1-70b"),
    (r"llama-3\.1(-tulu-3)?-405b", "llama3.1-405b"), (r"(meta-)?llama-3-8b", "llama3-8b"),
    (r"(meta-)?llama-3-70b", "llama3-70b"), (r"llama-3\.2-1b", "llama3.2-1b"), (r"llama-3\.2-3b", "llama3.2-3b"),
    (r"qwen2\.5-math-(1\.5b|7b|72b)", r"qwen2.5-math-\1"),
    (r"qwen2-(0\.5b|1\.5b|7b|72b)", r"qwen2-\1"),
    (r"mistral-7b-v0\.([123])", r"mistral-7b-v0.\1"), (r"gemma-2-(2b|9b|27b)", r"gemma2-\1"),
    (r"olmo-7b-1024-preview", "olmo2-7b"),
    (r"molmo-7b-(d|o)", r"molmo-7b-\1"), (r"molmo-72b", "molmo-72b"), (r"molmoe-1b", "molmoe-1b"),
    (r"qwen2\.5-(0\.5b|1\.5b|3b|7b|14b|32b|72b)", r"qwen2.5-\1"),
)  # fmt: skip
_REWARD_MODEL = re.compile(r"(^|-)rm($|-)", re.IGNORECASE)  # names of models with a scalar head


def published_config(name: str) -> DecoderConfig | None:
    """The configuration of a published model by its Hub name (`owner/model`); None if it is not known."""
    model = name.rpartition("/")[2].partition("@")[0].lower()
    for pattern, preset in _PUBLISHED:
        if found := re.match(pattern, model):
            config = models.preset(found.expand(preset))
            return config.replace(scalar_head=True) if _REWARD_MODEL.search(model) else config
    return None


def config_of(init: str, recipe: Recipe) -> DecoderConfig:
    """The configuration of the model that `init` names (see `checkpoint.load.model_from`).

    Raises:
        UserError: the configuration of a published model is not known and cannot be downloaded, or `init` is a stage
            that trains no model.
    """
    if init.startswith("run:"):
        return model_of(init.removeprefix("run:"))
    if init.startswith("hf:"):
        name = init.removeprefix("hf:")
        if Path(name).expanduser().is_dir():
            return read_config(Path(name).expanduser())
        return published_config(name) or read_config(hub.resolve(name))
    stage = recipe.stage(init)
    if is_training(stage):
        return stage_config(stage, recipe)
    if stage.derived_from is not None:
        return stage.derived(config_of(stage.derived_from, recipe))
    raise UserError(f"recipe {recipe.name}: stage {init} trains no model; init must name a stage that does")


def is_training(stage: Stage) -> TypeGuard[Train]:
    """Whether a stage trains a model."""
    return stage.trains


def stage_config(stage: Train, recipe: Recipe) -> DecoderConfig:
    """The configuration of the model that a stage trains."""
    if stage.init is None:
        assert stage.model is not None
        config = _fresh_config(stage.model, stage.data.tokenizer, recipe)
    else:
        config = config_of(stage.init, recipe)
    config = with_router_losses(stage, config)
    return config.replace(scalar_head=True) if stage.scalar_head else config


def _fresh_config(shape: str | DecoderConfig, tokenizer: str, recipe: Recipe) -> DecoderConfig:
    """The configuration of a fresh model. A preset of a scaling ladder gets its tokenizer's vocabulary, if that is
    known without training or downloading it."""
    if not isinstance(shape, str):
        return shape
    config = models.preset(shape)
    size = _vocab_size(tokenizer, recipe) if registry.fits_tokenizer(shape) else None
    if size is None:
        return config
    return registry.with_vocabulary(config, size, bos_id=None, eos_id=None, pad_id=None)


def _vocab_size(tokenizer: str, recipe: Recipe) -> int | None:
    kind, _, name = tokenizer.partition(":")
    if kind == "stage":
        stage = recipe.stage(name)
        return stage.vocab_size if isinstance(stage, Tokenizer) else None
    return load_tokenizer(tokenizer).vocab_size if Path(name).expanduser().exists() else None


def preset_name(config: DecoderConfig) -> str:
    """The name of the preset with this shape; family and width if there is none."""
    bare = config.replace(scalar_head=False).architecture
    presets = models.presets()
    names = [name for name, preset in presets.items() if preset.architecture == bare]
    ids = {"vocab": 1, "vocab_used": 1, "bos_id": None, "eos_id": None, "pad_id": None}
    ladder = (name for name in presets if registry.fits_tokenizer(name))
    names += [name for name in ladder if presets[name].replace(**ids).architecture == bare.replace(**ids)]
    return names[0] if names else f"{config.family} of width {config.width}"


def model(config: DecoderConfig, compute: Compute, placement: Placement, dropout: float = 0.0) -> ModelSource:
    """A model without parameters."""
    return ModelSource(models.build(config.replace(dropout=dropout), compute, placement), None)


def batch(data: DataSpec, rows: int, *, reference: bool = False) -> Shapes:
    """The shapes of a batch of packed rows. The number of preference pairs in a row depends on the data; assumed is
    `max_pairs_per_row` if given, otherwise as many as fit at maximum length, or one if rows are not packed."""
    shape = (rows, data.sequence_length)
    columns = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in FORWARD}
    columns["loss_weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    if data.kind == "preference":
        side = data.max_side_length or data.sequence_length // 2
        most = data.max_pairs_per_row or (1 if data.packing == "none" else max(1, data.sequence_length // side))
        columns["pair_index"] = jax.ShapeDtypeStruct((rows, most), jnp.int32)
        names = ("margins", *(("reference_chosen", "reference_rejected") if reference else ()))
        columns |= {name: jax.ShapeDtypeStruct((rows, most), jnp.float32) for name in names}
    if data.vision is not None:
        columns |= _pictures(data, data.vision, rows)
    return columns


def _pictures(data: DataSpec, vision: VisionConfig, rows: int) -> Shapes:
    """The columns of pictures."""
    return image_shapes(vision, rows, _row_crops(data, vision), data.sequence_length)


def _row_crops(data: DataSpec, vision: VisionConfig) -> int:
    """The crops of a row. Without `row_crops`, it is taken to be full of pictures of one crop and its copy, which have
    the most crops for their tokens; those of pairs are in both sides, and their crops once."""
    small = layout(vision.image, vision.image, 1, vision)
    own = len(small.tokens) * (2 if data.kind == "preference" else 1)
    return data.row_crops or small.crops * max(1, data.sequence_length // own)


def picture_flops(config: DecoderConfig, data: DataSpec) -> float:
    """FLOPs of the forward pass from the pictures of a row to the embeddings of their tokens; 0 without pictures.

    Its crops have as many patch tokens as those of a picture with the most crops, within the length of the row.
    """
    vision = data.vision
    if vision is None:
        return 0.0
    side, most = vision.image * vision.max_crops, vision.max_crops
    large, crops = layout(side, side, most, vision), _row_crops(data, vision)
    return vision_flops(config, crops, min(crops * len(large.patch_at) // large.crops, data.sequence_length))


def max_length(stage: RL | Generate) -> int:
    """Tokens of the longest prompt plus the longest response."""
    return stage.data.sequence_length + stage.sampling.max_new_tokens
