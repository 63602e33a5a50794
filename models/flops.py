"""FLOPs of a model per token, for model FLOPs utilisation (MFU) and for plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.config import DecoderConfig


def matmul_parameters(config: DecoderConfig) -> int:
    """Parameters multiplied with each token: projections, feed-forward and head, without the embedding table.

    Of a mixture of experts, the router and the experts that are active for a token.
    """
    attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    feed_forward = 3 * config.width * config.ffn
    if config.experts is not None:
        feed_forward = config.experts.active * feed_forward + config.width * config.experts.count
    return config.layers * (attention + feed_forward) + config.width * config.vocab


def mean_visible_keys(sequence_length: int, window: int | None) -> float:
    """Keys that a token attends to, its own included, averaged over the positions of a sequence."""
    window = min(window or sequence_length, sequence_length)
    growing = window * (window + 1) / 2  # the first `window` positions see 1, 2, …, window keys
    return (growing + (sequence_length - window) * window) / sequence_length


def model_flops_per_token(config: DecoderConfig, sequence_length: int) -> float:
    """FLOPs of the forward pass for each token of a sequence of `sequence_length` tokens.

    Two for each parameter of `matmul_parameters`, and 4·heads·head_dim for each key attended to (scores and weighted
    values). A packed row counts as one document, which overestimates attention where it holds several.
    """
    per_key = 4 * config.heads * config.head_dim
    attention = sum(per_key * mean_visible_keys(sequence_length, window) for window in config.pattern)
    return 2 * matmul_parameters(config) + attention


def vision_flops(config: DecoderConfig, crops: int, patch_tokens: int) -> float:
    """FLOPs of the forward pass from the crops of pictures to the embeddings of their patch tokens.

    Those of the layers whose outputs are used, of pooling (four patches for a token) and of the projector.
    """
    vision = config.vision
    assert vision is not None
    width, tokens = vision.width, vision.grid**2 + 1
    layers = max(vision.feature_layers) + 1
    per_crop = 2 * tokens * (3 * vision.patch**2 * width + layers * (4 * width**2 + 2 * width * vision.ffn))
    per_crop += 4 * layers * tokens**2 * width
    inputs = width * len(vision.features)
    pool = inputs * width * (1 + 2 * 4) + width**2
    projector = vision.connector_ffn * (2 * width + config.width)
    return float(crops * per_crop + 2 * patch_tokens * (pool + projector))
