"""`easylm fields [NAME]`: the fields of a stage, or of another part of a recipe, with type, default and meaning."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm fields`."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?",
        help="a class such as GRPO, or a field with fields of its own such as GRPO.optimizer (default: a list)",
    )  # fmt: skip
    parser.add_argument("--page", action="store_true", help="print all classes as the Markdown page docs/fields.md")


def main(arguments: argparse.Namespace) -> int:
    """`easylm fields`: prints the reference of a class, the list of classes, or the page of all."""
    from easylm_jax.config import reference

    if arguments.page:
        print(reference.page(), end="")
    elif arguments.name is not None:
        print(reference.text(reference.find(arguments.name)))
    else:
        known = reference.classes()
        width = max(map(len, known))
        for name, cls in known.items():
            print(f"{name:<{width}}  {_first_paragraph(reference.summary(cls))}")
    return 0


def _first_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())
