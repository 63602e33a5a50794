"""One rollout: prompts, sampled responses, their scores, and the per-token arrays that the losses read.

    prompts → engine → responses with behaviour log-probabilities → scores → rows [B, S]

A row holds one prompt and its response. A per-token value is stored at the position whose target is that token (see
`objectives.reinforcement`). All arrays are in host memory and identical on every process: of values that the processes
share out among them (verifier scores), each gets all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from easylm_jax.config import Reward, Sampling
from easylm_jax.data import Cache
from easylm_jax.data.templates import end_tokens
from easylm_jax.data.tokenizer import Tokenizer
from easylm_jax.decode import Engine, ScoredCompletions
from easylm_jax.objectives import final_scores
from models.config import VisionConfig
from models.molmo.batch import collate
from models.molmo.image import TokenizedImage

PyTree = Any
LEAST_WIDTH = 16
_NOT_PER_ROW = ("samples", "components", "seen")
_RANDOM_REWARD_STREAM = 0x0D0C  # separates the random numbers of random rewards from every other use of a seed


@dataclasses.dataclass(frozen=True)
class Seen:
    """The pictures of rows, and the shape that their columns have: at most `crops` crops and `patch_tokens` places."""

    pictures: list[list[TokenizedImage]]
    vision: VisionConfig
    crops: int
    patch_tokens: int

    def columns(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of `models.images.Images` for rows of tokens [B, S]."""
        found = collate(tokens, self.pictures, self.vision, crops=self.crops, patch_tokens=self.patch_tokens)
        return found._asdict()


@dataclasses.dataclass
class Rollout:
    """Responses of one step; row = prompt · samples + sample.

    Attributes:
        prompts: int32 [B, P], right-padded.
        prompt_lengths: [B].
        prompt_index: [B], the prompt's row in its cache.
        responses: int32 [B, T], right-padded.
        lengths: [B], including the end token.
        ended: bool [B], whether the response ended with an end token or a stop string (otherwise it was truncated).
        sampler_logprobs: float32 [B, T], under the sampling distribution (temperature and truncation applied).
        untruncated_logprobs: float32 [B, T], at temperature 1 without truncation.
        entropy: float32 [B, T], of the model's distribution at temperature 1, in nats.
        scores: [B], raw, before gain, bias and the penalty for a missing end.
        samples: responses to each prompt.
        components: the score of each verifier by name, [B].
        routing: int16 [B, P + T, L, k], the experts that computed each token from the start of the prompt (−1: not
            known); None unless routers are replayed.
        seen: the pictures of the prompts, where they have some.
    """

    prompts: np.ndarray
    prompt_lengths: np.ndarray
    prompt_index: np.ndarray
    responses: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray
    sampler_logprobs: np.ndarray
    untruncated_logprobs: np.ndarray
    entropy: np.ndarray
    scores: np.ndarray
    samples: int = 1
    components: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    routing: np.ndarray | None = None
    seen: Seen | None = None

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def final(self, reward: Reward) -> np.ndarray:
        """Final rewards, float32 [B]: the scores with the missing-end penalty, gain and bias applied."""
        final = final_scores(
            self.scores, self.ended, missing_end=reward.missing_end, gain=reward.gain, bias=reward.bias
        )
        return np.asarray(final, np.float32)

    def tokens_of(self, row: int) -> list[int]:
        """The tokens of a response, including the end token."""
        return self.responses[row, : self.lengths[row]].tolist()


def end_ids(prompts: Cache, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The end tokens of responses to these prompts, given by the chat template that rendered the prompts."""
    return end_tokens(prompts.manifest["spec"]["template"], tokenizer)


def rollout_seed(seed: int, step: int, attempt: int = 0) -> int:
    """The sampling seed of the rollout of `step`, given the stage's seed; each further attempt has its own."""
    return int(np.random.SeedSequence([seed, step, attempt][: 3 if attempt else 2]).generate_state(1)[0])


def sample(
    engine: Engine, params: PyTree, batch: dict[str, np.ndarray], sampling: Sampling, *, samples: int, seed: int,
    tokenizer: Tokenizer, end_ids: tuple[int, ...], greedy: bool = False,
    cancelled: Callable[[], bool] | None = None, progress: Callable[[int, int], None] | None = None,
    routing: bool = False, seen: Seen | None = None,
) -> Rollout:  # fmt: skip
    """Samples responses to a batch of prompts (`tokens`, `lengths`, `prompt_index`); the scores are 0.

    `cancelled` is called between blocks of tokens; `decode.Cancelled` is raised once it returns True. `progress` is
    called with the numbers of finished responses and of tokens so far. `seen` are the pictures of the prompts.
    """
    lengths = batch["lengths"]
    prompts = [row[:n].tolist() for row, n in zip(batch["tokens"], lengths, strict=True)]
    completions = engine.generate(
        params, prompts, max_new_tokens=sampling.max_new_tokens, temperature=0.0 if greedy else sampling.temperature,
        top_k=None if greedy else sampling.top_k, top_p=None if greedy else sampling.top_p,
        eos_ids=end_ids, stop_strings=sampling.stop_strings, samples=samples, seed=seed,
        detokenize=functools.partial(tokenizer.decode, skip_special=True), scores=True, cancelled=cancelled,
        progress=progress, routing=routing, images=None if seen is None else seen.pictures,
    )  # fmt: skip
    assert isinstance(completions, ScoredCompletions)
    return Rollout(
        prompts=np.repeat(batch["tokens"], samples, axis=0),
        prompt_lengths=np.repeat(lengths, samples),
        prompt_index=np.repeat(batch["prompt_index"], samples),
        responses=completions.tokens,
        lengths=completions.lengths,
        ended=completions.ended,
        sampler_logprobs=completions.logprobs,
        untruncated_logprobs=completions.logprobs_untruncated,
        entropy=completions.entropy,
        scores=np.zeros(len(completions.lengths), np.float32),
        samples=samples,
        routing=None if completions.routing is None else _as_wide(
            completions.routing, batch["tokens"].shape[1] + sampling.max_new_tokens
        ),
        seen=None if seen is None else _rows_of(seen, np.repeat(np.arange(len(lengths)), samples)),
    )  # fmt: skip


def _as_wide(routing: np.ndarray, width: int) -> np.ndarray:
    """The experts of tokens with −1 up to `width` tokens."""
    wide = np.full((len(routing), width, *routing.shape[2:]), -1, routing.dtype)
    wide[:, : routing.shape[1]] = routing[:, :width]
    return wide


def _rows_of(seen: Seen, rows: np.ndarray) -> Seen:
    return dataclasses.replace(seen, pictures=[seen.pictures[row] for row in rows])


def text_of(rollout: Rollout, row: int, tokenizer: Tokenizer) -> str:
    """The response as text, without special tokens."""
    return tokenizer.decode(rollout.tokens_of(row), skip_special=True)


def responses_and_records(
    rollout: Rollout, cache: Cache, tokenizer: Tokenizer, *, seed: int = 0, step: int = 0, attempt: int = 0,
    group: bool = False,
) -> tuple[list[str], list[dict[str, Any]]]:  # fmt: skip
    """The responses as text, and the record that a verifier reads beside each.

    A record has the columns of the prompt and of the response: `_length` (tokens, including the end token), `_ended`,
    `_step`, `_draw` (a uniform random number in [0, 1), a pure function of seed, step, attempt and row) and, with
    `group`, `_group` (the texts of all responses to the same prompt).
    """
    texts = [text_of(rollout, row, tokenizer) for row in range(rollout.rows)]
    entropy = np.random.SeedSequence([seed, step, attempt, _RANDOM_REWARD_STREAM])
    uniforms = np.random.Generator(np.random.PCG64(entropy)).random(rollout.rows)
    records = []
    for row in range(rollout.rows):
        first = row - row % rollout.samples
        group_texts = {"_group": texts[first : first + rollout.samples]} if group else {}
        records.append({
            **cache.record(int(rollout.prompt_index[row])), "_length": int(rollout.lengths[row]),
            "_ended": bool(rollout.ended[row]), "_step": step, "_draw": float(uniforms[row]), **group_texts,
        })  # fmt: skip
    return texts, records


def nonzero_variance(groups: np.ndarray) -> np.ndarray:
    """Whether the rewards of a group differ, bool [prompts], from final rewards [prompts, samples].

    Zero-variance groups have advantages of 0 and contribute no gradient.
    """
    return groups.max(axis=1) > groups.min(axis=1)


def concatenate(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout from several with the same number of samples and the same `max_new_tokens`."""

    def merged(name: str) -> Any:
        values = [getattr(part, name) for part in rollouts]
        if name == "samples" or values[0] is None:
            return values[0]
        if name == "seen":
            pictures = [own for value in values if value is not None for own in value.pictures]
            return None if values[0] is None else dataclasses.replace(values[0], pictures=pictures)
        if name == "components":
            return {key: np.concatenate([value[key] for value in values]) for key in values[0]}
        return np.concatenate(values)

    return Rollout(**{field.name: merged(field.name) for field in dataclasses.fields(Rollout)})


def select(rollout: Rollout, rows: np.ndarray) -> Rollout:
    """The given rows of a rollout; they must be whole groups, in order."""
    names = [field.name for field in dataclasses.fields(Rollout) if field.name not in _NOT_PER_ROW]
    arrays = {name: value[rows] for name in names if (value := getattr(rollout, name)) is not None}
    components = {name: values[rows] for name, values in rollout.components.items()}
    seen = None if rollout.seen is None else _rows_of(rollout.seen, rows)
    return dataclasses.replace(rollout, **arrays, components=components, seen=seen)


def bucket(length: int) -> int:
    """`length` rounded up to a multiple of a quarter of the power of two below it, and to a multiple of 16.

    This keeps the number of shapes, and so of compiled programs, small, with little padding.
    """
    step = max(LEAST_WIDTH, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def join(rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and responses concatenated: int32 [B, S] right-padded with 0, and the lengths [B]."""
    totals = rollout.prompt_lengths + rollout.lengths
    tokens = np.zeros((rollout.rows, bucket(int(totals.max()))), np.int32)
    for row, (prompt, response) in enumerate(zip(rollout.prompt_lengths, rollout.lengths, strict=True)):
        tokens[row, :prompt] = rollout.prompts[row, :prompt]
        tokens[row, prompt : prompt + response] = rollout.responses[row, :response]
    return tokens, totals.astype(np.int32)


def columns_of(rollout: Rollout) -> dict[str, np.ndarray]:
    """The arrays of next-token training, the response `mask`, and the sampler's log-probabilities, each [B, S], and
    those of pictures where prompts have some.

    The target at position i is token i + 1, so the n tokens of a response after a prompt of p tokens are the targets of
    positions p − 1 … p + n − 2.
    """
    tokens, totals = join(rollout)
    index = np.arange(tokens.shape[1])[None]
    real = index < totals[:, None]
    first = rollout.prompt_lengths[:, None] - 1
    mask = (index >= first) & (index < first + rollout.lengths[:, None])
    replayed = {} if rollout.routing is None else {"routing": _as_wide(rollout.routing, tokens.shape[1])}
    return {
        **replayed,
        "tokens": tokens,
        "targets": np.concatenate([tokens[:, 1:], np.zeros_like(tokens[:, :1])], axis=1),
        "segment_ids": real.astype(np.int32),
        "positions": np.where(real, index, 0).astype(np.int32),
        "mask": mask.astype(np.float32),
        "sampler_logprobs": at_targets(rollout.sampler_logprobs, rollout, tokens.shape[1]),
        "untruncated_logprobs": at_targets(rollout.untruncated_logprobs, rollout, tokens.shape[1]),
        **({} if rollout.seen is None else rollout.seen.columns(tokens)),
    }


def at_targets(values: np.ndarray, rollout: Rollout, width: int) -> np.ndarray:
    """Moves values of response tokens [B, T] to the positions whose targets they are, [B, width]; 0 elsewhere."""
    moved = np.zeros((rollout.rows, width), values.dtype)
    for row, (prompt, response) in enumerate(zip(rollout.prompt_lengths, rollout.lengths, strict=True)):
        moved[row, prompt - 1 : prompt - 1 + response] = values[row, :response]
    return moved
