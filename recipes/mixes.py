"""The published data mixtures, as tables. `recipes/seqio_mixtures.py` registers them as seqio tasks and mixtures.

A rate is a source's share of the rows in training. A fraction is how much of the source's documents is used at all;
repetition follows from the rates, since a source with fewer rows than its share is read again, reshuffled.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import Source


@dataclasses.dataclass(frozen=True)
class Part:
    """A source of a mix: its name in the repository, its rate, and the fraction of its documents (None: all)."""

    subset: str
    rate: float
    fraction: float | None = None


@dataclasses.dataclass(frozen=True)
class Mix:
    """Sources of a repository of the hub, mixed at rates."""

    repository: str
    parts: tuple[Part, ...]


def _dolmino(column: int, rates: dict[str, tuple[float, float, float]]) -> Mix:
    parts = (
        Part(name, rates[name][column], share[column] if share[column] < 1 else None)
        for name, share in _DOLMINO_SHARES.items()
    )
    return Mix("dolmino-mix-1124", tuple(parts))


# Dolmino Mix 1124 at 50B, 100B and 300B tokens: the fraction of a source's documents. From the file lists of the runs
# (allenai/OLMo, configs/official-1124, stage 2); Table 13 of arXiv 2501.00656 has the same ones.
_DOLMINO_SHARES = {
    "dclm": (0.0323, 0.0685, 0.2078),  # top 7 % by quality, 752B tokens
    "flan": (0.50, 1.0, 1.0),
    "pes2o": (0.0515, 0.167, 1.0),
    "wiki": (1.0, 1.0, 1.0),
    "stackexchange": (1.0, 1.0, 1.0),
    "math": (1.0, 1.0, 1.0),
}
# Billions of tokens, counted from the file lists with their repetitions.
_DOLMINO_FILES = {
    "dclm": (24.31, 51.47, 156.26),
    "flan": (8.54, 17.08, 34.16),
    "pes2o": (3.01, 9.76, 58.55),
    "wiki": (3.66, 7.32, 14.64),
    "stackexchange": (1.26, 2.52, 5.04),
    "math": (10.69, 24.79, 42.77),
}
# Percent of the mix in Table 13. Its maths at 100B and 300B and its Wikipedia at 100B do not follow from its own source
# percentages, so the runs' file lists are what reproduces them.
_DOLMINO_TABLE_13 = {
    "dclm": (47.2, 50.2, 51.9),
    "flan": (16.6, 16.7, 11.3),
    "pes2o": (5.85, 9.52, 19.4),
    "wiki": (7.11, 3.57, 4.86),
    "stackexchange": (2.45, 2.47, 1.68),
    "math": (20.8, 17.5, 10.8),
}
BUDGETS = ("50b", "100b", "300b")

MIXES: dict[str, Mix] = {
    # OLMo 2's stage 1 (arXiv 2501.00656, Table 4), billions of tokens
    "olmo_mix_1124": Mix(
        "olmo-mix-1124",
        (
            Part("dclm", 3710.0),  # DCLM-Baseline
            Part("starcoder", 83.0),
            Part("pes2o", 58.6),
            Part("arxiv", 20.8),
            Part("open-web-math", 12.2),
            Part("algebraic-stack", 11.8),
            Part("wiki", 3.7),  # Wikipedia and Wikibooks
        ),
    ),
    # OLMoE's mix (arXiv 2409.02060, Table 2), billions of tokens
    "olmoe_mix_0924": Mix(
        "OLMoE-mix-0924",
        (
            Part("dclm", 3860.0),
            Part("starcoder", 101.0),
            Part("pes2o", 57.2),
            Part("arxiv", 21.1),
            Part("open-web-math", 12.7),
            Part("algebraic-stack", 12.6),
            Part("wiki", 3.69),
        ),
    ),
    **{f"dolmino_1124_{budget}": _dolmino(column, _DOLMINO_FILES) for column, budget in enumerate(BUDGETS)},
    **{f"dolmino_1124_{b}_table13": _dolmino(column, _DOLMINO_TABLE_13) for column, b in enumerate(BUDGETS)},
}
# Conversations: repositories of the hub (Tülu 3, arXiv 2411.15124, Section 4; OLMo 2, Section 5; OLMoE, Table 3).
CHATS = {
    "tulu3_sft": "tulu-3-sft-mixture",
    "tulu3_sft_olmo2": "tulu-3-sft-olmo-2-mixture",
    "tulu3_sft_olmo2_0225": "tulu-3-sft-olmo-2-mixture-0225",
    "tulu3_sft_olmoe": "tulu-v3.1-mix-preview-4096-OLMoE",
}


def source(mixture: str) -> Source:
    """The seqio mixture (or task of conversations) of this name, as a source of a `DataSpec`."""
    assert mixture in MIXES or mixture in CHATS, mixture
    return Source(f"seqio:{mixture}", module="recipes.seqio_mixtures")
