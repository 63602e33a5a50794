"""The paper's tables and figures from the results of several judges (arXiv 2410.15522, Figures 1 to 6).

easylm eval hf:MODEL_A --suite m_rewardbench --data FOLDER --out runs
easylm eval hf:MODEL_B --suite m_rewardbench --data FOLDER --out runs
python -m recipes.m_rewardbench.figures runs/eval-m_rewardbench-* --out m_rewardbench.html
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import UserError
from recipes.m_rewardbench import charts, published


def items(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The judged items of a folder by language."""
    from models import reading

    files = sorted(Path(folder).glob("items.*.jsonl"))
    return {file.name.split(".")[1]: list(reading.read_lines(file, mend="judge the bench again")) for file in files}


def page(folders: Sequence[str | Path], models: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of several judges as one page."""
    from easylm_jax.evaluate.preferences.tables import heat_map

    records = {name: items(folder) for name, folder in zip(models, folders, strict=True)}
    return heat_map(models, more=charts.sections(models, records))


def compare(folders: Sequence[str | Path]) -> tuple[dict[str, Mapping[str, Any]], str]:
    """The results by judge, in the order of the folders, and their tables as Markdown: averages, drops by section,
    agreement, correlations.

    Raises:
        UserError: two folders are of one judge.
    """
    from easylm_jax.evaluate.preferences.analyses import across_models
    from easylm_jax.evaluate.preferences.run import read_scores
    from easylm_jax.evaluate.preferences.sections import SECTIONS
    from easylm_jax.evaluate.preferences.tables import grid, number, percent

    read = [(_name(found), found) for found in map(read_scores, folders)]
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
    text = "\n\n".join((
        grid(["judge", "kind", "English", "average", "deviation", "κ with English"], rows),
        grid(["drop from English, points", *SECTIONS], drops),
        f"English against the average over {both['models']} judges: Pearson {number(both['pearson'])} (published "
        f"{theirs['pearson']}), Spearman {number(both['spearman'])} (published {theirs['spearman']}).",
        grid(["published judge", "κ", "±"], [[n, f"{a:.3f}", f"{b:.3f}"] for n, (a, b) in published.KAPPA.items()]),
    ))  # fmt: skip
    return models, text + "\n"


def _name(found: Mapping[str, Any]) -> str:
    """The model, with its reference where there is one."""
    reference = (found.get("settings") or {}).get("reference")
    return str(found["model"]) + (f" against {reference}" if reference else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--out", default="m_rewardbench.html")
    arguments = parser.parse_args()
    models, text = compare(arguments.folders)
    print(text)
    Path(arguments.out).write_text(page(arguments.folders, models), encoding="utf-8")


if __name__ == "__main__":
    main()
