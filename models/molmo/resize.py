"""Resizing as each vision encoder was trained with it (spec molmo §3.2), uint8 in and out."""

from __future__ import annotations

import numpy as np

from models.errors import UserError


def resize(pixels: np.ndarray, height: int, width: int, encoder: str) -> np.ndarray:
    """uint8 [H, W, 3] → uint8 [height, width, 3].

    "clip": bilinear with a filter that widens where the picture shrinks. "dino" and "metaclip": bicubic, likewise.
    "siglip": bilinear between four neighbours, whatever the scale.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if encoder == "siglip":
        return _bilinear(pixels, height, width)
    from PIL import Image

    filters = {
        "clip": Image.Resampling.BILINEAR, "dino": Image.Resampling.BICUBIC, "metaclip": Image.Resampling.BICUBIC,
    }  # fmt: skip
    if encoder not in filters:
        raise UserError(f"unknown vision encoder {encoder!r}; use siglip, {', '.join(filters)}")
    return np.asarray(Image.fromarray(pixels).resize((width, height), filters[encoder]))


def _bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolates between the nearest centres of pixels along rows and columns, without a wider filter."""
    (top, bottom, down), (left, right, across) = (
        _neighbours(old, new) for old, new in zip(pixels.shape[:2], (height, width), strict=True)
    )
    rows = pixels[top] * (1 - down)[:, None, None] + pixels[bottom] * down[:, None, None]
    out = rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]
    return np.clip(out.round(), 0, 255).astype(np.uint8)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `new` pixels: the two of `old` pixels beside its centre, and the weight of the second."""
    at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    return first, np.minimum(first + 1, old - 1), at - first
