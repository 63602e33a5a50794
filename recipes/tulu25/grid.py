"""Four reward models crossed with sets of prompts: what Table 3, Figure 3 and Table 4 share (arXiv 2406.09279)."""

from __future__ import annotations

from easylm_jax.config import PPO, Entry, RewardModel
from recipes.tulu25 import data, stages, suites
from recipes.tulu25.data import Prompts

Cell = tuple[RewardModel, Prompts, PPO]


def reward_models() -> tuple[RewardModel, ...]:
    """13B and 70B, each on UltraFeedback fine-grained and on the mix."""
    return tuple(
        stages.reward_model(size, data.preferences(key)) for size in ("13b", "70b") for key in ("uf", "mix")
    )  # fmt: skip


def title_of(reward: RewardModel) -> str:
    """The name of a reward model in tables: its size and its data."""
    _, size, key = reward.name.split("-")
    return f"{size.upper()} {'UF' if key == 'uf' else 'Mix'}"


def trained_on(rewards: tuple[RewardModel, ...], keys: tuple[str, ...]) -> list[Cell]:
    """PPO for every reward model on every set of prompts."""
    sets = [data.prompts(key) for key in keys]
    return [(reward, prompts, stages.ppo(reward, prompts)) for reward in rewards for prompts in sets]


def entries(cells: list[Cell]) -> tuple[Entry, ...]:
    """A row for each cell, named by reward model and prompts."""
    return tuple(
        Entry(f"{title_of(reward)}, {prompts.title}", (ppo.name,), over=suites.BASE.method)
        for reward, prompts, ppo in cells
    )
