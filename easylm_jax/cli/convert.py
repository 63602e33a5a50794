"""`easylm convert`: a Hugging Face folder to a checkpoint, or a checkpoint to a Hugging Face folder."""

from __future__ import annotations

import argparse

from easylm_jax.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    """The arguments of `easylm convert`."""
    parser.add_argument(
        "source",
        metavar="FROM",
        help="a Hugging Face folder or hub name (hf:OWNER/MODEL), or a stage or checkpoint folder",
    )
    parser.add_argument("target", metavar="TO", help="the folder to write, in the other form")
    parser.add_argument("--model", metavar="NAME", help="a preset's name, where the checkpoint does not say its model")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of the weights written (default: as they are)"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="copy the tokenizer's files from here to a Hugging Face folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what TO holds")


def main(arguments: argparse.Namespace) -> int:
    """`easylm convert FROM TO`: which way follows from what FROM is."""
    from easylm_jax.checkpoint.convert import from_hf, to_hf
    from easylm_jax.checkpoint.load import is_checkpoint
    from models.errors import UserError

    source, target = arguments.source, arguments.target
    if is_checkpoint(source):
        to_hf(
            source,
            target,
            model=arguments.model,
            dtype=arguments.dtype,
            tokenizer=arguments.tokenizer,
            overwrite=arguments.overwrite,
        )
    else:
        if arguments.tokenizer:
            raise UserError("--tokenizer goes with a checkpoint as FROM; a checkpoint as TO holds no tokenizer")
        from_hf(source, target, dtype=arguments.dtype, overwrite=arguments.overwrite)
    print(f"wrote {target}")
    return 0
