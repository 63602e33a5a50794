"""Prefill of prompts about pictures: a picture is computed once, whatever is asked about it and however often.

All questions about one picture are one row: the tokens up to the end of the picture, then the rest of each prompt as a
branch that sees the picture and itself (`models.config.BRANCH`). The cache of each prompt is then gathered from the
columns of the picture and of its own branch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.decode import cache as kv
from easylm_jax.decode.cache import Cache
from easylm_jax.decode.forward import Weights, run_layers
from easylm_jax.decode.request import Prompt
from models.attention import attention
from models.config import BRANCH, VisionConfig
from models.errors import UserError
from models.images import Images
from models.model import Model
from models.molmo.batch import Pictures, collate
from models.molmo.image import TokenizedImage

Shown = Mapping[Hashable, list[TokenizedImage]]  # the pictures of a prompt by its context


class Rows(NamedTuple):
    """The rows of a prefill: `tokens`, `segments`, `positions` int32 [R, W] and the pictures in them; and for each
    prompt its row int32 [P] and the columns of its tokens there int32 [P, bucket], padded on the left."""

    tokens: Any
    segments: Any
    positions: Any
    images: Images
    row: Any
    columns: Any


def check(prompts: Sequence[Sequence[int]], contexts: Sequence[Hashable] | None, vision: VisionConfig | None) -> None:
    """Raises `UserError` for a prompt with tokens of a picture and no picture."""
    for number, tokens in enumerate(prompts if vision is not None else ()):
        if vision.patch_id in tokens and (contexts is None or contexts[number] is None):  # type: ignore[union-attr]
            raise UserError(f"generate: prompt {number} has tokens of a picture, but no picture; give it in images")


def contexts_of(
    images: Sequence[Pictures], count: int, vision: VisionConfig | None
) -> tuple[list[Hashable], dict[Hashable, list[TokenizedImage]]]:
    """The context of each prompt, a digest of its pictures (None without), and the pictures by context."""
    if vision is None:
        raise UserError("generate: this model sees no pictures; leave images out")
    if len(images) != count:
        raise UserError(f"generate: {len(images)} entries of images for {count} prompts; give one for each")
    contexts: list[Hashable] = []
    shown: dict[Hashable, list[TokenizedImage]] = {}
    known: dict[int, bytes] = {}
    for entry in images:
        own = [] if entry is None else [entry] if isinstance(entry, TokenizedImage) else list(entry)
        for picture in own:
            if id(picture) not in known:
                known[id(picture)] = hashlib.sha256(
                    repr((picture.tiling, picture.crops.shape)).encode() + picture.crops.tobytes()
                ).digest()
        context = b"".join(known[id(picture)] for picture in own) or None
        contexts.append(context)
        if context is not None:
            shown[context] = own
    return contexts, shown


def prefix_length(tokens: Sequence[int], vision: VisionConfig) -> int:
    """Tokens up to the end of the last picture; 0 without one."""
    return max((at + 1 for at, token in enumerate(tokens) if token == vision.end_id), default=0)


def group(prompts: Sequence[Prompt], vision: VisionConfig) -> list[list[int]]:
    """Numbers of the prompts that share a row: those with the same picture behind the same tokens."""
    groups: dict[Hashable, list[int]] = {}
    for number, (tokens, context) in enumerate(prompts):
        prefix = tokens[: prefix_length(tokens, vision)]
        key: Hashable = (context, prefix) if prefix and len(prefix) < len(tokens) else number
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def lay_out(
    prompts: Sequence[Prompt], shown: Shown, vision: VisionConfig, bucket: int, *, rows: Callable[[int], int],
    size: Callable[[int], int],
) -> Rows:  # fmt: skip
    """The rows of a prefill of `prompts`, whose last tokens are left for the first decode step.

    `bucket` is the width of the prompts' caches; `rows` and `size` round numbers of rows and lengths up, so that few
    programs are compiled.
    """
    made: list[tuple[list[int], list[int], list[int], list[TokenizedImage]]] = []
    row_of, columns = np.zeros(rows(len(prompts)), np.int32), np.zeros((rows(len(prompts)), bucket), np.int32)
    for members in group(prompts, vision):
        tokens, context = prompts[members[0]]
        shared = prefix_length(tokens, vision) if len(members) > 1 else len(tokens) - 1
        row = [*tokens[:shared]]
        segments, positions = [1] * shared, list(range(shared))
        for branch, member in enumerate(members, start=1):
            own = prompts[member].tokens[shared:-1]
            where = [*range(shared), *range(len(row), len(row) + len(own))]
            row += own
            segments += [1 + branch * BRANCH] * len(own)
            positions += range(shared, shared + len(own))
            row_of[member] = len(made)
            columns[member, bucket - len(where) :] = where
        made.append((row, segments, positions, shown.get(context, [])))
    shape = (rows(len(made)), size(max(len(row) for row, *_ in made)))
    filled = [np.zeros(shape, np.int32) for _ in range(3)]
    for number, parts in enumerate(made):
        for array, values in zip(filled, parts[:3], strict=True):
            array[number, : len(values)] = values
    pictures = [parts[3] for parts in made] + [[] for _ in range(shape[0] - len(made))]
    crops = max(sum(len(picture.crops) for picture in row) for row in pictures)
    places = max(sum(len(picture.patch_at) for picture in row) for row in pictures)
    crops = -(-crops // 4) * 4 if crops > 2 else crops
    images = collate(filled[0], pictures, vision, crops=crops, patch_tokens=size(places))
    return Rows(filled[0], filled[1], filled[2], images, row_of, columns)


def prefill(model: Model, weights: Weights, rows: Rows, cache: Cache) -> Cache:
    """The caches [P, bucket] of prompts, gathered from those of their rows; `cache` is an empty one for the rows."""
    segments = jnp.asarray(rows.segments)

    def attend(q, k, v, window, part, layer):
        out = attention(
            q, k, v, segment_ids=segments, window=window, kernel=model.compute.attention, platform=model.platform,
            placement=model.placement, branches=True,
        )  # fmt: skip
        return out, kv.write(part, layer, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), 0)

    x = model.embed(weights["embed"], rows.tokens, model.compute.dtype)
    x = x + model.embed_images(weights, rows.images, rows.tokens.shape[1])
    cache = run_layers(model, weights["layers"], x, model.ropes(rows.positions), attend, cache)[1]

    def of_prompts(array: jax.Array) -> jax.Array:
        """[rows, KV, W, hd] → [P, KV, bucket, hd], behind a layer axis where there is one."""
        pick = lambda one: one[rows.row[:, None], :, rows.columns].transpose(0, 2, 1, 3)  # noqa: E731
        return jax.vmap(pick)(array) if array.ndim == 5 else pick(array)

    return jax.tree.map(of_prompts, cache)
