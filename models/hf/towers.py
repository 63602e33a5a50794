"""Vision transformers of Hugging Face (CLIP, MetaCLIP, SigLIP, DINOv2) as the tower of a model that sees.

What features are not taken from is left out: the final norms, projections and heads (spec molmo §16.3). Positions are
interpolated where the grid of patches differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from models import reading, trees
from models.config import VisionConfig
from models.errors import UserError
from models.hf import files
from models.model import Params
from models.molmo import tower

Tensors = Mapping[str, np.ndarray]

# Our names below `vision.blocks` and theirs below a layer, for CLIP and SigLIP, and for DINOv2.
_CLIP = {
    "attn_norm": "layer_norm1", "ffn_norm": "layer_norm2", "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj", "attn.o": "self_attn.out_proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
}  # fmt: skip
_DINO = {
    "attn_norm": "norm1", "ffn_norm": "norm2", "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key", "attn.v": "attention.attention.value", "attn.o": "attention.output.dense",
    "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
}  # fmt: skip
# Newer versions of transformers call DINOv2's projections like this; files on the hub have the names above.
_RENAMED = {
    ".attention.q_proj.": ".attention.attention.query.", ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.", ".attention.o_proj.": ".attention.output.dense.",
}  # fmt: skip
_KINDS = {"clip": "clip", "clip_vision_model": "clip", "siglip": "siglip", "siglip_vision_model": "siglip",
          "dinov2": "dino"}  # fmt: skip


_OTHER = ("text_model.", "logit_", "text_projection", "visual_projection")  # of CLIP and SigLIP as a whole


def read_tower(folder: str | os.PathLike, vision: VisionConfig) -> Params:
    """The parameters, float32, of the tower in a Hugging Face folder; of its layers the first `vision.layers`.

    Raises:
        UserError: it is another kind of model, or has other sizes than `vision`.
    """
    folder = Path(folder)
    config_json = reading.read_json(folder / "config.json", mend=files.MEND)
    kind = _KINDS.get(str(config_json.get("model_type")))
    if kind is None:
        raise UserError(
            f"{folder} has model_type {config_json.get('model_type')!r}; a tower is one of {', '.join(_KINDS)}"
        )
    if kind != vision.encoder.removeprefix("meta"):
        raise UserError(f"{folder} is a {kind} model, but vision.encoder is {vision.encoder!r}")
    with files.Store(folder) as store:
        wanted = [name for name in store.slices if not name.startswith(_OTHER)]
        tensors = {name: store.read(name, [(0, size) for size in store.shape(name)]) for name in wanted}
    return from_tensors(tensors, vision)


def from_tensors(tensors: Tensors, vision: VisionConfig) -> Params:
    """Parameters of a tower, float32, from the tensors of `transformers`' model.

    Raises:
        UserError: tensors are missing, or have other shapes than the configuration says.
    """
    named = {_hub_name(name): np.asarray(x, np.float32) for name, x in tensors.items()}
    dino = vision.encoder == "dino"
    table, layer = (_DINO, "encoder.layer") if dino else (_CLIP, "encoder.layers")

    def take(name: str) -> np.ndarray:
        if name not in named:
            raise UserError(f"the vision model lacks the tensor {name}")
        return named[name]

    def stacked(name: str, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> np.ndarray:
        return np.stack([change(take(f"{layer}.{i}.{name}")) for i in range(vision.layers)])

    patch = "embeddings.patch_embeddings.projection" if dino else "embeddings.patch_embedding"
    place = "embeddings.position_embeddings" if dino else "embeddings.position_embedding.weight"
    flat: dict[str, np.ndarray] = {
        # [width, 3, p, p] → [p·p·3, width]: rows, columns, channels
        "patch.kernel": take(f"{patch}.weight").transpose(2, 3, 1, 0).reshape(-1, vision.width),
        "positions.table": interpolated(take(place).reshape(-1, vision.width), vision),
    }
    traits = tower.TRAITS[vision.encoder]
    if traits.patch_bias:
        flat["patch.bias"] = take(f"{patch}.bias")
    if traits.class_token:
        flat["class_token.table"] = take("embeddings.cls_token" if dino else "embeddings.class_embedding").reshape(-1)
    if traits.pre_norm:
        flat |= {"pre_norm.scale": take("pre_layrnorm.weight"), "pre_norm.bias": take("pre_layrnorm.bias")}
    for ours, theirs in table.items():
        if ours.endswith("norm"):
            flat[f"blocks.{ours}.scale"] = stacked(f"{theirs}.weight")
        else:
            flat[f"blocks.{ours}.kernel"] = stacked(f"{theirs}.weight", np.transpose)
        flat[f"blocks.{ours}.bias"] = stacked(f"{theirs}.bias")
    if traits.layer_scale:
        flat["blocks.attn_scale.scale"] = stacked("layer_scale1.lambda1")
        flat["blocks.ffn_scale.scale"] = stacked("layer_scale2.lambda1")
    wanted = trees.flatten(jax.eval_shape(lambda: tower.init(vision, jax.random.key(0))))
    odd = [name for name, leaf in wanted.items() if flat[name].shape != leaf.shape]
    if odd:
        raise UserError(
            f"the vision model's {odd[0]} is {list(flat[odd[0]].shape)}, expected {list(wanted[odd[0]].shape)}"
        )
    return trees.unflatten(flat)


def _hub_name(name: str) -> str:
    for new, old in _RENAMED.items():
        name = name.replace(new, old)
    return name.removeprefix("vision_model.")


def interpolated(table: np.ndarray, vision: VisionConfig) -> np.ndarray:
    """Positions for the grid of `vision`: bicubic, with DINO's scale of (grid + 0.1) / old grid; the class token's row
    stays as it is."""
    extra = int(tower.TRAITS[vision.encoder].class_token)
    first, places = table[:extra], table[extra:]
    old = round(len(places) ** 0.5)
    if old == vision.grid:
        return table
    weights = _cubic(old, vision.grid, (vision.grid + 0.1) / old)
    grid = np.einsum("ya,abd,xb->yxd", weights, places.reshape(old, old, -1).astype(np.float64), weights)
    return np.concatenate([first, grid.reshape(vision.grid**2, -1).astype(table.dtype)])


def _cubic(old: int, new: int, scale: float, a: float = -0.75) -> np.ndarray:
    """Weights [new, old] of bicubic interpolation along one axis, edges repeated."""
    at = (np.arange(new) + 0.5) / scale - 0.5
    base = np.floor(at).astype(int)
    weights = np.zeros((new, old))
    for shift in range(-1, 3):
        x = np.abs(at - (base + shift))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(base + shift, 0, old - 1)), np.where(x <= 1, near, far))
    return weights
