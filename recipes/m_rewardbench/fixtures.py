"""Small preference sets in M-RewardBench's released schema, made of parallel news text (NTREX-128).

    python -m recipes.m_rewardbench.fixtures FOLDER [--rows ROWS] [--poorer]
    easylm eval MODEL --suite m_rewardbench --data FOLDER

A prompt is a sentence; the chosen answer is the sentence that follows it in the same document. In Chat and Safety the
rejected one is a sentence of another document: chosen and rejected sentences have the same distribution there, so a
judge that does not read the prompt is at chance. In Chat Hard and Reasoning it is the chosen sentence with its words
(in scripts without spaces, its characters) in reverse order. All languages, and English, have the same rows under the
same ids, so that agreement between languages means something. The translation task asks for a translation; a wrong one
is that of the next sentence (hard) or of a sentence of another document (easy).

`--poorer` is a stand-in for a worse translation of the same rows: of each text outside English a share of the words,
from none to half, is left out. It shows the way of Figure 5, not what translators do.

Rows are made of every third document; `recipes/m_rewardbench/small.py` trains on the others. Nothing here is the
benchmark itself, and its scores are no scores on it. NTREX has one form of Chinese; both of the benchmark's use it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
from collections.abc import Sequence
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
OTHER_DOCUMENT = (
    "alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med", "refusals-dangerous",
    "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
)  # fmt: skip
REVERSED = (
    "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
    "llmbar-adver-manual", "math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-rust", "hep-python",
)  # fmt: skip
SUBSETS = (*OTHER_DOCUMENT, *REVERSED)
TRANSLATIONS = {
    "de-en": ("deu", "eng"), "en-de": ("eng", "deu"), "zh-en": ("zho-CN", "eng"), "en-zh": ("eng", "zho-CN"),
}  # fmt: skip

Sentence = dict[str, Any]


def sentences(held_out: bool, path: str | None = None) -> list[Sentence]:
    """The sentences of the held-out documents, every third one in order, or of the others; a column a language."""
    file = Path(path or f"{DATA}/multilingual/ntrex/ntrex_28langs.jsonl.gz")
    if not file.is_file():
        raise UserError(f"cannot find {file}; set EASYLM_DATA to the folder that holds multilingual/ntrex")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        found = [{name: value.strip() if isinstance(value, str) else value for name, value in json.loads(line).items()}
                 for line in lines]  # fmt: skip
    number = {name: at for at, name in enumerate(dict.fromkeys(row["doc"] for row in found))}
    return [row for row in found if (number[row["doc"]] % 3 == 0) == held_out]


def turned(text: str) -> str:
    """The words in reverse order; the characters of a text of fewer than four words."""
    words = text.split()
    return " ".join(reversed(words)) if len(words) > 3 else text[::-1]


def pair_starts(rows: Sequence[Sentence], count: int, seed: int) -> list[tuple[int, int]]:
    """(sentence that another one of its document follows, a sentence of another document), `count` times."""
    generator = random.Random(seed)
    starts = [i for i in range(len(rows) - 1) if rows[i]["doc"] == rows[i + 1]["doc"]]
    if count > len(starts):
        raise UserError(f"m_rewardbench fixtures: {count} rows; the text has {len(starts)} at most")
    chosen = generator.sample(starts, count)
    return [(i, generator.choice([j for j in starts if rows[j]["doc"] != rows[i]["doc"]])) for i in chosen]


def rows_by_language(count: int, seed: int = 0, path: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """`count` rows of each language; the subsets take turns."""
    text = sentences(True, path)
    made = pair_starts(text, count, seed)

    def row(number: int, code: str, column: str) -> dict[str, Any]:
        (i, other), subset = made[number], SUBSETS[number % len(SUBSETS)]
        chosen = text[i + 1][column]
        rejected = turned(chosen) if subset in REVERSED else text[other][column]
        return {"id": number, "language": code, "source": subset, "prompt": text[i][column], "chosen": chosen,
                "rejected": rejected, "chosen_model": "ntrex", "rejected_model": "ntrex"}  # fmt: skip

    return {code: [row(number, code, column) for number in range(count)] for code, column in COLUMNS.items()}


def translation_rows(count: int, seed: int = 0, path: str | None = None) -> list[dict[str, Any]]:
    """`count` rows of each difficulty and direction, in the released names of subsets."""
    text = sentences(True, path)
    found: list[dict[str, Any]] = []
    for direction, (source, target) in TRANSLATIONS.items():
        language = {"eng": "English", "deu": "German", "zho-CN": "Chinese"}[target]
        for level in ("easy", "hard"):
            for i, other in pair_starts(text, count, seed):
                wrong = text[other if level == "easy" else i + 1][target]
                found.append({
                    "id": len(found), "language": "translation", "source": f"maple-{level}/{direction}",
                    "prompt": f"Translate into {language}: {text[i][source]}", "chosen": text[i][target],
                    "rejected": wrong, "chosen_model": "ntrex", "rejected_model": "ntrex",
                })  # fmt: skip
    return found


def poorer(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The rows with a share of each text's words (characters, where there are no spaces) left out."""
    made = []
    for row in rows:
        draw = random.Random(f"{row['id']} {row['language']} {seed}")
        share = draw.uniform(0, 0.5)
        made.append({**row, **{name: _thinned(row[name], share, draw) for name in ("prompt", "chosen", "rejected")}})
    return made


def _thinned(text: str, share: float, draw: random.Random) -> str:
    words = text.split()
    parts, join = (words, " ") if len(words) > 3 else (list(text), "")
    kept = [part for part in parts if draw.random() >= share]
    return join.join(kept or parts[:1])


def write(folder: str | Path, count: int = 92, seed: int = 0, worse: bool = False) -> None:
    """Writes `<language>.jsonl` for English and the 23 languages, and `translation.jsonl`; `worse`: see `poorer`."""
    for code, rows in rows_by_language(count, seed).items():
        if worse and code != "eng_Latn":
            rows = poorer(rows, seed)
        write_lines(Path(folder) / f"{code}.jsonl", rows)
    write_lines(Path(folder) / "translation.jsonl", translation_rows(max(1, count // 8), seed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="M-RewardBench's schema on parallel news text.")
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=92)
    parser.add_argument("--poorer", action="store_true")
    given = parser.parse_args()
    write(given.folder, given.rows, worse=given.poorer)
