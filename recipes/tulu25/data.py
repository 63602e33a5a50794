"""The data of Tülu 2.5 (arXiv 2406.09279): preference sets (Table 1, Section 3.1) and prompts (Section 3.4).

The sets are published in one schema, `chosen` and `rejected` message lists, as splits of
allenai/tulu-2.5-preference-data (3.6 GB together) and allenai/tulu-2.5-prompts. `preferences("shp-2", folder="my")`
reads `my/shp_2.jsonl` instead, `prompts("gsm8k", folder="my")` reads `my/gsm8k_prompts.jsonl`.

The published `ultrafeedback_overall` has 58,933 pairs, not the 60,908 of Table 1.
"""

from __future__ import annotations

import dataclasses

from easylm_jax.config import DataSpec, Source
from models.errors import UserError

TOKENIZER = "hf:allenai/tulu-2-13b"  # Llama 2's tokenizer, the same for all sizes
SIDE = 4096  # tokens of one side of a pair, for reward models and DPO (allenai/EasyLM, notes on the paper)
PROMPT = 1024  # tokens of a prompt


def _source(hub: str, split: str, folder: str | None) -> Source:
    return Source(f"{hub}:{split}" if folder is None else f"{folder}/{split}.jsonl")


@dataclasses.dataclass(frozen=True)
class Preferences:
    """A preference set of `size` pairs, called `title` in tables. `folder` has it as JSONL; None reads the hub."""

    key: str
    title: str
    group: str
    split: str
    size: int
    folder: str | None = None

    @property
    def source(self) -> Source:
        """The source of the pairs."""
        return _source("hf:allenai/tulu-2.5-preference-data", self.split, self.folder)

    def pairs(self, *, truncated: str) -> DataSpec:
        """One pair per row, a side at most 4096 tokens. `truncated`: "drop" (reward models) or "truncate" (DPO)."""
        return DataSpec(
            (self.source,),
            TOKENIZER,
            2 * SIDE,
            kind="preference",
            template="tulu25",  # BOS first, contents stripped
            packing="none",  # so that a batch of rows is a batch of pairs
            overlong=truncated,
            train_on="last_assistant",
            on_bad="skip",  # counted in the cache's manifest
        )

    @property
    def prompts(self) -> Prompts:
        """The prompts of the pairs; those of UltraFeedback are published as a set of their own."""
        if self.key == "uf" and self.folder is None:
            return prompts("uf")
        return Prompts(self.key, self.title, self.source, self.size)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A prompt set of `size` prompts, of which those above 1024 tokens are left out."""

    key: str
    title: str
    source: Source
    size: int

    @property
    def data(self) -> DataSpec:
        """One prompt per row; no columns are kept, since a reward model needs only the conversation."""
        return DataSpec(
            (self.source,), TOKENIZER, PROMPT, kind="prompts", template="tulu25", on_bad="skip", keep=()
        )  # fmt: skip


# Table 1, in its order. The published `ultrafeedback_overall` has 58,933 pairs, not the 60,908 of the table.
TABLE_1 = (
    Preferences("shp-2", "SHP-2", "Web", "shp_2", 500_000),
    Preferences("stack-exchange", "StackExchange", "Web", "stack_exchange_paired", 500_000),
    Preferences("prm800k", "PRM800k", "Human", "prm800k_pairs_phase2", 6_949),
    Preferences("chatbot-arena-2023", "Chatbot Arena 2023", "Human", "chatbot_arena_2023", 20_465),
    Preferences("chatbot-arena-2024", "Chatbot Arena 2024", "Human", "chatbot_arena_2024", 34_269),
    Preferences("alpaca-farm-human", "AlpacaFarm human", "Human", "alpaca_farm_human_pref", 9_686),
    Preferences("hh-rlhf", "HH-RLHF", "Human", "hh_rlhf", 158_530),
    Preferences("helpsteer", "HelpSteer", "Human", "helpsteer", 9_270),
    Preferences("alpaca-farm-gpt4", "AlpacaFarm GPT-4", "Synthetic", "alpaca_farm_gpt4_pref", 19_465),
    Preferences("capybara", "Capybara 7k", "Synthetic", "capybara", 7_563),
    Preferences("orca-pairs", "Orca pairs", "Synthetic", "orca_dpo_pairs", 12_859),
    Preferences("nectar", "Nectar", "Synthetic", "nectar", 180_099),
    Preferences("uf-overall", "UltraFeedback overall", "Synthetic", "ultrafeedback_overall", 60_908),
    Preferences("uf", "UltraFeedback fine-grained", "Synthetic", "ultrafeedback_mean_aspects", 60_908),
)

# Table 2 compares sets of equal size: the published sets with at most 60,908 pairs. Chatbot Arena 2023 is smaller.
CUTS = (
    Preferences("stack-exchange-60k", "StackExchange", "Web", "stack_exchange_60k", 60_908),
    Preferences("hh-rlhf-60k", "HH-RLHF", "Human", "hh_rlhf_60k", 60_908),
    Preferences("nectar-60k", "Nectar", "Synthetic", "nectar_60k", 60_908),
)

# The mix for reward models: UltraFeedback fine-grained, the three sets of CUTS, all of HelpSteer and PRM800k.
MIX = Preferences("mix", "Mix", "Mix", "preference_big_mixture", 259_851)

# Parts of UltraFeedback fine-grained: by source of the prompts, and by strength of the models that responded. Sizes as
# published.
UF_PARTS = tuple(
    Preferences(f"uf-{part.replace('_', '-')}", f"UltraFeedback {title}", "Synthetic", f"ultrafeedback_{part}", size)
    for part, title, size in (
        ("evol_instruct", "Evol-Instruct", 10_000),
        ("false_qa", "FalseQA", 2_339),
        ("flan_v2", "FLAN v2", 20_939),
        ("sharegpt", "ShareGPT", 19_948),
        ("truthful_qa", "TruthfulQA", 811),
        ("ultrachat", "UltraChat", 9_929),
        ("top_10k", "strongest models", 10_000),
        ("middle_10k", "middling models", 10_000),
        ("lower_10k", "weakest models", 10_000),
    )
)

_PREFERENCES = {one.key: one for one in (*TABLE_1, *CUTS, MIX, *UF_PARTS)}

# Key, name in the tables, split, rows. The math prompts were mined from UltraFeedback, WildChat and LMSYS-1M; "mixed"
# adds 20k math and 20k code prompts to UltraFeedback's.
_PROMPTS = {
    "uf": ("UltraFeedback", "ultrafeedback_prompts", 60_908),
    "math": ("mined math", "math_prompts_20k", 20_000),
    "gsm8k": ("GSM8K train", "gsm8k_prompts", 7_473),
    "mixed": ("mixed", "ultrafeedback_code_math_prompts", 100_908),
}


def preferences(key: str, folder: str | None = None) -> Preferences:
    """The preference set called `key`, from the hub or from `<folder>/<split>.jsonl`."""
    if key not in _PREFERENCES:
        raise UserError(f"no preference set {key!r}; there are {', '.join(_PREFERENCES)}")
    return dataclasses.replace(_PREFERENCES[key], folder=folder)


def prompts(key: str, folder: str | None = None) -> Prompts:
    """The prompt set called `key`, from the hub or from `<folder>/<split>.jsonl`."""
    if key not in _PROMPTS:
        raise UserError(f"no prompt set {key!r}; there are {', '.join(_PROMPTS)}")
    title, split, size = _PROMPTS[key]
    return Prompts(key, title, _source("hf:allenai/tulu-2.5-prompts", split, folder), size)
