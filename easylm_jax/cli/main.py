"""The command `easylm`. Heavy modules are imported only when a subcommand runs, so that `--help` is fast.

Exit status: 0 success; 1 a check failed (`diff` differs, a plan does not fit); 2 an error in the input, reported in one
line (with `--debug` also the traceback); 75 the watchdog ended a hang, restart the run; 130 stopped by Ctrl-C or
SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from easylm_jax.cli.parser import Parser, UsageError, nearest

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


@dataclass(frozen=True)
class Command:
    """The help of a subcommand: a one-line summary and a working example.

    Its code is in the module `easylm_jax.cli.<name>`, with `add_arguments(parser)` and `main(arguments)`. `intermixed`:
    options may be given between positional arguments.
    """

    summary: str
    example: str
    intermixed: bool = False


COMMANDS: dict[str, Command] = {
    "run": Command(
        "run or resume the stages of a recipe",
        "easylm run recipes/quickstart.py",
        intermixed=True,
    ),
    "new": Command(
        "print a recipe that trains or evaluates a model on a JSONL file of your own",
        "easylm new sft --model runs/quickstart/pretrain --data chats.jsonl --out my_sft.py",
    ),
    "recipes": Command(
        "list the installed recipes, which `easylm run NAME` runs from any folder",
        "easylm recipes tulu3",
    ),
    "fields": Command(
        "print the fields of a stage or of another part of a recipe: type, default, meaning",
        "easylm fields GRPO",
    ),
    "data": Command(
        "build and inspect packed data caches, train tokenizers",
        "easylm data build runs/quickstart/data/pretrain.jsonl --tokenizer sp:runs/quickstart/tokenizer/tokenizer.model"
        " --length 256 --out runs/cache",
    ),
    "checkpoints": Command(
        "list, verify, average, prune and compare checkpoints",
        "easylm checkpoints list runs/quickstart/pretrain",
    ),
    "convert": Command(
        "convert a Hugging Face folder to a checkpoint, or a checkpoint to a Hugging Face folder",
        "easylm convert runs/quickstart/sft exported",
    ),
    "generate": Command(
        "generate responses with a trained model",
        'easylm generate runs/quickstart/sft "Which is larger, 12 or 30?" --temperature 0',
        intermixed=True,
    ),
    "serve": Command(
        "serve a trained model to clients of OpenAI's interface",
        "easylm serve runs/quickstart/sft --port 8000",
    ),
    "eval": Command(
        "evaluate a trained model on benchmarks such as gsm8k, math500 and ifbench",
        "easylm eval runs/quickstart/sft --task gsm8k=problems.jsonl --max-new-tokens 32 --limit 20",
    ),
    "plan": Command(
        "compute whether a recipe fits a TPU pod, and its projected step time; needs no TPU",
        "easylm plan recipes/olmo2/sft_1b.py --topology v5p-32",
        intermixed=True,
    ),
    "report": Command(
        "print the tables of a run, or of several side by side, and write them with figures as one HTML page",
        "easylm report runs/quickstart",
    ),
    "moderate": Command(
        "classify prompts and responses with a moderator: harmful requests, refusals, harmful responses",
        "easylm moderate conversations.jsonl --model runs/wildguard-small/moderator --json moderated.jsonl",
    ),
    "check": Command(
        "check whether responses follow the instructions of their prompts (IFBench, IFEval)",
        "easylm check responses.jsonl --prompts IFBench_test.jsonl",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status; errors in the input are printed, not raised."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [text for text in arguments if text != "--debug"]
    try:
        _check_utf8(arguments)
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("easylm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `easylm ... | head`: prevents an error when the interpreter flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if not _is_user_error(error):
            raise
        if debug:
            traceback.print_exc()
        print(f"easylm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR


def _check_utf8(arguments: Sequence[str]) -> None:
    """Raises `UsageError` for an argument whose bytes are not UTF-8: no prompt, name or path can be shown or stored."""
    for text in arguments:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            shown = text.encode("utf-8", "backslashreplace").decode()
            raise UsageError(f"the argument {shown!r} is not UTF-8 text") from None


def _is_user_error(error: Exception) -> bool:
    errors = sys.modules.get("models.errors")  # if it was never imported, nothing can have raised it
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
    module = importlib.import_module(f"easylm_jax.cli.{name}")
    module.add_arguments(parser)
    try:
        parsed = parser.parse(rest, intermixed=command.intermixed)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    return module.main(parsed) or 0


def _version() -> str:
    from easylm_jax.runtime.packages import version_of

    return version_of("easylm_jax") or "(not installed)"


def _help() -> str:
    lines = ["usage: easylm COMMAND ... [--debug]", "", "Train and post-train open language models in JAX.", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<12} {command.summary}")
    lines += [
        "",
        "`easylm COMMAND --help` shows its options; --debug prints the traceback of an error; --version the version.",
        "",
        f"example: {COMMANDS['run'].example}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
