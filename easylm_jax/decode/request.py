"""What is asked of the engine, checked, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from models.config import DecoderConfig
from models.errors import UserError

Detokenize = Callable[[Sequence[int]], str]


class Completions(NamedTuple):
    """Completions in the order of the prompts, the samples of one prompt side by side: row = prompt · samples + sample.

    `tokens` int32 [rows, max_new_tokens] without the prompt. `logprobs` float32, of each token under the distribution
    that it was drawn from (temperature and truncation applied); of greedy tokens, the model's own at temperature 1.
    `lengths` int32 [rows] count the token that ended a completion; what lies beyond is padding (0 in `logprobs`).
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray


class ScoredCompletions(NamedTuple):
    """`Completions` with two more float32 arrays of the model's own distribution, at temperature 1 and without
    truncation: the log-probability of each token, and the entropy in nats where it was drawn. `ended` bool [rows] says
    whether an end token or a stop string ended the completion; the others were cut at `max_new_tokens`."""

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    logprobs_untruncated: np.ndarray
    entropy: np.ndarray
    ended: np.ndarray


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of one call, checked by `check`; see `Engine.generate` for what they mean."""

    prompts: tuple[tuple[int, ...], ...]
    numbers: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    eos_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    detokenize: Detokenize | None
    samples: int
    seed: int
    scores: bool

    def check(self, config: DecoderConfig, max_length: int) -> None:
        """Raises `UserError` for what cannot be done."""
        for name, least in (("max_new_tokens", 1), ("samples", 1)):
            if getattr(self, name) < least:
                raise UserError(f"generate: {name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"generate: temperature must be 0 (greedy) or positive, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"generate: top_k must be at least 1, not {self.top_k}; leave it out to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"generate: top_p must be above 0 and at most 1, not {self.top_p}")
        if self.stop_strings and self.detokenize is None:
            raise UserError("generate: stop_strings need `detokenize`, a function from token ids to text")
        if "" in self.stop_strings:
            raise UserError("generate: an empty stop string would end every completion at once")
        if len(self.numbers) != len(self.prompts):
            raise UserError(f"generate: {len(self.numbers)} numbers for {len(self.prompts)} prompts; give one for each")
        for i, prompt in enumerate(self.prompts):
            if not prompt:
                raise UserError(f"generate: prompt {i} is empty; begin it with a token such as the model's BOS or EOS")
            if not (min(prompt) >= 0 and max(prompt) < config.vocab):
                raise UserError(f"generate: prompt {i} holds a token id outside 0…{config.vocab - 1}")
            if len(prompt) + self.max_new_tokens > max_length:
                raise UserError(
                    f"generate: prompt {i} has {len(prompt)} tokens and {self.max_new_tokens} are asked for, but the "
                    f"longest sequence is {max_length}; shorten it, ask for fewer, or raise max_length"
                )


def cut_at_stop(tokens: Sequence[int], checked: int, stops: Sequence[str], detokenize: Detokenize) -> int | None:
    """How many tokens to keep so that the text just holds a stop string; None where it holds none.

    The first `checked` tokens are known to hold none. Text is looked at after whole tokens only, so the end may run on
    past the stop string by what its last token brings.
    """

    def holds(count: int) -> bool:
        text = detokenize(tokens[:count])
        return any(stop in text for stop in stops)

    if not holds(len(tokens)):
        return None
    return next(count for count in range(checked + 1, len(tokens) + 1) if holds(count))
