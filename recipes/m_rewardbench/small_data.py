"""Training data for `recipes/m_rewardbench/small.py`: pairs and judgements in a few languages, from parallel news text.

The rows have the form of `recipes/m_rewardbench/fixtures.py`, from the documents that the fixtures leave. The languages
of training are English and four others, so that the drop against English and the agreement of languages say something.
"""

from __future__ import annotations

import random
from typing import Any

from recipes.m_rewardbench.fixtures import COLUMNS, pair_starts, sentences, turned

LANGUAGES = ("eng_Latn", "eng_Latn", "deu_Latn", "spa_Latn", "rus_Cyrl", "zho_Hans")  # English twice

Row = dict[str, Any]


def write(seed: int, pairs: int = 600, judgements: int = 240) -> dict[str, list[Row]]:
    """`pages.jsonl` in the languages of training, `vocabulary.jsonl` in all, `pairs.jsonl`, and `judgements.jsonl`:
    questions to a judge in the benchmark's form with the right verdict alone."""
    from easylm_jax.evaluate.preferences.languages import LANGUAGES as NAMES
    from easylm_jax.rewards.judge_pairs import pair_question

    text = sentences(False)
    generator = random.Random(seed)
    starts = pair_starts(text, min(pairs, len(text) // 2), seed)
    made: list[Row] = []
    for number in range(pairs):
        code = LANGUAGES[number % len(LANGUAGES)]
        column, (i, other) = COLUMNS[code], starts[number % len(starts)]
        chosen = text[i + 1][column]
        rejected = text[other][column] if generator.random() < 0.5 else turned(chosen)
        made.append({"prompt": text[i][column], "chosen": chosen, "rejected": rejected, "language": code})
    questions = []
    for row in made[:judgements]:
        known = NAMES.get(row["language"])
        name = None if known is None else known.name
        first = generator.random() < 0.5
        answers = [row["chosen"], row["rejected"]] if first else [row["rejected"], row["chosen"]]
        user = [{"role": "user", "content": row["prompt"]}]
        asked = pair_question(user, answers, source=name, target=name)
        verdict = {"role": "assistant", "content": "[[A]]" if first else "[[B]]"}
        questions.append({"messages": [*asked, verdict]})
    trained = list(dict.fromkeys(COLUMNS[code] for code in LANGUAGES))
    return {
        "pages.jsonl": [{"text": row[column]} for row in text for column in trained],
        "vocabulary.jsonl": [{"text": row[column]} for row in text for column in dict.fromkeys(COLUMNS.values())],
        "pairs.jsonl": made,
        "judgements.jsonl": questions,
    }
