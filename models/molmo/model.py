"""The decoder that sees: features of pictures are added to the embeddings of their tokens, and all else is as in text.

    crops → tower → connector → + embeddings of the <im_patch> tokens → decoder

Embeddings of added tokens are a table of their own, `embed.new`, behind the rows of `embed.table`. In a row, several
texts about one picture may follow its tokens (`models.attention.BRANCH`): each sees the picture and itself alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from models.config import Compute, DecoderConfig, Placement, VisionConfig
from models.decoder import Decoder
from models.layers import truncated_normal
from models.model import Images, Params, Rules
from models.moe import MoEDecoder
from models.molmo import connector, tower

SHARDING_RULES: Rules = ((r"embed\.new\.table", (None, "width")), *tower.SHARDING_RULES, *connector.SHARDING_RULES)


class Seeing:
    """What a decoder with pictures adds to one without; a mixin before `Decoder` or `MoEDecoder`."""

    config: DecoderConfig
    compute: Compute
    placement: Placement

    @property
    def vision(self) -> VisionConfig:
        assert self.config.vision is not None, "the family's configurations have one"
        return self.config.vision

    @property
    def sharding_rules(self) -> Rules:
        return (*super().sharding_rules, *SHARDING_RULES)  # type: ignore[misc]

    def init(self, key: jax.Array) -> Params:
        """Freshly initialised float32 parameters."""
        text_key, new_key, vision_key, connector_key = jax.random.split(key, 4)
        params = super().init(text_key)  # type: ignore[misc]
        new = truncated_normal(0.02)(new_key, (self.vision.extra_rows, self.config.width))
        params["embed"]["new"] = {"table": new}
        params["vision"] = tower.init(self.vision, vision_key)
        params["connector"] = connector.init(self.vision, self.config.width, connector_key)
        return params

    def embed(self, embed: Params, tokens: jax.Array, dtype: Any) -> jax.Array:
        """Embeddings of tokens; ids from `vocab` on are rows of `embed.new`."""
        rows = self.config.vocab
        known = embed["table"].astype(dtype)[jnp.minimum(tokens, rows - 1)]
        added = embed["new"]["table"].astype(dtype)[jnp.clip(tokens - rows, 0, self.vision.extra_rows - 1)]
        return jnp.where((tokens >= rows)[..., None], added, known)

    def embed_images(self, params: Params, images: Images, length: int) -> jax.Array:
        """[B, length, width]: the embeddings of pictures at their tokens, 0 at all others."""
        vision, dtype = self.vision, jnp.dtype(self.compute.dtype)
        batch, crops, patches = images.padding.shape
        flat = images.crops.reshape(batch * crops, patches, -1)
        found = tower.features(
            vision, params["vision"], flat, dtype=dtype, remat=self.compute.remat != "none", split=self._split_crops
        )
        found = found.reshape(batch, crops * patches, -1)
        padding = images.padding.reshape(batch, -1)
        embedded: Any = connector.Connector(vision, self.config.width).apply(
            {"params": params["connector"]}, found, padding, images.pooling
        )
        places = jnp.where(images.places < 0, length, images.places)
        empty = jnp.zeros((length, self.config.width), embedded.dtype)
        return jax.vmap(lambda place, new: empty.at[place].set(new, mode="drop"))(places, embedded)

    def _split_crops(self, x: jax.Array) -> jax.Array:
        """Constrains activations [N, T, width] of crops to be sharded like the rows that they belong to.

        Left to the compiler, every device would compute the crops of all rows. Numbers of crops that the devices do
        not divide, as in decoding, are left to it.
        """
        axes = self.placement.batch
        if axes is None:
            return x
        mesh = jax.sharding.get_abstract_mesh().shape
        if len(x) % math.prod(mesh[axis] for axis in axes):
            return x
        return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(axes, None, None))


@dataclasses.dataclass(frozen=True)
class SeeingDecoder(Seeing, Decoder):
    """A dense decoder that sees."""


@dataclasses.dataclass(frozen=True)
class SeeingMoEDecoder(Seeing, MoEDecoder):
    """A mixture of experts that sees."""


def molmo(config: DecoderConfig, compute: Compute, placement: Placement) -> Decoder:
    """The model of a configuration of this family."""
    kind = SeeingDecoder if config.experts is None else SeeingMoEDecoder
    return kind(config, compute, placement)
