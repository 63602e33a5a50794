"""Decontamination and deduplication of many rows on this machine: rows per second, peak memory, and what was found.

    python benchmarks/curation.py --questions ../shared/data/gsm8k --web ../shared/data/c4_sample
    python benchmarks/curation.py --rows 20000 --workers 1
    python benchmarks/curation.py --rows 2000 --articles ../shared/data/curation/web_articles

Rows are those of GSM8K's training set (`train.jsonl`) and of C4 (parquet), over and over, each time with other words
among them so that few are equal. GSM8K's test rows are planted among them: whole, shifted, in capitals, without and
with other punctuation, and in part (40, 49, 50, 51 and 60 % of the words). Without the folders, rows are made up. Every
plant at or above half must go and none below; near duplicates are planted at known similarities beside the theory of
their candidates. `--articles` is a folder with `near_duplicates.jsonl.gz`, rows with `id` (the true cluster) and
`text`: pairs that deduplication puts into one group are compared with the clusters, beside what the parameters should
find of the true pairs by their similarities. The last line of standard output is JSON, in rows per second of
decontamination.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import ROOT, BenchmarkError, json_line, machine, run_main

PARTS = (40, 49, 50, 51, 60)
SIMILARITIES = (0.5, 0.7, 0.8, 0.9)
PAIRS = 200  # of near duplicates at each similarity
WORDS = [a + b + c + d for a, b, c, d in itertools.product("bdfgklmnprst", "aeiou", "lmnrst", ("", "a", "ine"))]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/curation.py --rows 20000"
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="training rows (1,000,000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="worker processes (all cores)")
    parser.add_argument("--questions", help="a folder with GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--web", help="a folder of C4's parquet files")
    parser.add_argument("--articles", help="a folder with near_duplicates.jsonl.gz, whose clusters are known")
    parser.add_argument("--dedup", action="store_true", help="measure deduplication too")
    options = parser.parse_args()
    if options.rows < 2000 or options.workers < 1:
        parser.error("there must be at least 2000 rows and a worker")
    return options


def made_up(seed: int, words: int) -> str:
    """Words at random."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def base_rows(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that are repeated, and the test questions."""
    if options.questions is None:
        return [{"text": made_up(i, 60)} for i in range(2000)], [made_up(10**6 + i, 100) for i in range(300)]
    from easylm_jax.config.data import Source
    from easylm_jax.data.sources import read_records

    folder = Path(options.questions)
    if not (folder / "train.jsonl").is_file():
        raise BenchmarkError(f"no train.jsonl in {folder}; --questions names the folder of GSM8K")
    paths = [str(folder / "train.jsonl"), *([options.web] if options.web else [])]
    rows = [dict(record) for path in paths for record, _ in read_records(Source(path))]
    questions = [json.loads(line)["question"] for line in (folder / "test.jsonl").read_text().splitlines()]
    return rows, questions


def planted(question: str) -> dict[str, str]:
    """The forms of a question, by name; a part is the first words of it."""
    words = question.split()
    forms = {
        "exact": question, "shifted": f"{made_up(1, 9)} {question} {made_up(2, 9)}", "cased": question.swapcase(),
        "bare": "".join(c for c in question if c.isalnum() or c.isspace()), "punctuated": " ,".join(words) + "!?!",
    }  # fmt: skip
    return forms | {f"{part}%": " ".join(words[: part * len(words) // 100]) for part in PARTS}


def varied(rows: list[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """`count` rows; from the second round on, a word at random stands before every seventh."""
    chooser = random.Random(0)
    for i in range(count):
        row = rows[i % len(rows)]
        if i < len(rows):
            yield row
            continue
        column = "question" if "question" in row else "text"
        words = row[column].split(" ")
        for at in range(0, len(words), 7):
            words[at] = f"{chooser.choice(WORDS)} {words[at]}"
        yield {**row, column: " ".join(words)}


def write_data(options: argparse.Namespace, folder: Path) -> dict[str, list[int]]:
    """Writes train.jsonl and test.jsonl; returns the row numbers of the plants of each form."""
    from easylm_jax.data.curation.texts import words

    rows, questions = base_rows(options)
    whole = [q for q in questions if len(words(q)) % 100 == 0]  # of which 49 and 51 % are whole numbers of words
    whole += [made_up(5 * 10**6 + i, 100) for i in range(20)]
    (folder / "test.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in [*questions, *whole]))
    forms = [(name, text) for q in whole[-20:] for name, text in planted(q).items()]
    forms += [(name, text) for q in questions[:40] for name, text in planted(q).items() if not name.endswith("%")]
    every = options.rows // (len(forms) + 1)
    places: dict[str, list[int]] = {}
    plants = iter(forms)
    with open(folder / "train.jsonl", "w") as file:
        for number, row in enumerate(varied(rows, options.rows)):
            if number % every == every - 1 and (plant := next(plants, None)) is not None:
                places.setdefault(plant[0], []).append(number)
                row = {"messages": [{"role": "user", "content": plant[1]}, {"role": "assistant", "content": "4"}]}
            file.write(json.dumps(row, default=str) + "\n")
    return places


def run(folder: Path, *command: str) -> tuple[float, float]:
    """Runs `easylm data …` below `folder`; returns its seconds and its peak memory with its workers', in MB."""
    script = (
        "import resource, sys; from easylm_jax.cli.main import main; status = main(sys.argv[1:]); "
        "own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss; print('peak', own, most); sys.exit(status)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, "data", *command], capture_output=True, text=True,
                          cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise BenchmarkError(done.stderr.strip().splitlines()[-1])
    own, child = map(int, done.stdout.split()[-2:])
    return seconds, own / 1000 + child / 1000 * int(command[-1])


def duplicates(folder: Path) -> tuple[list[str], list[list[Any]]]:
    """Writes pairs of rows of known similarity; returns a line for each similarity."""
    from easylm_jax.data.curation.minhash import bands_for, candidate_probability

    rows, lines = [], []
    for at, similarity in enumerate(SIMILARITIES):
        for pair in range(PAIRS):
            base = made_up(10**7 + 1000 * at + pair, 204).split()  # 200 n-grams
            same = round(200 * 2 * similarity / (1 + similarity))
            other = base[: same + 4] + made_up(2 * 10**7 + 1000 * at + pair, 200 - same).split()
            rows += [{"at": at, "text": " ".join(words)} for words in (base, other)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table: list[list[Any]] = []
    for threshold in (0.7, 0.8):
        out = f"pairs-{threshold}"
        run(folder, "dedup", "pairs.jsonl", "--out", out, "--threshold", str(threshold), "--workers", "1")
        kept = [0] * len(SIMILARITIES)
        for line in (folder / out / "pairs.jsonl").read_text().splitlines():
            kept[json.loads(line)["at"]] += 1
        bands, width = bands_for(threshold)
        for similarity, left in zip(SIMILARITIES, kept, strict=True):
            same = round(200 * 2 * similarity / (1 + similarity))
            exact = same / (400 - same)
            theory = candidate_probability(exact, bands, width)
            joined = (2 * PAIRS - left) / PAIRS
            table.append([threshold, round(exact, 4), joined, round(theory, 5)])
            lines.append(f"threshold {threshold}: pairs of similarity {exact:.4f}: {joined:.1%} joined; candidates: "
                         f"{theory:.3%} ({bands} bands of {width})")  # fmt: skip
    return lines, table


def articles(folder: Path, source: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Precision and recall of pairs on rows of known clusters, at several thresholds, beside what theory expects.

    Of two rows of one cluster with similarity s, the bands find a share `candidate_probability(s)`, and the comparison
    then keeps those with s at or above the threshold: their sum over the true pairs is the expected recall. Groups also
    join rows over others, so that the measured recall can be higher.
    """
    import gzip

    import numpy as np

    from easylm_jax.data.curation.minhash import Signer, bands_for, candidate_probability, jaccard

    path = source / "near_duplicates.jsonl.gz"
    if not path.is_file():
        raise BenchmarkError(f"no near_duplicates.jsonl.gz in {source}; --articles names the folder that holds it")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    clusters = np.unique([row["id"] for row in rows], return_inverse=True)[1]
    (folder / "articles.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    signer = Signer(5, 1, 1)
    shingles = [signer.shingles(row["text"].casefold().split()) for row in rows]
    true = [(i, j) for i in range(len(rows)) for j in range(i) if clusters[i] == clusters[j]]
    similar = np.array([both / union if union else 1.0 for both, union in
                        (jaccard(shingles[i], shingles[j]) for i, j in true)])  # fmt: skip
    lines, table = [], []
    for threshold in (0.5, 0.7, 0.8, 0.9):
        out = f"articles-{threshold}"
        run(folder, "dedup", "articles.jsonl", "--out", out, "--threshold", str(threshold), "--workers", "1")
        group = np.arange(len(rows))
        with gzip.open(folder / out / "removed.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                said = json.loads(line)
                group[int(said["place"].rpartition(":")[2]) - 1] = said["group"]
        same = group[:, None] == group[None]
        alike = clusters[:, None] == clusters[None]
        above = np.triu(np.ones_like(same), 1)
        found, right = int((same & above).sum()), int((same & alike & above).sum())
        bands, width = bands_for(threshold)
        expected = [candidate_probability(s, bands, width) for s in similar[similar >= threshold]]
        row = {"threshold": threshold, "bands": bands, "rows": width, "pairs": len(true), "found": found,
               "precision": right / found if found else 1.0, "recall": right / len(true),
               "at_or_above": len(expected) / len(true), "theory": sum(expected) / len(true)}  # fmt: skip
        table.append(row)
        lines.append(f"articles at {threshold}: precision {row['precision']:.2%}, recall {row['recall']:.2%} of "
                     f"{len(true):,} true pairs; {row['at_or_above']:.2%} of them are as similar, and {bands} bands of "
                     f"{width} find {row['theory']:.2%} of all")  # fmt: skip
    return lines, table


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        places = write_data(options, folder)
        workers = str(options.workers)
        seconds, peak = run(folder, "decontaminate", "train.jsonl", "--against", "test.jsonl", "--out", "kept",
                            "--report", "report.json", "--workers", workers)  # fmt: skip
        summary = json.loads((folder / "report.json").read_text())
        gone = set(range(options.rows)) - kept_rows(folder)
        found = {form: sum(row in gone for row in rows) / len(rows) for form, rows in places.items()}
        print(f"decontaminate: {options.rows:,} rows, {summary['test_rows']:,} test rows, {options.workers} workers: "
              f"{options.rows / seconds:,.0f} rows/s, peak {peak:,.0f} MB, {summary['removed']:,} removed")  # fmt: skip
        for form, share in found.items():
            print(f"  {form:<12} {len(places[form]):>4} planted, {share:.1%} removed")
        config = {**machine(), "rows": options.rows, "workers": options.workers, "peak_mb": round(peak),
                  "seconds": seconds, "planted": found, "removed": summary["removed"]}  # fmt: skip
        lines, table = duplicates(folder)
        print("\n".join(lines))
        config["near_duplicates"] = table
        if options.articles:
            lines, config["articles"] = articles(folder, Path(options.articles).absolute())
            print("\n".join(lines))
        if options.dedup:
            taken, most = run(folder, "dedup", "train.jsonl", "--out", "first", "--workers", workers)
            print(f"dedup: {options.rows / taken:,.0f} rows/s, peak {most:,.0f} MB")
            config["dedup"] = {"rows_per_second": options.rows / taken, "peak_mb": round(most)}
        wrong = [form for form, share in found.items() if share != (form not in ("40%", "49%"))]
        if wrong:
            raise BenchmarkError(f"planted rows of the forms {', '.join(wrong)} are not where they should be")
        print(json_line(options.rows / seconds, None, "rows/s", None, config))


def kept_rows(folder: Path) -> set[int]:
    """The numbers of the kept rows, from the order of both files."""
    kept: set[int] = set()
    with open(folder / "train.jsonl", "rb") as before, open(folder / "kept/train.jsonl", "rb") as after:
        wanted = after.readline()
        for number, line in enumerate(before):
            if line == wanted:
                kept.add(number)
                wanted = after.readline()
    return kept


if __name__ == "__main__":
    run_main(main)
