"""Packed preference pairs for tests, and the sides that they are made of."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from models.config import Compute, DecoderConfig, Placement
from models.decoder import Decoder, Output

CONFIG = DecoderConfig(family="olmo2", layers=2, width=32, heads=4, ffn=48, vocab=64, context=64, qk_norm=True)
PAIRS, LENGTH = 5, 56


@dataclasses.dataclass(frozen=True)
class Bigram:
    """A language model of the last token and its position, with a decoder's interface: it compiles in no time."""

    config: DecoderConfig = CONFIG
    compute: Compute = Compute(logits_chunk=20)
    width: int = 8
    placement: Placement = Placement()

    def init(self, key: jax.Array) -> dict:
        keys = jax.random.split(key, 3)
        shapes = (CONFIG.vocab, self.width), (LENGTH, self.width), (self.width, CONFIG.vocab)
        table, place, head = (jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))
        return {"table": table, "place": place, "head": head, "score": {"kernel": head[:, :1]}}

    target_scores = Decoder.target_scores

    def head_kernel(self, params: dict) -> jax.Array:
        return params["head"]

    def __call__(
        self, params: dict, tokens: jax.Array, *, positions: jax.Array, segment_ids: jax.Array, dropout_key=None,
        images=None,
    ) -> Output:  # fmt: skip
        return Output(jnp.tanh(params["table"][tokens] + params["place"][positions]), {})


def sides(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, weights) of chosen and rejected, alternating; weights are aligned with the next token."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(PAIRS):
        prompt = rng.integers(1, CONFIG.vocab, rng.integers(2, 5))
        for _ in range(2):
            response = rng.integers(1, CONFIG.vocab, rng.integers(1, 7))
            tokens = np.concatenate([prompt, response])
            weights = np.zeros(len(tokens))
            weights[len(prompt) - 1 : -1] = 1.0
            made.append((tokens, weights))
    return made


def packed(seed: int = 0, pairs_per_row: int = 2) -> dict[str, jnp.ndarray]:
    """All pairs in rows of at most `pairs_per_row`, in columns as the data makes them; the last row has room left."""
    material, rows = sides(seed), -(-PAIRS // pairs_per_row)
    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {name: np.zeros((rows, LENGTH), np.int32) for name in names}
    batch["loss_weights"] = np.zeros((rows, LENGTH), np.float32)
    batch["pair_index"] = np.full((rows, pairs_per_row), -1, np.int32)
    batch["margins"] = np.zeros((rows, pairs_per_row), np.float32)
    for row in range(rows):
        start = 0
        for place, pair in enumerate(range(row * pairs_per_row, min((row + 1) * pairs_per_row, PAIRS))):
            batch["pair_index"][row, place] = pair
            batch["margins"][row, place] = 0.25 * pair
            for side in range(2):
                tokens, weights = material[2 * pair + side]
                here = slice(start, start + len(tokens))
                batch["tokens"][row, here] = tokens
                batch["targets"][row, here] = np.append(tokens[1:], 0)
                batch["segment_ids"][row, here] = 2 * place + side + 1
                batch["positions"][row, here] = np.arange(len(tokens))
                batch["loss_weights"][row, here] = weights
                start += len(tokens)
    return {name: jnp.asarray(column) for name, column in batch.items()}


def unpacked(seed: int = 0, pairs_per_row: int = 2) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """(row, place in the row, tokens, weights) of every side; weights are 1 where chosen and 2 where rejected."""
    return [
        (i // 2 // pairs_per_row, i // 2 % pairs_per_row, tokens, weights * (1 + i % 2))
        for i, (tokens, weights) in enumerate(sides(seed))
    ]
