"""Small preference sets in M-RewardBench's released schema, made of parallel news text (NTREX-128).

    python -m recipes.m_rewardbench.fixtures FOLDER [ROWS]
    easylm eval MODEL --suite m_rewardbench --data FOLDER

A prompt is a sentence; the chosen answer is the sentence that follows it in the same document, the rejected one is a
sentence of another document. All languages, and English, have the same rows under the same ids, so that agreement
between languages means something. Nothing here is the benchmark itself, and its scores are no scores on it. NTREX has
one form of Chinese; both of the benchmark's use it.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from easylm_jax.runtime.files import write_lines
from models.errors import UserError

DATA = os.environ.get("EASYLM_DATA", "../shared/data")
# The columns of NTREX for the benchmark's configurations.
COLUMNS = {
    "eng_Latn": "eng", "arb_Arab": "arb", "ces_Latn": "ces", "deu_Latn": "deu", "ell_Grek": "ell", "fra_Latn": "fra",
    "heb_Hebr": "heb", "hin_Deva": "hin", "ind_Latn": "ind", "ita_Latn": "ita", "jpn_Jpan": "jpn", "kor_Hang": "kor",
    "nld_Latn": "nld", "pes_Arab": "fas", "pol_Latn": "pol", "por_Latn": "por", "ron_Latn": "ron", "rus_Cyrl": "rus",
    "spa_Latn": "spa", "tur_Latn": "tur", "ukr_Cyrl": "ukr", "vie_Latn": "vie", "zho_Hans": "zho-CN",
    "zho_Hant": "zho-CN",
}  # fmt: skip
SUBSETS = (
    "alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med", "mt-bench-hard",
    "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual",
    "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    "math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-rust", "hep-python",
)  # fmt: skip


def rows_by_language(count: int, seed: int = 0, path: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """`count` rows of each language; the subsets take turns."""
    file = Path(path or f"{DATA}/multilingual/ntrex/ntrex_28langs.jsonl.gz")
    if not file.is_file():
        raise UserError(f"cannot find {file}; set EASYLM_DATA to the folder that holds multilingual/ntrex")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        sentences = [json.loads(line) for line in lines]
    generator = random.Random(seed)
    starts = [i for i in range(len(sentences) - 1) if sentences[i]["doc"] == sentences[i + 1]["doc"]]
    chosen = generator.sample(starts, count)
    others = [generator.choice([j for j in starts if sentences[j]["doc"] != sentences[i]["doc"]]) for i in chosen]
    return {
        code: [
            {"id": number, "language": code, "source": SUBSETS[number % len(SUBSETS)], "prompt": sentences[i][column],
             "chosen": sentences[i + 1][column], "rejected": sentences[other][column], "chosen_model": "ntrex",
             "rejected_model": "ntrex"}
            for number, (i, other) in enumerate(zip(chosen, others, strict=True))
        ]
        for code, column in COLUMNS.items()
    }  # fmt: skip


def write(folder: str | Path, count: int = 92, seed: int = 0) -> None:
    """Writes `<language>.jsonl` for English and the 23 languages."""
    for code, rows in rows_by_language(count, seed).items():
        write_lines(Path(folder) / f"{code}.jsonl", rows)


if __name__ == "__main__":
    write(sys.argv[1], *map(int, sys.argv[2:3]))
