"""A picture to what a Molmo model reads: crops of it, tokens in their place, and which patches each token pools.

    image → one small copy of the whole and up to `max_crops` overlapping crops → [crops, patches, pixels]
          → <im_start> rows of <im_patch> … <im_col> <im_end>, once for the small copy and once for all crops together

NumPy and Pillow only, so that worker processes need no JAX. Source: arXiv 2409.17146 section 2, and spec molmo §3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from models.config import VisionConfig
from models.errors import UserError
from models.molmo import decode
from models.molmo.resize import resize

POOL = 2  # patches on each side of a pooled cell
REAL, PARTIAL, PADDED = 0, 1, 2  # classes of a patch: none of it, a part of it, all of it lies outside the picture
DEFAULT = VisionConfig(legacy_tiny_side=True)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The crops and tokens of a picture, which follow from its size alone.

    `tiling`: rows and columns of crops. `tokens` int32 [T]. `pooling` int32 [N, 4]: for each patch token, in order, the
    patches that it pools, as indices into all patches of all crops (crop · patches + patch), −1 where there is none.
    `patch_at` int32 [N]: the place of each patch token in `tokens`.
    """

    tiling: tuple[int, int]
    tokens: np.ndarray
    pooling: np.ndarray
    patch_at: np.ndarray

    @property
    def crops(self) -> int:
        """Crops, the small copy of the whole picture among them."""
        return 1 + self.tiling[0] * self.tiling[1]


@dataclasses.dataclass(frozen=True)
class TokenizedImage:
    """A picture as a model reads it.

    `tokens`, `pooling` and `patch_at` are those of its `Layout`. `crops` uint8 [C, P², 3·p²]: the patches of each crop
    in rows; in a patch rows, columns, channels. The model normalises them. `padding` uint8 [C, P²]: `REAL`, `PARTIAL`
    or `PADDED`. `size`: height and width of the picture.
    """

    layout: Layout
    crops: np.ndarray
    padding: np.ndarray
    size: tuple[int, int]

    @property
    def tokens(self) -> np.ndarray:
        return self.layout.tokens

    @property
    def pooling(self) -> np.ndarray:
        return self.layout.pooling

    @property
    def patch_at(self) -> np.ndarray:
        return self.layout.patch_at

    @property
    def tiling(self) -> tuple[int, int]:
        return self.layout.tiling


def tokenize(image: Any, max_crops: int = 12, vision: VisionConfig = DEFAULT) -> TokenizedImage:
    """Crops and tokens of a picture.

    Args:
        image: what `decode.read` takes: a path, bytes, a Pillow image or uint8 [H, W, 3].
        max_crops: the most crops besides the small copy of the whole; more of them show more detail.
        vision: the model's; by default that of the released models with CLIP and the ids of Qwen 2's vocabulary.

    Raises:
        UserError: the picture cannot be read, or `max_crops` is below 1.
    """
    pixels = decode.read(image)
    height, width = pixels.shape[:2]
    found = layout(height, width, max_crops, vision)
    rows, columns = found.tiling
    whole, whole_padding = fitted(pixels, vision.image, vision.image, vision)
    canvas, padding = fitted(pixels, *_canvas(vision, rows, columns), vision)
    step = _window(vision) * vision.patch
    places = [(step * i, step * j) for i in range(rows) for j in range(columns)]
    crops = [whole, *(canvas[y : y + vision.image, x : x + vision.image] for y, x in places)]
    side, moved = vision.grid, _window(vision)
    classes = [
        whole_padding,
        *(padding[y : y + side, x : x + side] for i in range(rows) for j in range(columns)
          for y, x in [(moved * i, moved * j)]),
    ]  # fmt: skip
    patches = np.stack([_patches(crop, vision.patch) for crop in crops])
    return TokenizedImage(found, patches, np.stack([c.reshape(-1) for c in classes]), (height, width))


def layout(height: int, width: int, max_crops: int = 12, vision: VisionConfig = DEFAULT) -> Layout:
    """The layout of a picture of `height` × `width` pixels."""
    tiling = choose_tiling(height, width, max_crops, vision)
    rows, columns = tiling
    whole = _pooled(np.arange(vision.grid**2).reshape(vision.grid, vision.grid))
    row_crop, row_patch = _owners(rows, vision)
    column_crop, column_patch = _owners(columns, vision)
    crop = 1 + row_crop[:, None] * columns + column_crop
    detail = _pooled(crop * vision.grid**2 + row_patch[:, None] * vision.grid + column_patch)
    tokens = np.concatenate([_block(grid.shape[:2], vision) for grid in (whole, detail)]).astype(np.int32)
    pooling = np.concatenate([grid.reshape(-1, POOL**2) for grid in (whole, detail)]).astype(np.int32)
    return Layout(tiling, tokens, pooling, np.flatnonzero(tokens == vision.patch_id).astype(np.int32))


def choose_tiling(height: int, width: int, max_crops: int, vision: VisionConfig = DEFAULT) -> tuple[int, int]:
    """Rows and columns of crops (spec molmo §3.4): the picture shrinks as little as possible; where some tiling holds
    all of its pixels, it grows as little as possible. Ties go to fewer crops, then to fewer rows.

    All arithmetic is float32, as where released models were trained: 2.6 % of sizes differ in float64.
    """
    if max_crops < 1:
        raise UserError(f"max_crops {max_crops} must be at least 1")
    pairs = [(r, c) for r in range(1, max_crops + 1) for c in range(1, max_crops // r + 1)]
    tilings = np.array(sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[0])))
    inner = np.array([height, width]) - 2 * vision.margin * vision.patch
    if not vision.legacy_tiny_side:
        inner = np.maximum(inner, 1)
    with np.errstate(divide="ignore"):
        scales = (tilings * (_window(vision) * vision.patch)).astype(np.float32) / inner.astype(np.float32)
    scale = scales.min(axis=1)
    best = np.argmax(scale) if (scale < 1).all() else np.argmin(np.where(scale < 1, np.float32(np.inf), scale))
    return int(tilings[best][0]), int(tilings[best][1])


def fitted(pixels: np.ndarray, height: int, width: int, vision: VisionConfig) -> tuple[np.ndarray, np.ndarray]:
    """The picture on a canvas, uint8 [height, width, 3], and the padding class of each patch of the canvas.

    CLIP keeps the aspect ratio and pads with black; other encoders stretch, so that nothing is padded.
    """
    if vision.encoder != "clip":
        return resize(pixels, height, width, vision.encoder), np.zeros(
            (height // vision.patch, width // vision.patch), np.uint8
        )
    new_height, new_width = scaled_size(pixels.shape[0], pixels.shape[1], height, width)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + new_height, left : left + new_width] = resize(pixels, new_height, new_width, "clip")
    share = np.outer(
        _covered(top, new_height, height, vision.patch), _covered(left, new_width, width, vision.patch)
    )  # of each patch inside the picture, in pixels²
    return canvas, np.where(share == 0, PADDED, np.where(share == vision.patch**2, REAL, PARTIAL)).astype(np.uint8)


def scaled_size(height: int, width: int, most_height: int, most_width: int) -> tuple[int, int]:
    """The size that fits with the same aspect ratio: truncated float32 products, but at least 1 (spec molmo §3.2)."""
    f = np.float32
    scale = min(f(most_width) / f(width), f(most_height) / f(height))
    return tuple(max(1, int(f(side) * scale)) for side in (height, width))  # type: ignore[return-value]


def legacy_padding(padding: np.ndarray) -> np.ndarray:
    """The padding classes as released weights were trained with them: every crop has those of the next, the last crop
    is partly padded everywhere (spec molmo §3.7)."""
    return np.concatenate([padding[1:], np.full_like(padding[:1], PARTIAL)])


def _window(vision: VisionConfig) -> int:
    """Patches on a side of a crop that no neighbouring crop shares, margins apart."""
    return vision.grid - 2 * vision.margin


def _canvas(vision: VisionConfig, rows: int, columns: int) -> tuple[int, int]:
    """Height and width in pixels of what the crops of a tiling cover."""
    height, width = ((_window(vision) * count + 2 * vision.margin) * vision.patch for count in (rows, columns))
    return height, width


def _owners(count: int, vision: VisionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis of `count` crops, for each patch without overlap: the crop that it is read from, and its place
    there. At an inner edge the margin of a crop is context only."""
    at = np.arange(_window(vision) * count + 2 * vision.margin)
    crop = np.clip((at - vision.margin) // _window(vision), 0, count - 1)
    return crop, at - _window(vision) * crop


def _pooled(patches: np.ndarray) -> np.ndarray:
    """Indices of patches [h, w] in cells [h / 2, w / 2, 4]; odd grids get a row and a column of −1."""
    odd = [side % POOL for side in patches.shape]
    padded = np.pad(patches, [(n // 2, n - n // 2) for n in odd], constant_values=-1)
    height, width = (side // POOL for side in padded.shape)
    return padded.reshape(height, POOL, width, POOL).transpose(0, 2, 1, 3).reshape(height, width, POOL**2)


def _block(cells: tuple[int, ...], vision: VisionConfig) -> np.ndarray:
    """The tokens of a grid of cells: rows of patches, each followed by a column token, between start and end."""
    rows, columns = cells
    row = [*[vision.patch_id] * columns, vision.column_id]
    return np.array([vision.start_id, *row * rows, vision.end_id])


def _patches(crop: np.ndarray, size: int) -> np.ndarray:
    """[H, W, 3] → [patches, size·size·3], patches in rows, in each rows, columns, channels."""
    height, width = crop.shape[0] // size, crop.shape[1] // size
    return crop.reshape(height, size, width, size, 3).transpose(0, 2, 1, 3, 4).reshape(height * width, -1)


def _covered(start: int, length: int, whole: int, size: int) -> np.ndarray:
    """For each piece of `size` pixels of `whole`, how many of them lie in the `length` pixels from `start` on."""
    edges = np.clip(np.arange(0, whole + 1, size), start, start + length)
    return np.diff(edges)
