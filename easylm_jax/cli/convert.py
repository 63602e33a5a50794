"""`easylm convert`: converts a Hugging Face folder to a checkpoint, or a checkpoint to a Hugging Face folder."""

from __future__ import annotations

import argparse
import sys

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    """The arguments of `easylm convert`."""
    parser.add_argument(
        "source",
        type=kinds.NAME,
        metavar="FROM",
        help="a Hugging Face model (hf:FOLDER or hf:OWNER/MODEL), or a stage or checkpoint folder",
    )
    parser.add_argument(
        "target", type=kinds.OUTPUT_FOLDER, metavar="TO", help="the folder to write, in the other format"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="name of a preset, if the checkpoint has no model configuration"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="dtype of the written weights (default: unchanged)"
    )
    parser.add_argument(
        "--tokenizer",
        type=kinds.NAME,
        metavar="SPEC",
        help="sp:FILE or hf:FOLDER to export (default: the tokenizer of the checkpoint)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the content of TO")


def main(arguments: argparse.Namespace) -> int:
    """`easylm convert FROM TO`: the direction depends on whether FROM is a checkpoint."""
    from easylm_jax.checkpoint.convert import from_hf, to_hf
    from easylm_jax.checkpoint.load import is_checkpoint
    from models.errors import UserError

    source, target = arguments.source, arguments.target
    warnings = []
    if is_checkpoint(source.removeprefix("run:")):
        warnings = to_hf(
            source,
            target,
            model=arguments.model,
            dtype=arguments.dtype,
            tokenizer=arguments.tokenizer,
            overwrite=arguments.overwrite,
        )
    else:
        if arguments.tokenizer:
            raise UserError("--tokenizer needs a checkpoint as FROM, since checkpoints hold no tokenizer; leave it out")
        from_hf(source, target, dtype=arguments.dtype, overwrite=arguments.overwrite)
    print(f"wrote {target}")
    for warning in warnings:
        print(f"easylm: warning: {warning}", file=sys.stderr)
    return 0
