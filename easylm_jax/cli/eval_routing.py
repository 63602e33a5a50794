"""`easylm eval --routing RUN --steps all`: what the experts of a mixture do, over the checkpoints of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from easylm_jax.cli import arguments as kinds
from models.errors import UserError

C4 = "C4=hf:allenai/c4:validation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of routing analyses."""
    group = parser.add_argument_group("routing of a mixture of experts (docs/routing.md)")
    group.add_argument(
        "--routing", type=kinds.INPUT_FOLDER, metavar="RUN",
        help="analyse the routing of a stage's checkpoints, or of a folder of counts as OLMoE published them",
    )  # fmt: skip
    group.add_argument(
        "--texts", type=kinds.NAME, metavar="NAME=FILE", action="append", default=[],
        help="held-out text, by domain; the first is that of most tables (default: the validation set of C4)",
    )  # fmt: skip
    group.add_argument(
        "--tokens", type=kinds.COUNT, metavar="N", default=204_800, help="tokens of each text (default: 204800)"
    )
    group.add_argument(
        "--active", type=kinds.COUNT, metavar="K",
        help="experts of a token, for a folder of counts without those of first choices",
    )  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    """Analyses, prints the tables, and writes routing.json and routing.html."""
    from easylm_jax.evaluate import routing_page, routing_published

    folder = Path(arguments.routing)
    out = Path(arguments.out) / f"routing-{folder.resolve().name}"
    if routing_published.has_counts(folder):
        if arguments.steps or arguments.texts:
            raise UserError(f"{folder} has counts, not checkpoints; --steps and --texts are for those of a stage")
        result = routing_published.analyse(folder, arguments.active)
        routing_page.write(out, result)
    elif arguments.active is not None:
        raise UserError(f"--active is for a folder of counts; {folder} has no expert_counts")
    else:
        result = _of_run(arguments, out)
    print(f"{routing_page.text(result)}\n\n{out / 'routing.html'}")
    if arguments.json:
        path = Path(arguments.json)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; give another file with --json") from error
    return 0


def _of_run(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Reads the texts with every checkpoint."""
    from easylm_jax.config import Source
    from easylm_jax.evaluate import routing_run

    sources = {}
    for text in arguments.texts or [C4]:
        name, _, path = text.partition("=")
        if not (name and path):
            raise UserError(f"--texts {text!r} must read NAME=FILE")
        if name in sources:
            raise UserError(f"--texts names {name!r} twice")
        plain = path.endswith((".txt", ".txt.gz", ".txt.zst"))
        subset = "en" if path == C4.partition("=")[2] else None
        sources[name] = Source(path, text_unit="paragraph" if plain else "file", subset=subset, streaming=bool(subset))
    return routing_run.analyse(
        arguments.routing, arguments.steps or "all", sources, arguments.tokens, out, Path(arguments.out) / "cache"
    )
