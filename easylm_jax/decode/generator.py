"""A model set up to generate responses to prompts: the checks that belong to it, its engine, and its rollouts.

Reinforcement learning, best-of-N, majority votes, evaluations and language models that judge all begin here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from easylm_jax.config import Sampling
from easylm_jax.data import Cache
from easylm_jax.data.tokenizer import Tokenizer, restrict_vocab
from easylm_jax.decode import rollout
from easylm_jax.decode.engine import Engine, engine_for
from easylm_jax.decode.rollout import Rollout
from easylm_jax.runtime.sharding import check_heads
from models.config import DecoderConfig
from models.errors import UserError
from models.model import Model

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Generator:
    """An engine with the vocabulary that it generates in, and how responses are sampled."""

    engine: Engine
    tokenizer: Tokenizer
    sampling: Sampling

    def sample(
        self, params: PyTree, prompts: Cache, batch: dict[str, np.ndarray], *, samples: int = 1, seed: int = 0,
        greedy: bool | None = None, cancelled: Callable[[], bool] | None = None,
    ) -> Rollout:  # fmt: skip
        """Responses to a batch of prompts of a cache; their scores are still 0.

        Args:
            params: of the model, in any float type.
            batch: `tokens`, `lengths` and `prompt_index` of the prompts, as `Cache.read` gives them.
            samples: responses to each prompt.
            greedy: whether the likeliest tokens are taken; left out, where the temperature is 0.
            cancelled: asked now and then; where it says True, `decode.Cancelled` is raised.
        """
        return rollout.sample(
            self.engine, params, batch, self.sampling, samples=samples, seed=seed, tokenizer=self.tokenizer,
            end_ids=rollout.end_ids(prompts, self.tokenizer),
            greedy=self.sampling.temperature == 0 if greedy is None else greedy, cancelled=cancelled,
        )  # fmt: skip


def prepare_generator(
    name: str, model: Model, tokenizer: Tokenizer, sampling: Sampling, mesh: jax.sharding.Mesh,
    prompts: Sequence[Cache] = (), *, slots: int | None = None,
) -> Generator:  # fmt: skip
    """What stage `name` generates with on `mesh`; nothing is compiled before the first call.

    Args:
        prompts: caches whose longest prompt and a whole response must fit the model's context.
        slots: rows that are decoded at once; left out, those of `sampling`.

    Raises:
        UserError: the model is a reward model, its heads do not divide over the mesh, or a response does not fit.
    """
    check_generative(name, model.config)
    check_heads(model.config, mesh)
    for cache in prompts:
        check_context_length(name, model.config, cache, sampling.max_new_tokens)
    rows = sampling.slots if slots is None else slots
    return Generator(engine_for(restrict_vocab(model, tokenizer), rows, mesh), tokenizer, sampling)


def check_generative(name: str, config: DecoderConfig) -> None:
    """A reward model has no vocabulary to generate with."""
    if config.scalar_head:
        raise UserError(f"stage {name}: its policy is a reward model (scalar head), which cannot generate")


def check_context_length(name: str, config: DecoderConfig, prompts: Cache, max_new_tokens: int) -> None:
    """The longest prompt and a whole response must fit into the context."""
    longest = int(np.asarray(prompts.columns["lengths"]).max())
    if longest + max_new_tokens > config.context:
        raise UserError(
            f"stage {name}: a prompt of {longest} tokens and {max_new_tokens} new ones are more than the model's "
            f"context of {config.context}; lower data.sequence_length (longer prompts are left out) or "
            "sampling.max_new_tokens"
        )


def check_samples(name: str, sampling: Sampling, samples: int) -> None:
    """Several greedy samples of a prompt are all the same."""
    if sampling.temperature == 0 and samples > 1:
        raise UserError(f"{name}: {samples} greedy samples are all the same; set a temperature above 0")
