"""`easylm data build|merge|inspect|stats|tokenizer` and curation. Heavy modules are imported only in subcommands."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli import data_curation

if TYPE_CHECKING:
    from easylm_jax.config import Train
    from easylm_jax.config.data import DataSpec, Source

_EXAMPLES = {
    "build": "easylm data build a.jsonl --kind chat --template tulu --tokenizer sp:t.model --length 2048 --out cache",
    "merge": "easylm data merge cache",
    "inspect": "easylm data inspect cache --rows 2",
    "stats": "easylm data stats cache --json stats.json",
    "tokenizer": "easylm data tokenizer texts.jsonl --vocab 8192 --out tok",
    **data_curation.EXAMPLES,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm data` and its subcommands."""
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    helps = {
        "build": "build a packed cache from sources or a specification, or all caches of a recipe (RECIPE.py)",
        "merge": "merge the parts of caches that `data build --shard I/N` made",
        "inspect": "print packed rows as text, with the tokens that are trained on marked",
        "stats": "print the statistics of a cache, or of files of rows",
        "tokenizer": "train a SentencePiece vocabulary on the sources",
        **data_curation.HELPS,
    }
    parsers = {}
    for name, text in helps.items():
        parsers[name] = commands.add_parser(name, help=text, epilog=f"example: {_EXAMPLES[name]}")
        parsers[name].set_defaults(run=globals().get(name) or _curate(getattr(data_curation, name)))
    _add_build(parsers["build"])
    parsers["build"].add_argument(
        "--shard",
        type=kinds.PART,
        metavar="I/N",
        help="encode only part I of N (from 0 to N-1, or from 1 to N); `easylm data merge` joins all parts",
    )
    _add_build(parsers["merge"])
    inspecting = parsers["inspect"]
    inspecting.add_argument("cache", type=kinds.INPUT_FOLDER, help="a cache folder")
    inspecting.add_argument("--rows", type=kinds.COUNT, default=3, help="number of rows (default: 3)")
    inspecting.add_argument("--start", type=kinds.NATURAL, default=0, help="first row (default: 0)")
    inspecting.add_argument("--tokenizer", type=kinds.NAME, help="the tokenizer, if it was moved since the build")
    inspecting.add_argument("--ids", action="store_true", help="print the token ids too")
    parsers["stats"].add_argument("paths", type=kinds.NAME, nargs="+", help="a cache folder, or files of rows")
    parsers["stats"].add_argument("--verify", action="store_true", help="compare all files with their checksums")
    training = parsers["tokenizer"]
    _add_sources(training)
    training.add_argument("--vocab", type=kinds.COUNT, required=True, help="number of pieces, including 256 bytes")
    training.add_argument("--symbols", type=kinds.ANY, default="", help="control tokens to add, comma-separated")
    training.add_argument("--out", type=kinds.OUTPUT_FOLDER, required=True, help="folder for tokenizer.model")
    data_curation.add_arguments(parsers)
    for command in parsers.values():
        command.add_argument("--json", type=kinds.OUTPUT_FILE, metavar="FILE", help="write the result as JSON")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", type=kinds.NAME, nargs="*", help="files, globs, folders, hf:NAME, tfds:NAME, seqio:NAME"
    )
    parser.add_argument("--fields", help="columns of the turns, such as user=question,assistant=answer")
    parser.add_argument("--format", choices=("hh",), help="chosen and rejected are Human/Assistant transcripts")
    parser.add_argument("--text-field", default="text", help="column of plain text (default: text)")
    parser.add_argument(
        "--text-unit",
        default="file",
        choices=("file", "line", "paragraph"),
        help="what one document is in a .txt file (default: file)",
    )
    parser.add_argument(
        "--skip", type=kinds.NATURAL, metavar="N", default=0, help="skip the first N records of each source"
    )
    parser.add_argument("--limit", type=kinds.COUNT, metavar="N", help="read at most N records of each source")


def _add_build(parser: argparse.ArgumentParser) -> None:
    _add_sources(parser)
    parser.add_argument(
        "--spec", type=kinds.INPUT_FILE, metavar="FILE", help="a DataSpec as JSON, instead of sources and options"
    )
    parser.add_argument(
        "--out",
        type=kinds.OUTPUT_FOLDER,
        help="folder for caches, each named by its key (with a recipe: the runs folder)",
    )
    parser.add_argument("--weights", help="sampling rates of the sources, comma-separated")
    parser.add_argument("--tokenizer", type=kinds.NAME, help="sp:FILE, hf:FOLDER or hf:OWNER/NAME")
    parser.add_argument("--length", type=kinds.LENGTH, help="tokens per row")
    parser.add_argument("--kind", default="text", choices=("text", "chat", "preference", "prompts", "tokens"))
    parser.add_argument(
        "--template", help="tulu, olmo, tulu25, llama3, llama31, qwen, qwen_math, chatml, think, r1 or plain"
    )
    parser.add_argument(
        "--packing",
        choices=("concat", "best_fit", "none", "files"),
        help="default: concat for text, best_fit for chats and pairs, files for shards of tokens",
    )
    parser.add_argument("--overlong", choices=("truncate", "drop", "error"), help="default: truncate; drop for prompts")
    parser.add_argument(
        "--max-side-length", type=kinds.COUNT, help="maximum tokens of one side of a pair (default: half of --length)"
    )
    parser.add_argument("--max-pairs-per-row", type=kinds.COUNT, help="maximum number of pairs in a row")
    parser.add_argument("--keep", help="columns to keep with each prompt, comma-separated (default: all)")
    parser.add_argument("--train-on", default="assistant", choices=("assistant", "last_assistant", "all"))
    parser.add_argument("--no-document-mask", action="store_true", help="let documents in a row attend to each other")
    parser.add_argument("--repetition-filter", action="store_true", help="drop text that repeats a short unit")
    parser.add_argument(
        "--temperature", type=kinds.POSITIVE, help="temperature T of the mixture: rates are sizes to the power 1/T"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="skip and count bad records instead of stopping at the first"
    )
    parser.add_argument("--base", type=kinds.NAME, help="where the files of a list of shards lie, such as gs://bucket")
    parser.add_argument("--order", choices=("olmo",), help="the order in which OLMo's trainer reads shards")
    parser.add_argument("--seed", type=kinds.SEED, default=42, help="seed of resampling (default: 42)")


def main(arguments: argparse.Namespace) -> int:
    """`easylm data`: runs the chosen subcommand; returns exit status 0, errors are raised."""
    arguments.run(arguments)
    return 0


def _curate(command: Callable[[argparse.Namespace], Any]) -> Callable[[argparse.Namespace], None]:
    """A curation command, whose result is written as JSON if asked for."""
    return lambda arguments: _write_json(arguments.json, command(arguments))


def _sources(arguments: argparse.Namespace) -> tuple[Source, ...]:
    from easylm_jax.config.data import Source
    from models.errors import UserError

    if not arguments.sources:
        raise UserError("data: name at least one source")
    fields = None
    if arguments.fields:
        pairs = [pair.partition("=")[::2] for pair in arguments.fields.split(",")]
        if not all(role and column for role, column in pairs):
            raise UserError(f"data: --fields {arguments.fields!r} must read role=column,role=column")
        fields = tuple(pairs)
    weights = getattr(arguments, "weights", None)
    rates: list[float | None] = [None] * len(arguments.sources)
    if weights:
        try:
            rates = [float(text) for text in weights.split(",")]
        except ValueError:
            raise UserError(f"data: --weights {weights!r} must be numbers separated by commas") from None
        if len(rates) != len(arguments.sources):
            raise UserError(f"data: {len(rates)} weights for {len(arguments.sources)} sources; give one per source")
    common = {"fields": fields, "text_field": arguments.text_field, "text_unit": arguments.text_unit}
    common |= {"skip": arguments.skip, "limit": arguments.limit, "format": arguments.format}
    common |= {"base": getattr(arguments, "base", None)}
    return tuple(Source(path, rate, **common) for path, rate in zip(arguments.sources, rates, strict=True))


def _spec(arguments: argparse.Namespace) -> DataSpec:
    from easylm_jax.config.data import DataSpec
    from models import reading
    from models.errors import UserError

    if arguments.spec:
        if arguments.sources:
            raise UserError("data: give sources or --spec, not both")
        try:
            return DataSpec.from_dict(reading.read_json(Path(arguments.spec), mend="correct it"))
        except reading.Damaged as error:
            raise UserError(f"data: cannot read the specification {arguments.spec}: {error.why}") from None
    for option in ("tokenizer", "length"):
        if getattr(arguments, option) is None:
            raise UserError(f"data: build needs --{option} (or --spec)")
    return DataSpec(
        sources=_sources(arguments),
        tokenizer=arguments.tokenizer,
        sequence_length=arguments.length,
        kind=arguments.kind,
        template=arguments.template,
        packing=arguments.packing or ("best_fit" if arguments.kind == "chat" else None),
        document_mask=not arguments.no_document_mask,
        overlong=arguments.overlong,
        train_on=arguments.train_on,
        repetition_filter=arguments.repetition_filter,
        temperature=arguments.temperature,
        on_bad="skip" if arguments.skip_bad else "error",
        seed=arguments.seed,
        max_side_length=arguments.max_side_length,
        max_pairs_per_row=arguments.max_pairs_per_row,
        keep=tuple(arguments.keep.split(",")) if arguments.keep else None,
        order=arguments.order,
    )


def build(arguments: argparse.Namespace) -> None:
    """`easylm data build`: builds the cache, unless it exists, and prints its folder and statistics."""
    from easylm_jax.data.build import build_cache, shown_progress
    from easylm_jax.data.inspection import summary
    from models.errors import UserError

    if arguments.sources and _is_recipe(arguments.sources[0]):
        _build_recipe(arguments)
        return
    if arguments.out is None:
        raise UserError("data: build needs --out, the folder for caches")
    with shown_progress("data", enabled=True) as progress:  # this command need not start JAX
        if arguments.shard is not None:
            _build_part(arguments, _spec(arguments), arguments.out, progress)
            return
        cache = build_cache(_spec(arguments), arguments.out, progress)
    print(summary(cache))
    _write_json(arguments.json, {"folder": str(cache.folder), **cache.manifest})


def _build_part(arguments: argparse.Namespace, spec: DataSpec, folder: Any, progress: Any) -> None:
    """Builds one part of a cache and prints where it is."""
    from easylm_jax.data.cache import Cache
    from easylm_jax.data.fill import Share
    from easylm_jax.data.parts import build_part

    made = build_part(spec, folder, Share(*arguments.shard), progress)
    if isinstance(made, Cache):
        print(f"cache       {made.folder} exists already")
        _write_json(arguments.json, {"folder": str(made.folder)})
        return
    print(f"part        {made}\nwhen all are there: easylm data merge {folder}")
    _write_json(arguments.json, {"part": str(made)})


def merge(arguments: argparse.Namespace) -> None:
    """`easylm data merge`: merges the parts of caches and prints the caches' folders and statistics."""
    from easylm_jax.data.build import shown_progress
    from easylm_jax.data.inspection import summary
    from easylm_jax.data.parts import merge as merge_parts
    from models.errors import UserError

    sources = arguments.sources
    folder, spec = arguments.out, None
    if len(sources) == 1 and any(Path(sources[0]).glob(".parts-*")):
        folder = sources[0]
    elif sources and _is_recipe(sources[0]):
        folder = Path(arguments.out or "runs") / "cache"
    elif folder is None:
        where = f" {sources[0]} has none;" if sources else ""
        raise UserError(f"data: merge needs the folder in which parts were built;{where} give it, or --out")
    elif sources or arguments.spec:
        spec = _spec(arguments)
    with shown_progress("data", enabled=True) as progress:
        caches = merge_parts(folder, spec, progress)
    print("\n\n".join(summary(cache) for cache in caches))
    _write_json(arguments.json, {"folders": [str(cache.folder) for cache in caches]})


def _is_recipe(source: str) -> bool:
    """Whether a source of `build` is a recipe: a Python file, or the name of an installed one where no file is."""
    from easylm_jax.config.catalog import installed_recipes

    return source.endswith(".py") or (not Path(source).exists() and source in installed_recipes())


def _build_recipe(arguments: argparse.Namespace) -> None:
    """Builds the caches that the stages of a recipe read, and the tokenizers and files that these are built from."""
    from easylm_jax.config.load import load_recipe
    from easylm_jax.data.build import shown_progress, stage_cache
    from easylm_jax.data.inspection import summary
    from easylm_jax.experiment import Experiment
    from models.errors import UserError

    if len(arguments.sources) > 1 or arguments.spec:
        raise UserError("data: build takes one recipe without other sources; its stages name them")
    experiment = Experiment(load_recipe(arguments.sources[0]), Path(arguments.out or "runs"))
    caches: dict[str, Any] = {}
    for any_stage in experiment.in_order():
        if not any_stage.trains:
            if any_stage.family == "data":
                experiment.run(any_stage)
            continue
        stage = cast("Train", any_stage)
        specs = {stage.name: stage.data}
        if stage.validation is not None:
            specs[f"{stage.name} validation"] = stage.validation.data
        for name, spec in specs.items():
            if arguments.shard is not None:
                with shown_progress(name, enabled=True) as progress:
                    _build_part(arguments, experiment.data(spec), experiment.out / "cache", progress)
                continue
            cache = stage_cache(experiment, spec)
            print(f"── {name} ──\n{summary(cache)}")
            caches[name] = {"folder": str(cache.folder), **cache.manifest}
    if arguments.shard is None:
        _write_json(arguments.json, caches)


def stats(arguments: argparse.Namespace) -> None:
    """`easylm data stats`: prints the manifest of a cache (--verify compares all files with their checksums), or what
    the rows of files hold."""
    from easylm_jax.data.inspection import summary
    from easylm_jax.data.opening import open_cache
    from models.errors import UserError

    if len(arguments.paths) > 1 or not Path(arguments.paths[0]).is_dir():
        if arguments.verify:
            raise UserError("data: --verify compares the files of a cache; name one cache folder")
        _write_json(arguments.json, data_curation.stats_of_rows(arguments.paths))
        return
    cache = open_cache(arguments.paths[0])
    if arguments.verify:
        cache.verify()
    print(summary(cache))
    if arguments.verify:
        print("every file agrees with its checksum")
    _write_json(arguments.json, {"folder": str(cache.folder), **cache.manifest})


def inspect(arguments: argparse.Namespace) -> None:
    """`easylm data inspect`: prints rows as text; tokens that are trained on are green on a terminal, else in ⟦ ⟧."""
    from easylm_jax.data.inspection import describe_row, heading
    from easylm_jax.data.opening import open_cache
    from easylm_jax.data.tokenizer import load_tokenizer

    cache = open_cache(arguments.cache)
    tokenizer = load_tokenizer(arguments.tokenizer or cache.manifest["tokenizer"]["spec"])
    cache.check_tokenizer(tokenizer)
    marks = ("\x1b[32m", "\x1b[0m") if sys.stdout.isatty() else ("⟦", "⟧")
    shown = []
    for row in range(arguments.start, min(arguments.start + arguments.rows, cache.rows)):
        described = describe_row(cache, row, tokenizer)
        shown.append(described)
        print(f"── row {row} ──")
        for document in described["documents"]:
            print(f"── {heading(document)} ──")
            print("".join(marks[0] + p["text"] + marks[1] if p["trained"] else p["text"] for p in document["pieces"]))
            if arguments.ids:
                print(" ".join(map(str, document["ids"])))
            for column, value in document.get("kept", {}).items():
                print(f"{column}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    _write_json(arguments.json, {"folder": str(cache.folder), "rows": shown})


def tokenizer(arguments: argparse.Namespace) -> None:
    """`easylm data tokenizer`: trains a SentencePiece vocabulary on all text of the sources."""
    from easylm_jax.data.sentencepiece_model import train_sentencepiece
    from easylm_jax.data.texts import source_texts
    from easylm_jax.data.tokenizer import load_tokenizer

    symbols = [symbol for symbol in arguments.symbols.split(",") if symbol]
    texts = source_texts(_sources(arguments))
    path = train_sentencepiece(texts, arguments.vocab, arguments.out, symbols=symbols)
    facts = load_tokenizer(f"sp:{path}").describe()
    print(f"sp:{path}: {facts['vocab_size']:,} tokens")
    _write_json(arguments.json, facts)


def _write_json(path: str | None, value: Any) -> None:
    if path:
        from models.errors import UserError

        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False, default=dataclasses.asdict) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; give another file with --json") from None
