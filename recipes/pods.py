"""Plans every recipe that names a pod and writes docs/pods.md: `python -m recipes.pods`.

Plans are stored, so that an interrupted run continues and unchanged stages are not compiled again. With names of
recipes, with `--stage` or `--only`, only their rows are replaced and the other rows of the page are kept; with
`--missing`, only what the page has no row for is planned.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from models.errors import UserError
from recipes.__main__ import FOLDER, name_of, recipe_files


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 1: a stage does not fit or cannot be planned; 2: a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m recipes.pods", description=__doc__)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="plan these files alone (default: all)")
    parser.add_argument(
        "--only", choices=("train", "rl", "generate", "all"), default="all",
        help="stages that train on data, reinforcement learning, or best-of-N, votes and evaluations",
    )  # fmt: skip
    parser.add_argument("--stage", metavar="NAME", help="only stages with this name")
    parser.add_argument("--missing", action="store_true", help="of these stages, those that the page has no row for")
    parser.add_argument("--out", default="runs", help="where compiled plans are kept (default: runs)")
    parser.add_argument("--jobs", type=int, default=0, help="stages planned at once (default: by cores and memory)")
    parser.add_argument("--write", default="docs/pods.md", help="the page (default: docs/pods.md)")
    try:
        return _planned(parser.parse_args(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _planned(arguments: argparse.Namespace) -> int:
    if arguments.jobs < 0:
        raise UserError(f"--jobs must be at least 1, not {arguments.jobs}")
    from easylm_jax.plan import topology

    topology.configure_compiler_env()
    from easylm_jax.config.load import load_recipe
    from easylm_jax.experiment import programs_of
    from easylm_jax.plan import pods
    from easylm_jax.plan.report import Planner
    from recipes.durations import DURATIONS

    paths = [Path(one).resolve() for one in arguments.recipes] or recipe_files()
    for path in paths:
        if not path.is_relative_to(FOLDER):
            raise UserError(f"{path} is not a recipe of {FOLDER}; use `easylm plan` for other files")
    chosen = {name_of(path) for path in paths}
    recipes = [(name_of(path), load_recipe(str(path))) for path in recipe_files()]
    kinds = list(pods.KINDS) if arguments.only == "all" else [arguments.only]
    groups = pods.groups(recipes)
    asked = {
        group.key: group for group in groups
        if any(name in chosen and arguments.stage in (None, stage.name) for name, stage in group.members)
        and any(pods.KINDS[kind](group.stage) for kind in kinds)
    }  # fmt: skip
    if not asked:
        raise UserError("none of these recipes names a pod and has such a stage")
    page = Path(arguments.write)
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if arguments.missing:
        with_row = {group.key for group in pods.keep_rows(list(asked.values()), text, arguments.write)}
        asked = {key: group for key, group in asked.items() if key not in with_row}
        if not asked:
            print(f"{page} has a row for each of these stages")
            return 0
    rest = [group for group in groups if group.key not in asked]
    kept = pods.keep_rows(rest, text, arguments.write) if rest else []
    planned = list(asked.values())
    planned[0].topology.devices()  # reports a missing compiler once, not for every group
    say = functools.partial(print, file=sys.stderr, flush=True)
    pods.plan(planned, Planner(programs_of, Path(arguments.out) / "plans", say), arguments.jobs or pods.default_jobs())
    shown = [group for group in groups if group.key in asked or group.kept_cells or group.error]
    missing = [group for group in rest if not group.kept_cells and not group.error]
    page.write_text(pods.page(shown, DURATIONS, "make plan-all", missing), encoding="utf-8")
    said = f"{page}: {len(planned)} different stages planned, {sum(group.fits for group in planned)} fit"
    if rest:
        said += f"; {len(kept)} of {len(rest)} other rows stay as they were"
    print(said + (", the rest are missing: plan all" if len(kept) < len(rest) else ""))
    return 0 if all(group.fits for group in shown) else 1


if __name__ == "__main__":
    sys.exit(main())
