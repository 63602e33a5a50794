"""`easylm eval MODEL --task NAME`: evaluates a trained model on named benchmarks, without a recipe."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.parser import add_stop_and_seed
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.config import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm eval`."""
    parser.add_argument(
        "model",
        type=kinds.NAME,
        metavar="MODEL",
        help="a stage's or checkpoint's folder, or hf:FOLDER (or hf:OWNER/NAME on the hub)",
    )
    parser.add_argument(
        "--task", type=kinds.NAME, metavar="NAME[=FILE]", action="append", required=True,
        help="a benchmark such as gsm8k or ifbench (an unknown name lists them all), optionally with its prompts in "
        "FILE; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--template", metavar="NAME", help="chat template (default: the one the stage was trained with)"
    )
    parser.add_argument(
        "--tokenizer", type=kinds.NAME, metavar="SPEC", help="sp:FILE or hf:FOLDER (default: the model's own)"
    )
    parser.add_argument(
        "--limit", type=kinds.COUNT, metavar="N", help="use only the first N prompts of each task, long or short"
    )
    parser.add_argument(
        "--max-new-tokens", type=kinds.COUNT, metavar="N", help="maximum response length (default: the benchmark's)"
    )
    parser.add_argument(
        "--longest-prompt", type=kinds.LENGTH, metavar="N",
        help="leave out prompts of more than N tokens, for a model with a short context (default: an error); the table "
        "says how many",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=kinds.NON_NEGATIVE, metavar="T", help="sampling temperature (default: the benchmark's)"
    )
    parser.add_argument(
        "--samples", type=kinds.COUNT, metavar="N", help="responses per prompt (default: the benchmark's)"
    )
    add_stop_and_seed(parser)
    parser.add_argument(
        "--out", type=kinds.OUTPUT_FOLDER, metavar="DIR", default="runs", help="folder for results (default: runs)"
    )
    parser.add_argument("--json", type=kinds.OUTPUT_FILE, metavar="FILE", help="also write the table to FILE")


def main(arguments: argparse.Namespace) -> int:
    """`easylm eval`: evaluates and prints the table; an interrupted evaluation is resumed."""
    from easylm_jax import report
    from easylm_jax.checkpoint import load
    from easylm_jax.config import Compute, Entry, Evaluate, Recipe, fields
    from easylm_jax.experiment import Experiment

    init, meta, known_tokenizer = load.resolve_model(arguments.model)
    trained = meta.get("config") or {}
    tokenizer = arguments.tokenizer or known_tokenizer
    template = arguments.template or (trained.get("data") or {}).get("template")
    if not tokenizer:
        raise UserError(f"the tokenizer of {arguments.model} is not known; give it with --tokenizer")
    if not template:
        raise UserError(f"the chat template of {arguments.model} is not known; give it with --template, such as tulu")
    tasks = tuple(_task(text, tokenizer, template, arguments) for text in arguments.task)
    dtype = (trained.get("compute") or {}).get("dtype") or _default_dtype()
    stage = Evaluate(
        "table", title=f"{arguments.model} on {', '.join(task.name for task in tasks)}", seed=arguments.seed,
        tasks=tasks, entries=(Entry(Path(arguments.model).name or arguments.model, (init,)),),
        compute=Compute(dtype=dtype),
    )  # fmt: skip
    experiment = Experiment(Recipe(f"eval-{fields.digest(fields.encode(stage))[:8]}", (stage,)), Path(arguments.out))
    try:
        experiment.run(stage)
    except UserError as error:
        raise UserError(_in_flags(error, stage.name, init, arguments)) from error
    print(report.tables.text(report.collect(experiment.root)))
    table = experiment.root / "table.json"
    print(f"\n{table}; responses: {experiment.folder(stage.name) / 'samples.jsonl'}")
    if arguments.json:
        _copy(table, Path(arguments.json))
    return 0


# What messages that are written for recipes say, and what a user of this command can do instead.
_WORDS = {
    "max_new_tokens of task": "--max-new-tokens of task",
    "than the one of the stage's data (": "than --tokenizer (",
    "; use the same one for both": "; leave --tokenizer out to use the model's own",
    "; name it in fields": "; give a file with the columns of the published set",
    "; name it in DataSpec.keep": "; give a file with the columns of the published set",
    "; name one in DataSpec.keep": "; give a file with the columns of the published set",
}


def _in_flags(error: UserError, stage: str, init: str, arguments: argparse.Namespace) -> str:
    """The message of an error with the command's own options in place of a stage and its fields."""
    from easylm_jax.data.fill import NothingKept
    from easylm_jax.decode.generator import ContextTooShort

    text = str(error).removeprefix(f"stage {stage}: ").replace(f"entries {init}", arguments.model)
    if isinstance(error, ContextTooShort):
        room, fits = error.context - error.longest, error.context - error.max_new_tokens
        ways = [f"allow at most {room} new tokens with --max-new-tokens"] if room > 0 else []
        ways += [f"leave longer prompts out with --longest-prompt {fits}"] if fits > 1 else []
        exceed = f"{error.longest} tokens and {error.max_new_tokens} new ones exceed the context of {error.context}"
        task = text.partition(": a prompt of")[0]
        return f"{task}: a prompt of {exceed} tokens of {arguments.model}; {' or '.join(ways)}"
    if isinstance(error, NothingKept) and error.counts.overlong_dropped:
        bound = "raise --longest-prompt" if arguments.longest_prompt is not None else "the prompts are too long"
        more = ", or raise --limit" if arguments.limit is not None else ""
        asked = f"none of the {error.counts.read:,} prompts of {error.source.path} is short enough"
        return f"{asked}; {bound}{more}"
    for words, own in _WORDS.items():
        text = text.replace(words, own)
    return text


def _default_dtype() -> str:
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _task(text: str, tokenizer: str, template: str, arguments: argparse.Namespace) -> Task:
    from easylm_jax.evaluate.tasks import TASKS, with_sampling
    from easylm_jax.runtime.functions import resolve

    name, _, path = text.partition("=")
    if name not in TASKS:
        raise UserError(f"no task {name!r}; choose one of {', '.join(TASKS)}")
    if path and not Path(path).is_file():
        raise UserError(f"no file {path}; give a file with the prompts of {name}")
    task = resolve(TASKS[name])(tokenizer, template, path or None)
    sampling: dict[str, Any] = {"stop_strings": (*task.sampling.stop_strings, *arguments.stop)}
    if arguments.max_new_tokens is not None:
        sampling["max_new_tokens"] = arguments.max_new_tokens
    if arguments.temperature is not None:
        sampling["temperature"] = arguments.temperature
    if arguments.longest_prompt is not None:
        task = dataclasses.replace(task, data=dataclasses.replace(task.data, sequence_length=arguments.longest_prompt))
    if arguments.limit is not None or arguments.longest_prompt is not None:  # means by instruction need the whole set
        task = dataclasses.replace(task, also=tuple(one for one in task.also if "'count'" not in one[1]))
    samples = task.samples if arguments.samples is None else arguments.samples
    if samples > 1 and (task.sampling.temperature if arguments.temperature is None else arguments.temperature) == 0:
        raise UserError(
            f"task {task.name}: {samples} greedy responses to a prompt would all be the same; give a --temperature "
            f"above 0{'' if arguments.samples is None else ', or --samples 1'}"
        )
    changed = {"limit": arguments.limit} | ({} if arguments.samples is None else {"samples": arguments.samples})
    return dataclasses.replace(with_sampling(task, **sampling), **changed)


def _copy(table: Path, target: Path) -> None:
    from easylm_jax.runtime.files import write_json
    from models import reading

    try:
        write_json(target, reading.read_json(table))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; give another file with --json") from error
