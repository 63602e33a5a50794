"""A generator: a model with its engine, tokenizer and sampling settings, checked and ready to sample rollouts.

Reinforcement learning, best-of-N, majority votes, evaluations and LM judges all use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from easylm_jax.config import DataSpec, Sampling, Source
from easylm_jax.data import Cache
from easylm_jax.data.picture_store import prompt_pictures, vision_of
from easylm_jax.data.tokenizer import Tokenizer, restrict_vocab
from easylm_jax.decode import rollout
from easylm_jax.decode.engine import Engine, engine_for
from easylm_jax.decode.rollout import Rollout
from easylm_jax.runtime.sharding import check_heads
from models.config import DecoderConfig, VisionConfig
from models.errors import UserError
from models.model import Model

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Generator:
    """An engine with its tokenizer and sampling settings."""

    engine: Engine
    tokenizer: Tokenizer
    sampling: Sampling

    def sample(
        self, params: PyTree, prompts: Cache, batch: dict[str, np.ndarray], *, samples: int = 1, seed: int = 0,
        greedy: bool | None = None, cancelled: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None, routing: bool = False,
    ) -> Rollout:  # fmt: skip
        """Samples responses to a batch of prompts; the scores of the rollout are 0.

        Args:
            params: parameters of the model, in any float type.
            prompts: the cache that the batch was read from.
            batch: `tokens`, `lengths` and `prompt_index` of the prompts, as `Cache.read` returns them.
            samples: responses to each prompt.
            seed: of the sampling.
            greedy: whether to decode greedily; by default, if the temperature is 0.
            cancelled: called between blocks of tokens; `decode.Cancelled` is raised once it returns True.
            progress: called between blocks with the numbers of finished responses and of tokens so far.
            routing: whether the rollout keeps the experts of every token.
        """
        return rollout.sample(
            self.engine, params, batch, self.sampling, samples=samples, seed=seed, tokenizer=self.tokenizer,
            end_ids=rollout.end_ids(prompts, self.tokenizer),
            greedy=self.sampling.temperature == 0 if greedy is None else greedy, cancelled=cancelled,
            progress=progress, routing=routing, seen=_seen(prompts, batch["prompt_index"]),
        )  # fmt: skip


def _seen(prompts: Cache, numbers: np.ndarray) -> rollout.Seen | None:
    """The pictures of prompts by number; None where the prompts of a cache have none."""
    pictures = prompt_pictures(prompts, numbers)
    if pictures is None:
        return None
    spec = DataSpec.from_dict({**prompts.manifest["spec"], "sources": [Source("prompts")]})
    assert spec.vision is not None
    return rollout.Seen(pictures, spec.vision, spec.prompt_crops, spec.sequence_length)


def prepare_generator(
    name: str, model: Model, tokenizer: Tokenizer, sampling: Sampling, mesh: jax.sharding.Mesh,
    prompts: Sequence[Cache] = (), *, slots: int | None = None,
) -> Generator:  # fmt: skip
    """The generator of stage `name` on `mesh`; nothing is compiled before the first call.

    Args:
        name: the stage, for error messages.
        model: the model to generate with.
        tokenizer: its tokenizer; tokens outside its vocabulary are never sampled.
        sampling: how responses are sampled.
        mesh: the devices.
        prompts: caches whose longest prompt and a full response must fit the model's context.
        slots: rows decoded at once; by default those of `sampling`.

    Raises:
        UserError: the model is a reward model or sees no pictures, its heads do not divide over the mesh, or a response
            does not fit.
    """
    check_generative(name, model.config)
    check_heads(model.config, mesh)
    for cache in prompts:
        check_context_length(name, model.config, cache, sampling.max_new_tokens)
        check_pictures(f"stage {name}", model.config, cache.manifest["spec"].get("vision"))
    rows = sampling.slots if slots is None else slots
    return Generator(engine_for(restrict_vocab(model, tokenizer), rows, mesh), tokenizer, sampling)


def check_generative(name: str, config: DecoderConfig) -> None:
    """Raises `UserError` for a reward model, which has a scalar head and so no vocabulary to generate with."""
    if config.scalar_head:
        raise UserError(f"stage {name}: its policy is a reward model (scalar head), which cannot generate")


class ContextTooShort(UserError):
    """A prompt of `longest` tokens and `max_new_tokens` new ones exceed the model's `context`; its message names the
    fields of a stage, and a command that has flags instead says it in its own words."""

    def __init__(self, name: str, longest: int, max_new_tokens: int, context: int):
        super().__init__(
            f"stage {name}: a prompt of {longest} tokens and {max_new_tokens} new tokens exceed the model's context of "
            f"{context}; lower data.sequence_length (which drops longer prompts) or sampling.max_new_tokens"
        )
        self.longest, self.max_new_tokens, self.context = longest, max_new_tokens, context


def check_context_length(name: str, config: DecoderConfig, prompts: Cache, max_new_tokens: int) -> None:
    """Raises `ContextTooShort` if the longest prompt and a full response do not fit the context."""
    longest = int(np.asarray(prompts.columns["lengths"]).max())
    if longest + max_new_tokens > config.context:
        raise ContextTooShort(name, longest, max_new_tokens, config.context)


_SEEN_ALIKE = (
    "encoder", "image", "patch", "margin", "start_id", "end_id", "patch_id", "column_id", "legacy_image_mask",
    "legacy_tiny_side",
)  # fmt: skip


def check_pictures(what: str, config: DecoderConfig, data: VisionConfig | Mapping[str, Any] | None) -> None:
    """Raises `UserError` where data has pictures and a model sees none, or sees them cut in another way.

    Args:
        what: the stage and the model's role in it, for the message.
        data: what the data's pictures are cut for (`DataSpec.vision`), also as in JSON; None for data of text.
    """
    if data is None:
        return
    if config.vision is None:
        raise UserError(f"{what}: the data has pictures, but a {config.family} model sees none")
    seen = vision_of(data)
    differing = [field for field in _SEEN_ALIKE if getattr(config.vision, field) != getattr(seen, field)]
    if differing:
        theirs, ours = (getattr(vision, differing[0]) for vision in (seen, config.vision))
        raise UserError(
            f"{what}: data.vision has {differing[0]} {theirs!r}, the model {ours!r}; give the data the model's vision"
        )


def check_samples(name: str, sampling: Sampling, samples: int) -> None:
    """Raises `UserError` for several greedy samples of a prompt, which would all be identical."""
    if sampling.temperature == 0 and samples > 1:
        raise UserError(f"{name}: {samples} greedy samples are all the same; set a temperature above 0")
