"""The command `easylm`. Nothing heavy is imported before a subcommand runs, so that help comes at once.

Exit status: 0 done; 1 a comparison that failed; 2 a mistake in the input, told in one line (with `--debug`, the
traceback); 75 a hang that the watchdog ended, worth starting again; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class UsageError(Exception):
    """A command line that cannot be understood; told like a `models.errors.UserError`, which would import JAX."""


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` in place of printing the usage and exiting, and suggests the nearest name."""

    def __init__(self, *args: Any, **options: Any):
        # Defaults here, so that the parsers of nested commands have them too. An example is to be copied: no wrapping.
        defaults = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **{**defaults, **options})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            what = action.metavar or action.dest
            raise UsageError(f"no {what} {str(value)!r}{nearest(str(value), names)} (see {self.prog} --help)")

    def parse(self, arguments: Sequence[str], *, intermixed: bool = False) -> argparse.Namespace:
        """All of `arguments`; what is left over raises `UsageError` with the nearest option."""
        parse = self.parse_known_intermixed_args if intermixed else self.parse_known_args
        parsed, extra = parse(arguments)
        if extra:
            options = sorted(set(self._options(arguments)))
            unknown = next((text for text in extra if text.startswith("-")), extra[0])
            raise UsageError(
                f"unknown argument {unknown!r}{nearest(unknown.split('=')[0], options)} (see {self.prog} --help)"
            )
        return parsed

    def _options(self, arguments: Sequence[str]) -> Iterable[str]:
        """The options of this command and of those of its subcommands that were named."""
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, parser in action.choices.items():
                    if name in arguments:
                        yield from parser._options(arguments)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or else what is known, or nothing for an option that resembles none."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return "" if name.startswith("-") or not known else f"; known: {', '.join(known)}"


@dataclass(frozen=True)
class Command:
    """A subcommand: one line on what it does, an example that works, its arguments and its code."""

    summary: str
    example: str
    add_arguments: Callable[[Parser], None]
    main: Callable[[argparse.Namespace], int | None]
    intermixed: bool = False


def _add_run_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a Python file that holds `recipe = Recipe(...)`")
    parser.add_argument("overrides", metavar="FIELD=VALUE", nargs="*", help="change a field, such as sft.lr=1e-5")
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone; the stages it needs must be done")
    parser.add_argument("--out", metavar="DIR", default="runs", help="where runs are kept (default: runs)")
    parser.add_argument(
        "--overwrite", action="store_true", help="start over where a run is already; its checkpoints are set aside"
    )
    parser.add_argument("--list", action="store_true", help="print the stages and how far each is, and stop")
    parser.add_argument("--show-config", action="store_true", help="print the resolved configuration, and stop")


def _run(arguments: argparse.Namespace) -> int:
    recipe = Path(arguments.recipe)
    if not recipe.is_file():
        known = [str(path) for path in sorted(Path("recipes").rglob("*.py")) if path.name != "__init__.py"]
        hint = nearest(str(recipe), known) or "; give the path of a recipe file, such as recipes/quickstart.py"
        raise UsageError(f"no recipe at {recipe}{hint}")
    for text in arguments.overrides:
        if "=" not in text:
            raise UsageError(f"{text!r} is not FIELD=VALUE; write for example sft.lr=1e-5")
    experiment = importlib.import_module("easylm_jax.experiment")
    return experiment.run(
        str(recipe),
        overrides=arguments.overrides,
        only=arguments.only,
        out=arguments.out,
        overwrite=arguments.overwrite,
        list_stages=arguments.list,
        show_config=arguments.show_config,
    )


def _add_convert_arguments(parser: Parser) -> None:
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


def _convert(arguments: argparse.Namespace) -> int:
    convert = importlib.import_module("easylm_jax.convert")
    return convert.main(arguments)


def _from_module(name: str) -> tuple[Callable[[Parser], None], Callable[[argparse.Namespace], int | None]]:
    """The `add_arguments` and `main` of a module that is imported when either is called."""
    return (
        lambda parser: importlib.import_module(name).add_arguments(parser),
        lambda arguments: importlib.import_module(name).main(arguments),
    )


COMMANDS: dict[str, Command] = {
    "run": Command(
        "run or resume the stages of a recipe",
        "easylm run recipes/quickstart.py",
        _add_run_arguments,
        _run,
        intermixed=True,
    ),
    "data": Command(
        "build, inspect and count packed data caches",
        "easylm data build runs/quickstart/data/pretrain.jsonl --tokenizer sp:runs/quickstart/tokenizer/tokenizer.model"
        " --length 256 --out runs/cache",
        *_from_module("easylm_jax.data.commands"),
    ),
    "checkpoints": Command(
        "list, verify, average, prune and compare checkpoints",
        "easylm checkpoints list runs/quickstart/pretrain",
        *_from_module("easylm_jax.checkpoint_tools"),
    ),
    "convert": Command(
        "a Hugging Face folder to a checkpoint, or a checkpoint to a Hugging Face folder",
        "easylm convert runs/quickstart/sft exported",
        _add_convert_arguments,
        _convert,
    ),
    "generate": Command(
        "what a trained model answers",
        'easylm generate runs/quickstart/sft "Which is larger, 12 or 30?" --temperature 0',
        *_from_module("easylm_jax.generate"),
        intermixed=True,
    ),
    "eval": Command(
        "a trained model on named benchmarks (gsm8k, math500, amc, aime2024, aime2025, ifeval, ifbench)",
        "easylm eval runs/quickstart/sft --task gsm8k=problems.jsonl --max-new-tokens 32 --limit 20",
        *_from_module("easylm_jax.evaluate.command"),
    ),
    "plan": Command(
        "whether a recipe fits a TPU pod, and how long it should take; no TPU needed",
        "easylm plan recipes/olmo2/sft_1b.py --topology v5p-32",
        *_from_module("easylm_jax.plan.command"),
        intermixed=True,
    ),
    "report": Command(
        "the tables and figures of a run, on the screen and as one HTML page",
        "easylm report runs/quickstart",
        *_from_module("easylm_jax.report"),
    ),
    "check": Command(
        "whether responses follow the instructions of their prompts (IFBench, IFEval)",
        "easylm check responses.jsonl --prompts IFBench_test.jsonl",
        *_from_module("easylm_jax.check"),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status; never raises for what a user can get wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [text for text in arguments if text != "--debug"]
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("easylm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `easylm ... | head`: the interpreter must not complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if not _is_user_error(error):
            raise
        if debug:
            traceback.print_exc()
        print(f"easylm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR


def _is_user_error(error: Exception) -> bool:
    errors = sys.modules.get("models.errors")  # where it was never imported, nothing can have raised it
    return isinstance(error, UsageError) or (errors is not None and isinstance(error, errors.UserError))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"easylm_jax {_version()}")
        return 0
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}{nearest(name, COMMANDS)} (see easylm --help)")
    command = COMMANDS[name]
    parser = Parser(
        prog=f"easylm {name}",
        description=command.summary[0].upper() + command.summary[1:] + ".",
        epilog=f"example: {command.example}",
    )
    command.add_arguments(parser)
    try:
        parsed = parser.parse(rest, intermixed=command.intermixed)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    return command.main(parsed) or 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("easylm_jax")
    except PackageNotFoundError:
        return "(run from its folder, not installed)"


def _help() -> str:
    lines = ["usage: easylm COMMAND ... [--debug]", "", "Train and post-train open language models in JAX.", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<12} {command.summary}")
    lines += [
        "",
        "`easylm COMMAND --help` tells more; --debug shows the traceback of an error; --version tells the version.",
        "",
        f"example: {COMMANDS['run'].example}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
