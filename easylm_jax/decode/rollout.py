"""One rollout: prompts answered, answers judged, everything per token laid out for the losses.

    prompts → engine → responses with behaviour log-probabilities → scores → rows [B, S]

A row holds one prompt and its response. Numbers that belong to a token stand where it is the target (see
`objectives.reinforcement`). All of it is host memory, the same on every process: whatever a process computes alone
(verdicts) is taken from the first one.
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

PyTree = Any
LEAST_WIDTH = 16
_NO_ROWS = ("samples", "components")
_DRAWS = 0x0D0C  # sets the numbers that random rewards use apart from every other use of a seed


@dataclasses.dataclass
class Rollout:
    """Responses of one step, sample by sample: row = prompt · samples + sample.

    `prompts` int32 [B, P] right-padded with `prompt_lengths` [B]; `responses` int32 [B, T] with `lengths` [B] that
    count the end token; `ended` [B] whether there was one (or a stop string). `sampler_logprobs` float32 [B, T] are of
    the distribution that was drawn from, `untruncated_logprobs` at temperature 1 without truncation, `entropy` the
    model's own in nats. `prompt_index` [B] numbers the prompt in its cache. `scores` [B] are raw; `parts` has what each
    verifier gave, [B]. `samples` is the number of responses to each prompt.
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

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def final(self, reward: Reward) -> np.ndarray:
        """Scores as they are learned from, float32 [B]: missing ends, gain and bias applied."""
        final = final_scores(
            self.scores, self.ended, missing_end=reward.missing_end, gain=reward.gain, bias=reward.bias
        )
        return np.asarray(final, np.float32)

    def tokens_of(self, row: int) -> list[int]:
        """The response's tokens, the end token among them."""
        return self.responses[row, : self.lengths[row]].tolist()


def end_ids(prompts: Cache, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer to these prompts, by the chat template that they were rendered with."""
    return end_tokens(prompts.manifest["spec"]["template"], tokenizer)


def seed_of(seed: int, number: int, part: int = 0) -> int:
    """The seed of rollout `number` of a stage, and of the parts beyond the first that it may be written in."""
    return int(np.random.SeedSequence([seed, number, part][: 3 if part else 2]).generate_state(1)[0])


def sample(
    engine: Engine, params: PyTree, batch: dict[str, np.ndarray], sampling: Sampling, *, samples: int, seed: int,
    tokenizer: Tokenizer, end_ids: tuple[int, ...], greedy: bool = False,
    cancelled: Callable[[], bool] | None = None,
) -> Rollout:  # fmt: skip
    """Answers to a batch of prompts (`tokens`, `lengths`, `prompt_index`); scores are still 0.

    `cancelled` is asked now and then, and ends it with `decode.Cancelled` where it says True.
    """
    lengths = batch["lengths"]
    prompts = [row[:n].tolist() for row, n in zip(batch["tokens"], lengths, strict=True)]
    done = engine.generate(
        params, prompts, max_new_tokens=sampling.max_new_tokens, temperature=0.0 if greedy else sampling.temperature,
        top_k=None if greedy else sampling.top_k, top_p=None if greedy else sampling.top_p,
        eos_ids=end_ids, stop_strings=sampling.stop_strings, samples=samples, seed=seed,
        detokenize=functools.partial(tokenizer.decode, skip_special=True), scores=True, cancelled=cancelled,
    )  # fmt: skip
    assert isinstance(done, ScoredCompletions)
    return Rollout(
        prompts=np.repeat(batch["tokens"], samples, axis=0),
        prompt_lengths=np.repeat(lengths, samples),
        prompt_index=np.repeat(batch["prompt_index"], samples),
        responses=done.tokens,
        lengths=done.lengths,
        ended=done.ended,
        sampler_logprobs=done.logprobs,
        untruncated_logprobs=done.logprobs_untruncated,
        entropy=done.entropy,
        scores=np.zeros(len(done.lengths), np.float32),
        samples=samples,
    )


def text_of(rollout: Rollout, row: int, tokenizer: Tokenizer) -> str:
    """The response as text, without special tokens."""
    return tokenizer.decode(rollout.tokens_of(row), skip_special=True)


def answers(
    rollout: Rollout, cache: Cache, tokenizer: Tokenizer, *, seed: int = 0, number: int = 0, part: int = 0,
    group: bool = False,
) -> tuple[list[str], list[dict[str, Any]]]:  # fmt: skip
    """The responses as text, and for each what a verifier may read: its prompt's record, and of itself

    `_length` (tokens, the end token among them), `_ended`, `_step` (`number`), with `group` `_group` (the texts of all
    answers to its prompt), and `_draw`, a uniform number in [0, 1) of its own: a pure function of (seed, number, part,
    row).
    """
    texts = [text_of(rollout, row, tokenizer) for row in range(rollout.rows)]
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, part, _DRAWS]))).random(
        rollout.rows
    )
    records = []
    for row in range(rollout.rows):
        first = row - row % rollout.samples
        others = {"_group": texts[first : first + rollout.samples]} if group else {}
        records.append({
            **cache.record(int(rollout.prompt_index[row])), "_length": int(rollout.lengths[row]),
            "_ended": bool(rollout.ended[row]), "_step": number, "_draw": float(draws[row]), **others,
        })  # fmt: skip
    return texts, records


def nonzero_variance(groups: np.ndarray) -> np.ndarray:
    """Which prompts have answers of unequal worth, bool [prompts], from final scores [prompts, samples]; the others
    teach nothing."""
    return groups.max(axis=1) > groups.min(axis=1)


def concatenate(rollouts: Sequence[Rollout]) -> Rollout:
    """Several rollouts for the same number of samples and longest answer as one."""

    def together(name: str) -> Any:
        values = [getattr(one, name) for one in rollouts]
        if name == "samples":
            return values[0]
        if name == "components":
            return {key: np.concatenate([value[key] for value in values]) for key in values[0]}
        return np.concatenate(values)

    return Rollout(**{field.name: together(field.name) for field in dataclasses.fields(Rollout)})


def select(whole: Rollout, rows: np.ndarray) -> Rollout:
    """These rows of a rollout, whole groups in order."""
    arrays = {f.name: getattr(whole, f.name)[rows] for f in dataclasses.fields(Rollout) if f.name not in _NO_ROWS}
    components = {name: values[rows] for name, values in whole.components.items()}
    return dataclasses.replace(whole, **arrays, components=components)


def bucket(length: int) -> int:
    """`length` rounded up to a multiple of a quarter of the power of two below it, at least of 16: few shapes, so few
    programs, and little padding."""
    step = max(LEAST_WIDTH, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def join(rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and response side by side: int32 [B, S] right-padded with 0, and the lengths [B]."""
    totals = rollout.prompt_lengths + rollout.lengths
    tokens = np.zeros((rollout.rows, bucket(int(totals.max()))), np.int32)
    for row, (prompt, response) in enumerate(zip(rollout.prompt_lengths, rollout.lengths, strict=True)):
        tokens[row, :prompt] = rollout.prompts[row, :prompt]
        tokens[row, prompt : prompt + response] = rollout.responses[row, :response]
    return tokens, totals.astype(np.int32)


def columns_of(rollout: Rollout) -> dict[str, np.ndarray]:
    """The arrays of next-token training for whole rows, `mask` on the response, and what the sampler said [B, S].

    The target at position i is token i + 1, so a response of n tokens behind a prompt of p is the target of positions
    p − 1 … p + n − 2.
    """
    tokens, totals = join(rollout)
    index = np.arange(tokens.shape[1])[None]
    real = index < totals[:, None]
    first = rollout.prompt_lengths[:, None] - 1
    mask = (index >= first) & (index < first + rollout.lengths[:, None])
    return {
        "tokens": tokens,
        "targets": np.concatenate([tokens[:, 1:], np.zeros_like(tokens[:, :1])], axis=1),
        "segment_ids": real.astype(np.int32),
        "positions": np.where(real, index, 0).astype(np.int32),
        "mask": mask.astype(np.float32),
        "sampler_logprobs": at_targets(rollout.sampler_logprobs, rollout, tokens.shape[1]),
        "untruncated_logprobs": at_targets(rollout.untruncated_logprobs, rollout, tokens.shape[1]),
    }


def at_targets(values: np.ndarray, rollout: Rollout, width: int) -> np.ndarray:
    """Values of response tokens [B, T] moved to where those tokens are targets, [B, width]; 0 elsewhere."""
    moved = np.zeros((rollout.rows, width), values.dtype)
    for row, (prompt, response) in enumerate(zip(rollout.prompt_lengths, rollout.lengths, strict=True)):
        moved[row, prompt - 1 : prompt - 1 + response] = values[row, :response]
    return moved
