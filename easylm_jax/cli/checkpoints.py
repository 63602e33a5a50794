"""`easylm checkpoints`: list, verify, average, prune and compare the checkpoints of a stage."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from easylm_jax.cli import arguments as kinds
from models.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `easylm checkpoints` to a parser; `main` takes what it parsed."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str, example: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=text, epilog=f"example: easylm checkpoints {example}")
        added.add_argument(
            "--json", type=kinds.OUTPUT_FILE, metavar="FILE", help="also write the result as JSON to FILE"
        )
        return added

    stage = "runs/quickstart/pretrain"
    listing = action("list", "list a stage's checkpoints", f"list {stage}")
    listing.add_argument("folder", type=kinds.INPUT_FOLDER, help="a stage's folder, or the folder of an average")
    checking = action("verify", "compare all files with their checksums", f"verify {stage}")
    checking.add_argument("folder", type=kinds.INPUT_FOLDER, help="a stage's folder or a step folder")
    text = "average the parameters of several checkpoints"
    soup = action("average", text, f"average {stage} runs/b/pretrain --out soup")
    soup.add_argument(
        "folders", type=kinds.INPUT_FOLDER, nargs="+", help="step folders, or stages' folders (their latest step)"
    )
    soup.add_argument("--out", type=kinds.OUTPUT_FOLDER, required=True, help="the folder to create")
    text = "delete old checkpoints; named ones and the history are kept"
    pruning = action("prune", text, f"prune {stage} --latest 2 --dry-run")
    pruning.add_argument("folder", type=kinds.INPUT_FOLDER, help="a stage's folder")
    pruning.add_argument(
        "--latest", type=kinds.COUNT, help="how many of the newest to keep (default: as the stage is set)"
    )
    pruning.add_argument(
        "--every", type=kinds.COUNT, help="also keep steps divisible by this (default: as the stage is set)"
    )
    pruning.add_argument("--dry-run", action="store_true", help="print what would be deleted, delete nothing")
    differing = action(
        "diff",
        "compare two checkpoints bit for bit; exit status 1 when they differ",
        f"diff {stage} runs/b/pretrain --json diff.json",
    )
    differing.add_argument("a", type=kinds.INPUT_FOLDER, help="a step folder or a stage's folder (its latest step)")
    differing.add_argument("b", type=kinds.INPUT_FOLDER, help="the step folder or stage's folder to compare with")


def main(args: argparse.Namespace) -> int:
    """`easylm checkpoints`: runs one action. Exit status 1 if `diff` finds a difference or `verify` a fault, else 0."""
    status, result, lines = _ACTIONS[args.action](args)
    print("\n".join(lines))
    if args.json:
        try:
            pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {args.json}: {error.strerror}; give another file with --json") from error
    return status


def _list(args: argparse.Namespace) -> tuple[int, Any, list[str]]:
    from easylm_jax.checkpoint.tools import list_checkpoints

    entries = list_checkpoints(args.folder)
    lines = [f"{'step':>10}  {'kind':<7}  {'size':>9}  {'age':>8}  {'revision':<32}  name"]
    for e in entries:
        size, age = "" if e.bytes is None else _size(e.bytes), "" if e.age is None else _age(e.age)
        facts = f"{e.step:>10}  {e.kind:<7}  {size:>9}  {age:>8}"
        lines.append(f"{facts}  {e.revision or '':<32}  {e.name or ''}".rstrip())
    return 0, {"checkpoints": [e.__dict__ for e in entries]}, lines if entries else ["no checkpoints"]


def _verify(args: argparse.Namespace) -> tuple[int, Any, list[str]]:
    from easylm_jax.checkpoint.tools import verify

    found = verify(args.folder)
    lines = [f"{folder}: {'; '.join(faults) if faults else 'intact'}" for folder, faults in found.items()]
    return int(any(found.values())), {"whole": not any(found.values()), "faults": found}, lines


def _average(args: argparse.Namespace) -> tuple[int, Any, list[str]]:
    from easylm_jax.checkpoint.tools import average

    out = average(args.folders, args.out)
    return 0, {"out": out, "count": len(args.folders)}, [f"average of {len(args.folders)} checkpoints: {out}"]


def _prune(args: argparse.Namespace) -> tuple[int, Any, list[str]]:
    from easylm_jax.checkpoint.tools import prune, stage_retention

    given = {name: value for name, value in (("latest", args.latest), ("keep_every", args.every)) if value is not None}
    gone = prune(args.folder, dataclasses.replace(stage_retention(args.folder), **given), args.dry_run)
    verb = "would delete" if args.dry_run else "deleted"
    return 0, {"deleted": gone, "dry_run": args.dry_run}, [f"{verb} {path}" for path in gone] or ["nothing to delete"]


def _diff(args: argparse.Namespace) -> tuple[int, Any, list[str]]:
    from easylm_jax.checkpoint.tools import diff

    found = diff(args.a, args.b)
    lines = (
        ["identical"]
        if found.identical
        else [
            name + (f"  max abs difference {gap:.3g}" if (gap := found.max_abs_diff.get(name)) is not None else "")
            for name in found.differ
        ]
    )
    return int(not found.identical), found.__dict__, lines


_ACTIONS = {"list": _list, "verify": _verify, "average": _average, "prune": _prune, "diff": _diff}


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
