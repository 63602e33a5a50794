"""The paper's tables and figures from the results of several judges (arXiv 2410.15522).

easylm eval hf:MODEL_A --suite m_rewardbench --data FOLDER --out runs
easylm eval hf:MODEL_B --suite m_rewardbench --data FOLDER --out runs
python -m recipes.m_rewardbench.figures runs/eval-m_rewardbench-* --out m_rewardbench.html

`--poorer` names results of the same judges on a poorer translation of the bench, for Figure 5 (quality of the
translation); with sacrebleu installed, accuracy by the quality of each prompt too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easylm_jax.evaluate.preferences.items import read_items
from easylm_jax.evaluate.preferences.languages import LANGUAGES
from models.errors import UserError
from recipes.m_rewardbench import charts, published


def page(
    folders: Sequence[str | Path], models: Mapping[str, Mapping[str, Any]], poorer: Sequence[str | Path] = ()
) -> str:  # fmt: skip
    """The figures of several judges as one page; `poorer` are folders of results on a poorer translation.

    Raises:
        UserError: a judge of `poorer` is not among the others.
    """
    from easylm_jax.evaluate.preferences.run import read_judged
    from easylm_jax.evaluate.preferences.tables import heat_map

    records = {name: read_judged(folder) for name, folder in zip(models, folders, strict=True)}
    return heat_map(models, more=[*charts.sections(models, records), *_qualities(models, poorer)])


def _qualities(models: Mapping[str, Mapping[str, Any]], poorer: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Figure 5, of the judges that have been asked in both translations."""
    from easylm_jax.evaluate.preferences.run import named, read_judged, read_scores

    better = {named(found): (name, found) for name, found in models.items()}
    pairs, results, texts = {}, {}, dict[str, dict[tuple[str, str], tuple[str, str]]]()
    for folder in poorer:
        worse = read_scores(folder)
        if named(worse) not in better:
            raise UserError(f"--poorer {folder}: there are no results of {named(worse)} on the better translation")
        name, found = better[named(worse)]
        pairs[name] = (worse, found)
        results[name] = {
            code: {(str(row["id"]), row["subset"]): row["result"] for row in rows}
            for code, rows in read_judged(folder).items() if code in LANGUAGES
        }  # fmt: skip
        texts = texts or _texts(worse.get("files", {}), found.get("files", {}))
    return charts.qualities(pairs, texts, results)


def _texts(worse: Mapping[str, str], better: Mapping[str, str]) -> dict[str, dict[tuple[str, str], tuple[str, str]]]:
    """By language and item, the prompt in both translations; nothing where sacrebleu or a file is not there."""
    found: dict[str, dict[tuple[str, str], tuple[str, str]]] = {}
    if importlib.util.find_spec("sacrebleu") is None:
        return found
    for code in LANGUAGES:
        if code in worse and code in better and Path(worse[code]).exists() and Path(better[code]).exists():
            sides = [
                {(item.id, item.subset): str(item.prompt[-1]["content"]) for item in read_items(files[code], code)}
                for files in (worse, better)
            ]
            found[code] = {key: (text, sides[1][key]) for key, text in sides[0].items() if key in sides[1]}
    return found


def compare(folders: Sequence[str | Path]) -> tuple[dict[str, Mapping[str, Any]], str]:
    """The results by judge, in the order of the folders, and their tables as Markdown: averages, drops by section,
    correlations, agreement between judges and with English.

    Raises:
        UserError: two folders are of one judge.
    """
    from easylm_jax.evaluate.preferences.analyses import across_models, between
    from easylm_jax.evaluate.preferences.run import named, read_judged, read_scores
    from easylm_jax.evaluate.preferences.sections import SECTIONS
    from easylm_jax.evaluate.preferences.tables import agreement, grid, number, percent

    scores = [read_scores(folder) for folder in folders]
    names = _short([named(found) for found in scores])
    read = list(zip(names, scores, strict=True))
    models = dict(read)
    if len(models) < len(read):
        raise UserError(f"the folders hold {len(models)} judges: {', '.join(models)}; name each one once")
    value = lambda x: float("nan") if x is None else x  # noqa: E731 - null is NaN
    rows, drops = [], []
    for name, found in sorted(models.items()):
        rows.append([name, found["kind"], percent(value(found.get("english"))), percent(value(found["average"])),
                     percent(value(found["deviation"])), number(value(found.get("kappa_mean")))])  # fmt: skip
        changes = list(found.get("drop", {}).values())
        means = [
            sum(each["sections"].get(section, 0.0) for each in changes) / len(changes) if changes else float("nan")
            for section in SECTIONS
        ]
        drops.append([name, *map(percent, means)])
    english = {name: value(found.get("english")) for name, found in models.items()}
    both = across_models({name: value(found["average"]) for name, found in models.items()}, english)
    theirs = published.CORRELATION
    pairs = between({name: read_judged(folder) for (name, _), folder in zip(read, folders, strict=True)})
    text = "\n\n".join((
        grid(["judge", "kind", "English", "average", "deviation", "κ with English"], rows),
        grid(["drop from English, points", *SECTIONS], drops),
        f"English against the average over {both['models']} judges: Pearson {number(both['pearson'])} (published "
        f"{theirs['pearson']}), Spearman {number(both['spearman'])} (published {theirs['spearman']}).",
        *([agreement(pairs)] if pairs else []),
        grid(["published judge", "κ", "±"], [[n, f"{a:.3f}", f"{b:.3f}"] for n, (a, b) in published.KAPPA.items()]),
    ))  # fmt: skip
    return models, text + "\n"


def _short(names: Sequence[str]) -> list[str]:
    """Names without the folder that all share."""
    shared = os.path.commonprefix(list(names)) if len(names) > 1 else ""
    shared = shared[: shared.rfind("/") + 1]
    return [name.replace(shared, "") if shared else name for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--poorer", nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--out", default="m_rewardbench.html")
    arguments = parser.parse_args()
    models, text = compare(arguments.folders)
    print(text)
    Path(arguments.out).write_text(page(arguments.folders, models, arguments.poorer), encoding="utf-8")


if __name__ == "__main__":
    main()
