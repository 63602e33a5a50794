"""Preference sets in the schemas of RewardBench and M-RewardBench, made of made-up text, and tiny judges."""

from __future__ import annotations

import json
from pathlib import Path

import data_kit

from easylm_jax.evaluate.preferences.items import Item
from easylm_jax.evaluate.preferences.sections import SUBSETS
from models.config import DecoderConfig

MODEL = DecoderConfig(
    "olmo2", layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=448, context=256, qk_norm=True, vocab_used=420
)  # fmt: skip


def items(count: int, language: str = "eng_Latn") -> list[Item]:
    """Pairs of every subset in turn; every fifth shares its prompt with the one before it."""
    made = []
    names = list(SUBSETS)
    for i in range(count):
        prompt = ({"role": "user", "content": data_kit.sentence(i - (i % 5 == 1), 3 + i % 19)},)
        answers = (data_kit.sentence(i + 100, 2 + i % 13), data_kit.sentence(i + 300, 2 + (7 * i) % 17))
        made.append(Item(str(i), language, names[i % len(names)], prompt, answers))
    return made


def rows(language: str, count: int) -> list[dict]:
    """The same pairs in M-RewardBench's columns, with the language's code in every text."""
    return [
        {"id": int(item.id), "language": language, "source": item.subset, "prompt": f"{item.prompt[0]['content']}",
         "chosen": item.completions[0], "rejected": item.completions[1], "chosen_model": "a", "rejected_model": "b"}
        for item in items(count)
    ]  # fmt: skip


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
