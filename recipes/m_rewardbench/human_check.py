"""A human beside a judge and the gold labels, on a sample of one language (arXiv 2410.15522; spec m_rewardbench, T4).

    python -m recipes.m_rewardbench.human_check draw runs/eval-m_rewardbench-0f2a91c7 deu_Latn --out check
    python -m recipes.m_rewardbench.human_check score check answers.jsonl

`draw` takes equal numbers of items that the judge got right, wrong and neither, shows the answers in either order with
probability ½, and writes `check/pairs.jsonl` (number, prompt, A, B) for the human and `check/key.jsonl`, which is not
for the human. `answers.jsonl` has a line {"number": 0, "answer": "A"} for each pair: A, B or tie.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import UserError

ANSWERS = ("A", "B", "tie")
Row = dict[str, Any]


def draw(items: Sequence[Any], labels: Mapping[tuple[str, str], int], count: int, seed: int) -> tuple[list[Row], ...]:
    """(pairs, key) of `count` items, a third of each label of the judge; fewer where a label has fewer items.

    Args:
        items: the language's items (`evaluate.preferences.items.Item`), pairs alone.
        labels: which side the judge prefers, by id and subset (`evaluate.preferences.analyses.labels_of`).
        count: most items.
        seed: of the choice, the order of the items and that of their answers.
    """
    generator = random.Random(seed)
    groups: dict[int, list[Any]] = {}
    for item in items:
        if item.kind == "pair" and (item.id, item.subset) in labels:
            groups.setdefault(labels[item.id, item.subset], []).append(item)
    chosen = [item for label in sorted(groups)
              for item in generator.sample(groups[label], min(len(groups[label]), count // 3))]  # fmt: skip
    generator.shuffle(chosen)
    pairs, key = [], []
    for number, item in enumerate(chosen):
        swapped = generator.random() < 0.5
        first, second = reversed(item.completions) if swapped else item.completions
        pairs.append({"number": number, "prompt": item.prompt[-1]["content"], "A": first, "B": second})
        key.append({"number": number, "id": item.id, "subset": item.subset, "gold": "B" if swapped else "A",
                    "judge": labels[item.id, item.subset]})  # fmt: skip
    return pairs, key


def score(key: Sequence[Row], answers: Sequence[Row]) -> dict[str, Any]:
    """How often the human agrees with gold and with the judge, and the judge with gold, on the answered pairs.

    A tie of the human is half right beside gold. Agreement with the judge is that of labels (chosen, rejected,
    neither), with Cohen's κ.

    Raises:
        UserError: an answer is none of A, B and tie, of no pair, or given twice.
    """
    from easylm_jax.evaluate.preferences.agreement import CHOSEN, REJECTED, UNDECIDED, cohens_kappa

    by_number = {row["number"]: row for row in key}
    said: dict[int, str] = {}
    for row in answers:
        number, answer = row.get("number"), row.get("answer")
        if number not in by_number or answer not in ANSWERS or number in said:
            raise UserError(f"human check: {row} is no answer; give each number of pairs.jsonl once, A, B or tie")
        said[number] = answer
    if not said:
        raise UserError("human check: there is no answer")
    human = [UNDECIDED if said[n] == "tie" else CHOSEN if said[n] == by_number[n]["gold"] else REJECTED for n in said]
    judge = [by_number[n]["judge"] for n in said]
    equal = sum(a == b for a, b in zip(human, judge, strict=True))
    return {
        "n": len(said), "human_gold": sum(human) / 2 / len(said), "judge_gold": sum(judge) / 2 / len(said),
        "human_judge": equal / len(said), "kappa": cohens_kappa(human, judge),
    }  # fmt: skip


def _draw(folder: str, language: str, out: Path, count: int, seed: int) -> None:
    from easylm_jax.evaluate.preferences.analyses import labels_of
    from easylm_jax.evaluate.preferences.items import read_items
    from easylm_jax.evaluate.preferences.run import read_judged, read_scores
    from easylm_jax.runtime.files import write_lines

    files, judged = read_scores(folder).get("files", {}), read_judged(folder)
    if language not in files or language not in judged:
        raise UserError(f"{folder} has no results of {language}; it has {', '.join(judged)}")
    pairs, key = draw(read_items(files[language], language), labels_of(judged[language]), count, seed)
    write_lines(out / "pairs.jsonl", pairs)
    write_lines(out / "key.jsonl", key)
    print(f"{len(pairs)} pairs in {out / 'pairs.jsonl'}; {count} were asked for")


def _score(folder: Path, answers: str) -> None:
    from easylm_jax.evaluate.preferences.tables import grid, number, percent
    from models import reading

    read = [list(reading.read_lines(path, mend="draw again")) for path in (folder / "key.jsonl", Path(answers))]
    found = score(*read)
    row = [str(found["n"]), *(percent(found[name]) for name in ("human_gold", "judge_gold", "human_judge")),
           number(found["kappa"])]  # fmt: skip
    print(grid(["pairs", "human right, %", "judge right, %", "human and judge alike, %", "κ"], [row]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawn = commands.add_parser("draw")
    drawn.add_argument("folder")
    drawn.add_argument("language")
    drawn.add_argument("--out", type=Path, default=Path("human_check"))
    drawn.add_argument("--count", type=int, default=60)
    drawn.add_argument("--seed", type=int, default=0)
    scored = commands.add_parser("score")
    scored.add_argument("folder", type=Path)
    scored.add_argument("answers")
    given = parser.parse_args()
    if given.command == "draw":
        _draw(given.folder, given.language, given.out, given.count, given.seed)
    else:
        _score(given.folder, given.answers)


if __name__ == "__main__":
    main()
