"""A generation request with its checks, and its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from models.config import DecoderConfig
from models.errors import UserError

Detokenize = Callable[[Sequence[int]], str]


class Completions(NamedTuple):
    """Responses in the order of the prompts, with the samples of a prompt together: row = prompt · samples + sample.

    Attributes:
        tokens: int32 [rows, max_new_tokens], without the prompt.
        logprobs: float32, log-probability of each token under the sampling distribution (temperature and truncation
            applied); for greedy tokens, under the model at temperature 1.
        lengths: int32 [rows], including the end token; positions beyond are padding (0 in `logprobs`).
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray


class ScoredCompletions(NamedTuple):
    """`Completions` with the log-probabilities and entropies of the model's own distribution.

    Attributes:
        tokens, logprobs, lengths: as in `Completions`.
        logprobs_untruncated: float32, of each token at temperature 1 without truncation.
        entropy: float32, of the model's distribution at temperature 1 at each token, in nats.
        ended: bool [rows], whether an end token or a stop string ended the response; the others were truncated at
            `max_new_tokens`.
        routing: int16 [rows, longest prompt + max_new_tokens, L, k], where asked for: the experts that computed each
            token of the prompt and the response, from the start of the prompt; −1 beyond, and at the last token of a
            response, which no step has read.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    logprobs_untruncated: np.ndarray
    entropy: np.ndarray
    ended: np.ndarray
    routing: np.ndarray | None = None


class Prompt(NamedTuple):
    """All that the model sees of a prompt: token ids, and a `context` (any hashable value, such as the digest of the
    images at its image tokens). Equal prompts share one prefill."""

    tokens: tuple[int, ...]
    context: Hashable = None


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of one call, described in `Engine.generate` and validated by `check`."""

    prompts: tuple[Prompt, ...]
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
    routing: bool = False

    def check(self, config: DecoderConfig, max_length: int) -> None:
        """Raises `UserError` if an argument is invalid for a model of this configuration."""
        for name, least in (("max_new_tokens", 1), ("samples", 1)):
            if getattr(self, name) < least:
                raise UserError(f"generate: {name} must be at least {least}, not {getattr(self, name)}")
        if self.routing and (config.experts is None or not self.scores):
            raise UserError("generate: routing is of a mixture of experts, and needs scores")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"generate: temperature must be 0 (greedy) or positive, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"generate: top_k must be at least 1, not {self.top_k}; leave it out to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"generate: top_p must be above 0 and at most 1, not {self.top_p}")
        if self.stop_strings and self.detokenize is None:
            raise UserError("generate: stop_strings need `detokenize`, a function from token ids to text")
        if "" in self.stop_strings:
            raise UserError("generate: stop_strings holds an empty string, which would end every response; remove it")
        if len(self.numbers) != len(self.prompts):
            raise UserError(f"generate: {len(self.numbers)} numbers for {len(self.prompts)} prompts; give one for each")
        ids = config.vocab + (0 if config.vision is None else config.vision.extra_rows)
        for i, (prompt, _) in enumerate(self.prompts):
            if not prompt:
                raise UserError(f"generate: prompt {i} is empty; begin it with a token such as the model's BOS or EOS")
            if not (min(prompt) >= 0 and max(prompt) < ids):
                raise UserError(f"generate: prompt {i} holds a token id outside 0…{ids - 1}")
            if len(prompt) + self.max_new_tokens > max_length:
                raise UserError(
                    f"generate: prompt {i} has {len(prompt)} tokens, which with max_new_tokens={self.max_new_tokens} "
                    f"exceeds the maximum length of {max_length}; shorten the prompt, lower max_new_tokens, or raise "
                    "max_length"
                )


def cut_at_stop(tokens: Sequence[int], checked: int, stops: Sequence[str], detokenize: Detokenize) -> int | None:
    """The least number of tokens whose text contains a stop string; None if the text contains none.

    The first `checked` tokens are known to contain none. The text is checked at token boundaries only, so it may extend
    beyond the stop string to the end of its last token.
    """

    def holds(count: int) -> bool:
        text = detokenize(tokens[:count])
        return any(stop in text for stop in stops)

    if not holds(len(tokens)):
        return None
    return next(count for count in range(checked + 1, len(tokens) + 1) if holds(count))
