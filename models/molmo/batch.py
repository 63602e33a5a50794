"""The pictures of a batch of rows as arrays, checked against the tokens that stand for them. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.config import VisionConfig
from models.errors import UserError
from models.images import Images
from models.molmo.image import TokenizedImage, legacy_padding

Pictures = TokenizedImage | Sequence[TokenizedImage] | None


def with_pictures(prompt: Sequence[int], pictures: Sequence[TokenizedImage]) -> list[int]:
    """A prompt with the tokens of pictures behind its first token, the start of the text."""
    seen = [token for picture in pictures for token in picture.tokens.tolist()]
    return [*prompt[:1], *seen, *prompt[1:]] if seen else list(prompt)


def collate(
    tokens: np.ndarray, pictures: Sequence[Pictures], vision: VisionConfig, *, crops: int = 0, patch_tokens: int = 0
) -> Images:
    """The pictures of rows of tokens int [B, S] as arrays; each row has none, one or several, in order.

    `crops` and `patch_tokens` are the least C and N. A picture (the same object) that stands in a row several times has
    its crops there once.

    Raises:
        UserError: a row's picture tokens are not those of its pictures.
    """
    rows = [[] if row is None else [row] if isinstance(row, TokenizedImage) else list(row) for row in pictures]
    once = [list({id(picture): picture for picture in own}.values()) for own in rows]
    if len(rows) != len(tokens):
        raise UserError(f"{len(rows)} entries of images for {len(tokens)} rows of tokens; give one for each")
    found = [
        _place(np.asarray(row), own, vision, number) for number, (row, own) in enumerate(zip(tokens, rows, strict=True))
    ]
    most = max([crops, 1, *(sum(len(p.crops) for p in own) for own in once)])
    count = max([patch_tokens, 1, *(len(places) for places, _ in found)])
    patches = vision.grid**2
    images = Images(
        crops=np.zeros((len(rows), most, patches, 3 * vision.patch**2), np.uint8),
        padding=np.zeros((len(rows), most, patches), np.uint8),
        pooling=np.full((len(rows), count, 4), -1, np.int32),
        places=np.full((len(rows), count), -1, np.int32),
    )
    for row, (own, (places, pooling)) in enumerate(zip(once, found, strict=True)):
        start = 0
        for picture in own:
            stop = start + len(picture.crops)
            images.crops[row, start:stop] = picture.crops
            images.padding[row, start:stop] = (
                legacy_padding(picture.padding) if vision.legacy_image_mask else picture.padding
            )
            start = stop
        images.places[row, : len(places)], images.pooling[row, : len(places)] = places, pooling
    return images


def _place(
    tokens: np.ndarray, pictures: Sequence[TokenizedImage], vision: VisionConfig, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places int32 [N] of a row's patch tokens, and the patches int32 [N, 4] that they pool."""
    there = np.flatnonzero(tokens == vision.patch_id)
    wanted = sum(len(picture.patch_at) for picture in pictures)
    if len(there) != wanted:
        what = f"row {row} has {len(there)} picture tokens, but its {len(pictures)} picture(s) have {wanted}"
        raise UserError(f"{what}; put the tokens of each picture (`tokenize(...).tokens`) where it belongs")
    patches, start, pooling = vision.grid**2, 0, [np.zeros((0, 4), np.int32)]
    firsts: dict[int, int] = {}  # the first crop of each picture; one that stands in the row twice has its crops once
    crops = 0
    for number, picture in enumerate(pictures):
        first = firsts.setdefault(id(picture), crops)
        crops += len(picture.crops) if first == crops else 0
        begin = int(there[start]) - int(picture.patch_at[0])
        own = tokens[max(begin, 0) : begin + len(picture.tokens)]
        if not np.array_equal(own, picture.tokens):
            raise UserError(f"row {row}: the tokens of picture {number} are not where its first picture token is")
        pooling.append(np.where(picture.pooling < 0, -1, picture.pooling + first * patches))
        start += len(picture.patch_at)
    return there.astype(np.int32), np.concatenate(pooling)
