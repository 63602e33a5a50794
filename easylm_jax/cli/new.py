"""`easylm new KIND`: prints a recipe that runs as it is on a JSONL file of the user's."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from easylm_jax.cli import arguments as kinds
from models.errors import UserError

EXAMPLES = {"model": "hf:allenai/OLMo-2-0425-1B", "data": "data.jsonl"}
SMALL = 100_000_000  # parameters
DEFAULT_TEMPLATE = "tulu"
# Chat templates by what the name of a model contains; a Tülu model is also a Llama.
TEMPLATES = {"tulu": "tulu", "olmo": "olmo", "qwen": "qwen", "llama-3": "llama3", "llama3": "llama3"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm new`."""
    from easylm_jax.config.starters import KINDS

    described = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
    parser.add_argument("kind", metavar="KIND", choices=tuple(KINDS), help=described)
    parser.add_argument(
        "--model",
        type=kinds.NAME,
        metavar="MODEL",
        required=True,
        help="a stage's folder, or hf:FOLDER (or hf:OWNER/NAME on the hub)",
    )
    parser.add_argument(
        "--data", type=kinds.NAME, metavar="FILE", required=True,
        help="JSON lines: conversations for sft, pairs for dpo and reward, prompts for grpo and eval, either for ppo",
    )  # fmt: skip
    parser.add_argument(
        "--fields", metavar="ROLE=COLUMN,...", help="columns of the data, such as user=question,assistant=answer"
    )
    parser.add_argument(
        "--template", metavar="NAME", help="chat template (default: the one that the model was trained with, or tulu)"
    )
    parser.add_argument(
        "--tokenizer", type=kinds.NAME, metavar="SPEC", help="sp:FILE or hf:FOLDER (default: the model's own)"
    )
    parser.add_argument(
        "--out",
        type=kinds.OUTPUT_FILE,
        metavar="FILE",
        help="write the recipe to FILE, which must not exist, and not print it",
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm new`: looks at the model and the data, and prints or writes a recipe with sizes that suit both."""
    from easylm_jax.config.starters import text_of

    out = None if arguments.out is None else _checked_out(Path(arguments.out))
    text = text_of(_start(arguments, out))
    if out is None:
        print(text, end="")
        return 0
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another file with --out") from None
    print(f"wrote {out}; run it with: easylm run {out}")
    return 0


def _checked_out(out: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z_][\w-]*\.py", out.name):
        raise UserError(f"--out {out}: give a Python file with a name of letters, digits, _ and -, such as my_run.py")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists; give another file with --out")
    return out


def _start(arguments: argparse.Namespace, out: Path | None) -> Any:
    """What the recipe is written for: the model, the data and what was found in them."""
    from easylm_jax.config.data import Source
    from easylm_jax.config.starters import Start
    from easylm_jax.data import survey

    kind = arguments.kind
    source = Source(arguments.data, fields=_fields(arguments.fields))
    if source.named:
        raise UserError(f"--data {arguments.data}: give a file; afterwards put the name of the set into the recipe")
    record = survey.first_record(source)
    pairs = "chosen" in record and "rejected" in record
    if kind == "sft" and source.fields is None:
        source = Source(arguments.data, fields=survey.chat_fields(record))
    model = _model(arguments)
    as_pairs = kind in ("dpo", "reward") or (kind == "ppo" and pairs)
    read_as = "chat" if kind == "sft" else "preference" if as_pairs else "prompts"
    loaded = model.pop("loaded")
    found = survey.survey(source, read_as, model["template"], loaded)
    prompts = survey.survey(source, "prompts", model["template"], loaded) if kind == "ppo" and pairs else None
    return Start(
        kind=kind,
        name="my-" + kind if out is None else out.stem.replace("_", "-"),
        file="FILE" if out is None else str(out),
        data=arguments.data,
        rows=found.rows,
        longest=found.longest,
        measured=found.measured,
        fields=source.columns or None,
        pairs=as_pairs,
        longest_prompt=None if prompts is None else prompts.longest,
        label=survey.label_column(record, source),
        **model,
    )


def _fields(text: str | None) -> tuple[tuple[str, str], ...] | None:
    if text is None:
        return None
    pairs = tuple((role, column) for role, _, column in (pair.partition("=") for pair in text.split(",")))
    if not all(role and column for role, column in pairs):
        raise UserError(f"--fields {text!r} must read role=column,role=column")
    return pairs


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of the model: name, tokenizer (also loaded, None where it is not here), template, context and whether it is
    small."""
    from easylm_jax.checkpoint import hub, load
    from easylm_jax.data import load_tokenizer
    from models.flops import matmul_parameters
    from models.hf.convert import read_config

    name = arguments.model
    folder = Path(name.removeprefix("hf:"))
    config, template, tokenizer = None, None, arguments.tokenizer
    if name.startswith("hf:") or (not load.is_checkpoint(name) and (folder / "config.json").is_file()):
        if not folder.is_dir() and not hub.is_name(str(folder)):
            raise UserError(f"no model {name}; give a stage's folder, hf:FOLDER or hf:OWNER/NAME")
        model, tokenizer = f"hf:{folder}", tokenizer or f"hf:{folder}"
        config = read_config(folder) if folder.is_dir() else None
    else:
        _, meta, known = load.resolve_model(name.removeprefix("run:"))
        model, tokenizer = f"run:{name.removeprefix('run:')}", tokenizer or known
        config = load.model_of(name.removeprefix("run:"))
        template = ((meta.get("config") or {}).get("data") or {}).get("template")
    if not tokenizer:
        raise UserError(f"the tokenizer of {name} is not known; give it with --tokenizer, such as sp:FILE or hf:FOLDER")
    try:
        loaded = load_tokenizer(tokenizer)
    except UserError as error:
        if arguments.tokenizer or not hub.is_name(tokenizer.removeprefix("hf:")):
            raise
        print(f"[new] lengths are estimated, since the tokenizer cannot be read: {error}", file=sys.stderr)
        loaded = None
    return {
        "model": model,
        "tokenizer": tokenizer,
        "loaded": loaded,
        "template": arguments.template or template or _template_for(model, loaded),
        "context": None if config is None else config.context,
        "small": config is not None and matmul_parameters(config) < SMALL,
    }


def _template_for(model: str, tokenizer: Any) -> str:
    """The chat template of a model that does not say which: by its name, else by the tokens of its vocabulary."""
    by_name = next((template for part, template in TEMPLATES.items() if part in model.lower()), None)
    if by_name is not None and model.startswith("hf:"):
        return by_name
    if tokenizer is not None and tokenizer.special("<|im_start|>") is not None:
        return "chatml"
    return DEFAULT_TEMPLATE
